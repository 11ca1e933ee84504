"""AdamW with moments of 8 bits per number (Dettmers et al. 2022), as computed by the package bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from soundomni.core.errors import PluginError, SpecError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.train.optimizers.parameter_groups import decaying_groups


class AdamW8bit(Optimizer):
    """AdamW with moments in blocks of 256 numbers that share a scale; one-dimensional parameters do not decay.

    It runs on CPU and GPU, in one process: the blocks of a sharded parameter would depend on the number of processes.

    Args:
        min_size: smallest number of elements for which a parameter's moments take 8 bits; smaller ones stay float32.

    Raises:
        PluginError: bitsandbytes is not installed.
        SpecError: min_size is below 1.
    """

    shards = False

    def __init__(self, *, min_size: int = 4096) -> None:
        if min_size < 1:
            raise SpecError(f"min_size is {min_size}; expected at least 1")
        self.min_size = min_size
        self._rule = _rule()

    def build(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
        """Return the optimizer; see `Optimizer.build`. Raise SpecError if a parameter is sharded."""
        if any(isinstance(p, DTensor) for p in parameters.values()):
            raise SpecError("optimizer 'adamw-8bit' runs in one process, not under torchrun; choose train.optimizer.rule: adamw")
        optimizer: torch.optim.Optimizer = self._rule(
            decaying_groups(parameters, settings), lr=settings.lr, betas=settings.betas, eps=settings.eps, min_8bit_size=self.min_size
        )
        return optimizer


def _rule() -> Any:
    """Return bitsandbytes' optimizer with a counter that is a tensor, as checkpoints need it."""
    try:
        from bitsandbytes.optim import AdamW8bit as Rule
    except ImportError as error:
        raise PluginError("optimizer 'adamw-8bit' needs the package bitsandbytes: pip install soundomni[bitsandbytes]") from error

    class Counted(Rule):  # type: ignore[misc]
        """An optimizer whose state only holds tensors."""

        def init_state(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["step"] = torch.tensor(0.0)

        def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            state = self.state[p]
            state["step"] = int(state["step"])
            super().update_step(group, p, gindex, pindex)
            state["step"] = torch.tensor(float(state["step"]))

    return Counted
