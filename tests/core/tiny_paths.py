"""Objectives on other paths than a straight line."""

from __future__ import annotations

import math

from torch import Tensor

from soundomni.flow import FlowMatching


class CosinePath(FlowMatching):
    """x_t = cos(tπ/2)·x0 + sin(tπ/2)·ε."""

    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        angle = timestep * math.pi / 2
        return math.cos(angle) * clean + math.sin(angle) * start


class SquarePath(FlowMatching):
    """x_t = (1 − t²)·x0 + t²·ε."""

    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        return (1 - timestep**2) * clean + timestep**2 * start
