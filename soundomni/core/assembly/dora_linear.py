"""A linear layer with a low-rank adapter that learns the lengths of rows separately from their directions (DoRA).

A layer W `[O, I]` computes m ⊙ (V x) / ‖V‖ with V = W + (alpha / r) · B A, the norms ‖V‖ `[O]` of the rows of V, and
learned magnitudes m `[O]` (Liu et al. 2024, eq. 5). The norms have no gradient (section 4.3).

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.lora_linear import LoRALinear, add_low_rank


class DoRALinear(LoRALinear):
    """A linear layer with an adapter and a magnitude for each row: `[..., I]` → `[..., O]`.

    The magnitudes start at the norms of the rows, so at first it computes what the layer did. If the weight is loaded
    later, call `reset_magnitude`.

    Args:
        linear, rank, alpha, dropout: see LoRALinear.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(linear, rank=rank, alpha=alpha, dropout=dropout)
        self.lora_magnitude = nn.Parameter(torch.empty(self.out_features, device=self.weight.device, dtype=self.weight.dtype))
        self.reset_magnitude()

    @torch.no_grad()
    def reset_magnitude(self) -> Tensor:
        """Set the magnitudes to the norms of the rows of the layer's own weight, and return them, `[O]`."""
        norms: Tensor = torch.linalg.vector_norm(self.weight, dim=1)
        self.lora_magnitude.copy_(norms)
        return norms

    def update(self, adapted: Tensor, plain: Tensor | None) -> Tensor:
        """Return what the adapter adds, `[..., O]`, in the dtype of the layer's result; the arguments are those of LoRALinear."""
        low_rank = super().update(adapted, plain)
        if plain is not None and self.bias is not None:
            plain = plain - self.bias
        own = functional.linear(adapted, self.weight) if plain is None else plain
        ratio = self.lora_magnitude / self._norms()
        return ((ratio - 1) * own + ratio * low_rank).to(low_rank.dtype)  # in the magnitudes' precision: ratio is close to 1

    @torch.no_grad()
    def _norms(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # sharded weights may be in bfloat16 here
        with torch.autocast(self.weight.device.type, enabled=False):
            weight, a, b = (one.to(wide) for one in (self.weight, self.lora_A.weight, self.lora_B.weight))
            return row_norms(weight, a, b, scale=self.scale)

    def merge(self) -> None:
        """Merge the adapter and the magnitudes into the weight."""
        merge_scaled(self.weight, self.lora_A.weight, self.lora_B.weight, self.lora_magnitude, scale=self.scale)


def row_norms(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """Return the norms of the rows of W + scale · B A, `[O]`."""
    norms: Tensor = torch.linalg.vector_norm(weight + scale * (b @ a), dim=1)
    return norms


@torch.no_grad()
def merge_scaled(weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor, *, scale: float) -> None:
    """Replace `weight` `[O, I]` by m ⊙ V / ‖V‖ in place, computed in float32 or a wider dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    given = weight.to(wide, copy=True)
    add_low_rank(given, a, b, scale=scale)
    ratio = magnitude.to(weight.device, wide) / torch.linalg.vector_norm(given, dim=1)
    weight.copy_(ratio[:, None] * given)
