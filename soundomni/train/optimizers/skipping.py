"""Optimizer steps that leave everything as it is if the step must be skipped, which only the device knows."""

from __future__ import annotations

import torch
from torch import Tensor


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer reads `found_inf`, as torch's gradient scaler expects of those that declare it."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Run the optimizer unless `skipped` is 1.0; then weights and state stay as they are.

    An optimizer that cannot skip on the device makes the host wait for it.

    Args:
        skipped: 0-dim, 1.0 or 0.0, on the device of the parameters and equal on all ranks.
        optimizer: it finds `skipped` in its attribute `found_inf` during the step, if it reads that.
    """
    if not skips_on_device(optimizer):
        if not bool(skipped):
            optimizer.step()
        return
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
