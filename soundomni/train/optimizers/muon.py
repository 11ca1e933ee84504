"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalized before they are added.

Updates are scaled as in Liu et al. 2025 ("Muon is scalable for LLM training", section 2.2), so that they are as large
as AdamW's and one learning rate and one weight decay work for both.

Shape letters: M, N sides of a matrix, K matrices of equal shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
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

SMALLEST_BF16 = 128
"""Least M and N of matrices that are orthogonalized in bf16: for smaller ones, converting costs more than it saves."""
BATCH_BYTES = {"cpu": 2**20, "cuda": 2**26}
"""Size of the matrices that are orthogonalized at once, by type of device: on a CPU, as many as its cache holds."""

_MATRICES = "matrices"


class Muon(Optimizer):
    """Muon for the matrices of layers; AdamW for everything else: embeddings, connectors, convolutions, gains and
    biases.

    A sharded matrix is gathered for its update, and every rank computes the whole update. Matrices of equal shape are
    orthogonalized together, and large ones in bf16 if the processor multiplies bf16 itself (CUDA since Ampere; CPUs
    with AVX512-BF16 or AMX), otherwise in float32. Weights and momentum keep their own dtype.

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
            for matrices in _batches([matrix for matrix in group["params"] if matrix.grad is not None]):
                self._update(matrices, rate=group["lr"], decay=group["weight_decay"])
        super().step()
        return loss

    def _update(self, matrices: Sequence[nn.Parameter], *, rate: float, decay: float) -> None:
        """Update matrices of equal shape, and clear their gradients, so that AdamW skips them."""
        skipped: Tensor | None = getattr(self, "found_inf", None)
        updates = _orthogonal_together([self._look_ahead(matrix, unless=skipped) for matrix in matrices])
        for matrix, update in zip(matrices, updates, strict=True):
            decayed = matrix.mul(1.0 - rate * decay)
            _replace(matrix, decayed.add_(update, alpha=-rate * ADAM_RMS * math.sqrt(max(matrix.shape))), unless=skipped)
            matrix.grad = None

    def _look_ahead(self, matrix: nn.Parameter, *, unless: Tensor | None) -> Tensor:
        """Add a gradient to its momentum, see `_replace`, and return the mean of both after Nesterov."""
        gradient, scale = matrix.grad, getattr(self, "grad_scale", None)
        assert gradient is not None
        if scale is not None:
            gradient = gradient / scale
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix, memory_format=torch.preserve_format)
        average: Tensor = state["momentum_buffer"]
        moved = average.lerp(gradient, 1.0 - self.momentum)
        _replace(average, moved, unless=unless)
        return gradient.lerp(moved, self.momentum)


def orthogonal(matrices: Tensor, *, turns: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Return `[M, N]` or `[K, M, N]` with singular values near 1, by Newton–Schulz iteration; singular vectors stay,
    and zeros stay zeros.

    Args:
        matrices: one matrix, or several.
        turns: number of iterations.
        dtype: dtype of the iterations; None for that of `matrices`, which the result always has.
    """
    first, third, fifth = NEWTON_SCHULZ
    x = matrices if matrices.ndim == 3 else matrices[None]
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    x = x.to(dtype or x.dtype)
    for _ in range(turns):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if tall else x).to(matrices.dtype).view_as(matrices)


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for products of bf16 matrices; others would be slower than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _batches(matrices: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield matrices of equal shape, dtype and device, BATCH_BYTES at a time.

    The ranks yield the same ones in the same order, because they gather them together.
    """
    alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[nn.Parameter]] = {}
    for matrix in matrices:
        alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(matrix)
    for (shape, dtype, device), group in alike.items():
        size = shape.numel() * _computing(shape, dtype, device).itemsize
        count = max(1, BATCH_BYTES.get(device.type, 0) // max(1, size))
        yield from (group[first : first + count] for first in range(0, len(group), count))


def _computing(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which matrices are orthogonalized."""
    return torch.bfloat16 if dtype == torch.float32 and min(shape) >= SMALLEST_BF16 and multiplies_bf16(device) else dtype


def _orthogonal_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonalize whole matrices of equal shape, dtype and device, and return each sharded as it was."""
    whole = torch.stack([matrix.full_tensor() if isinstance(matrix, DTensor) else matrix for matrix in matrices])
    changed = orthogonal(whole, dtype=_computing(whole.shape[1:], whole.dtype, whole.device))
    return [_sharded_like(matrix, new) for matrix, new in zip(matrices, changed.unbind(), strict=True)]


def _sharded_like(matrix: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(matrix, DTensor):
        return whole
    mesh = matrix.device_mesh
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim).redistribute(placements=matrix.placements)


def _replace(tensor: Tensor, new: Tensor, *, unless: Tensor | None) -> None:
    """Overwrite a tensor with a new one that is sharded like it, unless the 0-dim tensor `unless` is there and is 1.0."""
    if isinstance(tensor, DTensor) and isinstance(new, DTensor):
        tensor, new = tensor.to_local(), new.to_local()
    tensor.copy_(new if unless is None else torch.where(unless.bool(), tensor, new))
