"""AdamW whose moments take 8 bits per number (Dettmers et al. 2022), as the package bitsandbytes computes it."""

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
    """AdamW with moments in blocks of 256 numbers that share a scale; parameters of one dimension do not decay.

    It runs on CPU and GPU, in one process: a block of a sharded parameter would depend on the number of processes.

    Args:
        min_size: numbers in a parameter from which on its moments take 8 bits; those of smaller ones stay float32.

    Raises:
        PluginError: bitsandbytes is not installed.
        SpecError: min_size is below 1.
    """

    shards = False

    def __init__(self, *, min_size: int = 4096) -> None:
        if min_size < 1:
            raise SpecError(f"min_size must be at least 1, {min_size} was given")
        self.min_size = min_size
        self._rule = _rule()

    def build(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
        """See `Optimizer.build`. Raise SpecError if a parameter is sharded."""
        if any(isinstance(p, DTensor) for p in parameters.values()):
            raise SpecError("optimizer 'adamw-8bit' runs in one process, not under torchrun; choose train.optimizer.rule: adamw")
        optimizer: torch.optim.Optimizer = self._rule(
            decaying_groups(parameters, settings), lr=settings.lr, betas=settings.betas, eps=settings.eps, min_8bit_size=self.min_size
        )
        return optimizer


def _rule() -> Any:
    """Return bitsandbytes' optimizer with a counter that is a tensor, as checkpoints keep it."""
    try:
        from bitsandbytes.optim import AdamW8bit as Rule
    except ImportError as error:
        raise PluginError("optimizer 'adamw-8bit' needs the package bitsandbytes: pip install soundomni[bitsandbytes]") from error

    class Counted(Rule):  # type: ignore[misc]
        """Its state holds tensors alone."""

        def init_state(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["step"] = torch.tensor(0.0)

        def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            state = self.state[p]
            state["step"] = int(state["step"])
            super().update_step(group, p, gindex, pindex)
            state["step"] = torch.tensor(float(state["step"]))

    return Counted
