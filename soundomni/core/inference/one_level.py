"""The logits of one level of codes: samplers that fill one level at a time need no others.

Shape letters: B clips, K levels, T frames, V_k vocabulary of level k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, cast

from torch import Tensor

from soundomni.core.interfaces import First, LevelPredict, Predict


def takes_level(function: Callable[..., Any]) -> bool:
    """Return whether a prediction can be asked for one level."""
    return "level" in signature(function).parameters


def all_levels(predict: Predict) -> Predict:
    """Return the same prediction, but one that cannot be asked for one level."""

    def whole(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        return predict(values, timesteps, first=first)

    return whole


def of_level(predict: Predict, sizes: Sequence[int]) -> LevelPredict:
    """Return a function that predicts the logits `[B, V_level, T]` of one level.

    It asks `predict` for this level if that takes a `level`, and otherwise for all levels.

    Args:
        predict: predicts the logits `[B, V_1 + … + V_K, T]` of all levels, or, given a `level`, those of one.
        sizes: V_1, …, V_K.
    """
    if takes_level(predict):
        return cast(LevelPredict, predict)

    def part(values: Tensor, timesteps: Tensor, *, first: First = 0, level: int) -> Tensor:
        is_plain = isinstance(first, int) and first == 0  # not every function takes `first`
        whole = predict(values, timesteps) if is_plain else predict(values, timesteps, first=first)
        return whole.narrow(1, sum(sizes[:level]), sizes[level])

    return part
