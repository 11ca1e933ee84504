"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalized before they are added.

Updates are scaled as in Liu et al. 2025 ("Muon is scalable for LLM training", section 2.2), so that they are as large
as AdamW's and one learning rate and one weight decay work for both.

Shape letters: M, N sides of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.train.optimizers.parameter_groups import adam_arguments, decaying_groups

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Factors of x, x³ and x⁵ (Jordan et al. 2024): five turns bring singular values from anywhere in [0.01, 1] to within
0.35 of 1."""
ADAM_RMS = 0.2
"""Approximate root mean square of an update of AdamW, in learning rates (section 2.2 of Liu et al. 2025)."""

_MATRICES = "matrices"


class Muon(Optimizer):
    """Muon for the matrices of layers; AdamW for everything else: embeddings, connectors, convolutions, gains and
    biases.

    A sharded matrix is gathered for its update, and every rank computes the whole update.

    Args:
        momentum: momentum of the matrices' gradients, with Nesterov's look-ahead.
        matrices: patterns of the names of two-dimensional parameters that Muon updates.

    Raises:
        SpecError: momentum is not in [0, 1).
    """

    def __init__(self, *, momentum: float = 0.95, matrices: Sequence[str] = ("*blocks.*", "*layers.*")) -> None:
        if not 0.0 <= momentum < 1.0:
            raise SpecError(f"momentum is {momentum}; expected at least 0 and below 1")
        self.momentum = momentum
        self.patterns = tuple(matrices)

    def build(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
        """Return the optimizer; see `Optimizer.build`. Raise SpecError if no pattern matches any matrix."""
        matrices = {n: p for n, p in parameters.items() if p.ndim == 2 and any(fnmatchcase(n, pattern) for pattern in self.patterns)}
        if not matrices:
            raise SpecError(
                f"muon: no trained matrix has a name like {' or '.join(self.patterns)}; name others in matrices, or choose the rule adamw"
            )
        others = {n: p for n, p in parameters.items() if n not in matrices}
        chosen = {"params": list(matrices.values()), "weight_decay": settings.weight_decay, _MATRICES: True}
        groups = [chosen, *decaying_groups(others, settings)]
        return MuonAdamW(groups, momentum=self.momentum, **adam_arguments(parameters, settings))


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `matrices: True` are updated by Muon instead; a step clears the gradients of these.

    Like torch's fused AdamW, it divides gradients by its attribute `grad_scale`, and changes nothing if `found_inf` is 1.0;
    both are 0-dim tensors, and may be missing.

    Args:
        groups: as for torch's AdamW.
        momentum: momentum of the matrices.
        adam: other arguments of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **adam: Any) -> None:
        super().__init__(groups, **adam)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient, and return the result of `closure`, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group.get(_MATRICES, False):
                continue
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, rate=group["lr"], decay=group["weight_decay"])
                    matrix.grad = None  # AdamW skips parameters without a gradient
        super().step()
        return loss

    def _update(self, matrix: nn.Parameter, *, rate: float, decay: float) -> None:
        gradient = matrix.grad
        assert gradient is not None
        scale, skipped = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradient = gradient / scale
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix, memory_format=torch.preserve_format)
        average: Tensor = state["momentum_buffer"]
        moved = average.lerp(gradient, 1.0 - self.momentum)
        update = _whole(gradient.lerp(moved, self.momentum), orthogonal)
        decayed = matrix.mul(1.0 - rate * decay)
        _replace(matrix, decayed.add_(update, alpha=-rate * ADAM_RMS * math.sqrt(max(matrix.shape))), unless=skipped)
        _replace(average, moved, unless=skipped)


def orthogonal(matrix: Tensor, *, turns: int = 5) -> Tensor:
    """Return `[M, N]` with singular values near 1, by Newton–Schulz iteration; singular vectors stay, and zeros stay
    zeros."""
    first, third, fifth = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(turns):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.T if tall else x


def _whole(matrix: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to a whole matrix, and return the result sharded as it was."""
    if not isinstance(matrix, DTensor):
        return change(matrix)
    changed = DTensor.from_local(change(matrix.full_tensor()), matrix.device_mesh, [Replicate()] * matrix.device_mesh.ndim)
    return changed.redistribute(placements=matrix.placements)


def _replace(tensor: Tensor, new: Tensor, *, unless: Tensor | None) -> None:
    """Overwrite a tensor with a new one that is sharded like it, unless the 0-dim tensor `unless` is there and is 1.0."""
    if isinstance(tensor, DTensor) and isinstance(new, DTensor):
        tensor, new = tensor.to_local(), new.to_local()
    tensor.copy_(new if unless is None else torch.where(unless.bool(), tensor, new))
