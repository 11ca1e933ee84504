"""Adapters that only act at some timesteps: which tokens of a batch they act on.

Clips of a batch have different timesteps, so a factor of 0 or 1 for each stored token says whether an adapter acts on
it. The factors are computed when the backbone is called and kept until the next call, so layers that are recomputed in
the backward pass can use them too.

Shape letters: M clips, P stored tokens of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from soundomni.core.attention.conditions import SeenConditions
from soundomni.core.attention.layout import Layout

Interval = tuple[float, float]
"""Timesteps (low, high) of the flow, both included: 0 is clean, 1 is noise."""
EVERYWHERE: Interval = (0.0, 1.0)


def is_interval(ends: tuple[float, ...]) -> bool:
    """Return whether two numbers are timesteps (low, high) from 0 to 1."""
    return len(ends) == 2 and 0 <= ends[0] < ends[1] <= 1


@dataclass
class TimestepGate:
    """The tokens of the current batch on which adapters act.

    Args:
        interval: the timesteps at which they act.
        shown: the same as the network gets them, see `Objective.shown_times`.
    """

    interval: Interval
    shown: Interval
    factors: dict[int, Tensor] = field(default_factory=dict)

    def attach(self, backbone: nn.Module) -> None:
        """Watch a backbone that takes times, and find the tokens before each of its calls."""

        def before(_: nn.Module, given: tuple[Any, Layout]) -> None:
            seen = given[1].conditions
            assert seen is not None and seen.times is not None, "a backbone that takes times gets them"
            self.find(seen, seen.times)

        backbone.register_forward_pre_hook(before)

    @torch.no_grad()
    def find(self, seen: SeenConditions, times: Tensor) -> None:
        """Find the tokens of the clips whose timestep, of `times` `[M + 1]`, lies in the interval."""
        low, high = self.shown
        acts = ((times >= low) & (times <= high)).to(times.dtype)
        self.factors = {stream: acts.index_select(0, clips)[:, None] for stream, clips in seen.clips.items()}

    def of(self, stream: int, update: Tensor) -> Tensor:
        """Return `update` `[P, O]` at the tokens where adapters act, and zero elsewhere."""
        return update * self.factors[stream].to(update.dtype)
