"""A linear layer with a low-rank adapter (Hu et al. 2021).

A layer W `[O, I]` computes W x + (alpha / r) · B A x with A `[r, I]` and B `[O, r]` (section 4.1).

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.timestep_gate import TimestepGate


class LoRALinear(nn.Linear):
    """A linear layer with an adapter: `[..., I]` → `[..., O]`.

    A starts random and B at zero, so at first it computes what the layer did. Weight and bias are the layer's own
    parameters under their own names, and stay frozen or trainable as they were.

    Args:
        linear: the layer.
        rank: r.
        alpha: the adapter is scaled by alpha / r.
        dropout: share of the adapter's inputs that are zeroed while gradients are computed.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, **like)  # drawn like any linear layer, Kaiming-uniform
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.gate: tuple[TimestepGate, int] | None = None
        """Gate that says at which tokens of which stream the adapter acts; None if it acts at all tokens."""

    @property
    def scale(self) -> float:
        """The factor alpha / r."""
        return self.alpha / self.rank

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` → `[..., O]`."""
        drops = self.dropout > 0 and torch.is_grad_enabled()
        adapted = functional.dropout(input, self.dropout) if drops else input
        plain = super().forward(input)
        update = self.update(adapted, None if drops else plain)
        return plain + (update if self.gate is None else self.gate[0].of(self.gate[1], update))

    def update(self, adapted: Tensor, plain: Tensor | None) -> Tensor:
        """Return what the adapter adds, `[..., O]`.

        Args:
            adapted: `[..., I]`, the input, possibly after dropout.
            plain: `[..., O]`, the output of the layer itself for `adapted`; None if it has not been computed.
        """
        update: Tensor = self.lora_B(self.lora_A(adapted))
        return self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer that computes the same. Changes the weight in place."""
        self.merge()
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain

    def merge(self) -> None:
        """Add the adapter to the weight."""
        add_low_rank(self.weight, self.lora_A.weight, self.lora_B.weight, scale=self.scale)


@torch.no_grad()
def add_low_rank(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> None:
    """Add scale · B A to `weight` `[O, I]` in place, computed in float32 or a wider dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = b.to(weight.device, wide) @ a.to(weight.device, wide)
    weight.copy_(weight.to(wide).add_(update, alpha=scale))
