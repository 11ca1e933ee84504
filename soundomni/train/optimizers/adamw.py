"""AdamW (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from soundomni.core.interfaces import Optimizer
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.train.optimizers.parameter_groups import adam_arguments, decaying_groups


class AdamW(Optimizer):
    """torch's AdamW, fused if the device supports it; one-dimensional parameters do not decay."""

    def build(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
        """Return the optimizer; see `Optimizer.build`."""
        return torch.optim.AdamW(decaying_groups(parameters, settings), **adam_arguments(parameters, settings))
