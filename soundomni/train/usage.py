"""How much of the machine a run uses: memory, and the share of the peak speed of its GPUs."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import amount
from soundomni.train.parallel import World

_TERA = 1e12
_PEAKS: Mapping[str, tuple[float, float]] = {
    "B200": (2250 * _TERA, 75 * _TERA),
    "H200": (989 * _TERA, 67 * _TERA),
    "H100 PCIe": (756 * _TERA, 51 * _TERA),
    "H100": (989 * _TERA, 67 * _TERA),
    "A100": (312 * _TERA, 19.5 * _TERA),
    "L40S": (362 * _TERA, 91.6 * _TERA),
    "RTX 4090": (165 * _TERA, 82.6 * _TERA),
}
"""Part of a GPU's name → dense operations per second in bf16 and in fp32, from data sheets. The first match counts."""
OPERATIONS_PER_WEIGHT = 6.0
"""Operations per token: 2 in the forward pass and 4 in the backward pass (Kaplan et al. 2020, section 2.1)."""


@dataclass(frozen=True)
class Usage:
    """Measures how much of the machine a run uses.

    Args:
        world: its processes.
        weights: number of weights in the matrices that one token passes; None if unknown.
        peak: operations per second that one process could reach; None if unknown.
    """

    world: World
    weights: float | None
    peak: float | None

    @classmethod
    def of(cls, module: nn.Module, world: World, *, precision: str) -> Usage:
        """Return the measurement for a run that trains `module`, not yet sharded, in `precision`."""
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        weights = token_weights(module) if isinstance(module, UnifiedModel) else None
        return cls(world, weights, peak_speed(name, precision=precision))

    def __call__(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return `peak_memory`, the most bytes that a process has used, and `mfu`, the share of peak speed, if known.

        Every rank must call this.
        """
        found = {"peak_memory": max(self.world.gather(peak_memory(self.world.device)))}
        if self.weights is not None and self.peak is not None:
            speed = OPERATIONS_PER_WEIGHT * self.weights * metrics["tokens_per_second"]
            found["mfu"] = speed / (self.peak * self.world.size)
        return found


def token_weights(model: UnifiedModel) -> float:
    """Return how many weights of the backbone one token passes: those of an expert stream, averaged over the streams.

    Attention, the text head, the codec, the encoder and the connectors are left out, so a share computed from it is too
    low.
    """
    streams = model.router.streams
    weights = [p for stream in streams for p in model.backbone.expert_parameters(stream) if p.ndim > 1]
    return sum(p.numel() for p in weights) / len(streams)


def peak_speed(name: str, *, precision: str) -> float | None:
    """Return the operations per second that a GPU of this name can reach in "bf16" or "fp32"; None if unknown."""
    return next((bf16 if precision == "bf16" else fp32 for part, (bf16, fp32) in _PEAKS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process so far, in bytes: of its tensors on a GPU, otherwise of the host."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def summary(step: int, totals: Mapping[str, float], *, seconds: float, memory: float) -> str:
    """Return one line about a run: its steps, tokens and seconds, and its peak memory in bytes."""
    rate, time = totals.get("tokens", 0.0) / max(seconds, 1e-9), timedelta(seconds=round(seconds))
    return f"{amount(step, 'step')} in {time}, {rate:,.0f} tokens/s, peak memory {memory / 1e9:.2f} GB"
