"""Levels of codes that a model makes, if not all of its codec: a coarse stage makes the first ones, a fine stage the others."""

from __future__ import annotations

from soundomni.core.errors import SpecError
from soundomni.core.representation import RepresentationSpec

Levels = tuple[int, int]
"""(first, end): levels from `first` to `end` - 1 are made, those below are given, and there are none from `end` on."""


def check_levels(levels: Levels | None) -> None:
    """Raise SpecError for an empty range, or one that begins below 0."""
    if levels is not None and not 0 <= levels[0] < levels[1]:
        raise SpecError(f"levels is {list(levels)}; expected [first, end] with 0 <= first < end, such as [0, 4] for the first four")


def levels_of(levels: Levels | None, spec: RepresentationSpec) -> Levels:
    """Return the levels that are made of a codec's codes; None stands for all. Raise SpecError if the codec has fewer."""
    if levels is None:
        return 0, spec.token_dim
    if levels[1] > spec.token_dim:
        raise SpecError(f"levels is {list(levels)}, but the codec has {spec.token_dim}; expected an end of at most {spec.token_dim}")
    return levels
