"""Checks of the windows that critics look through: each has four hops of at least one sample."""

from __future__ import annotations

from collections.abc import Sequence

from soundomni.core.errors import SpecError, shown


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths in samples. Raise SpecError unless there is at least one, and all are multiples of 4."""
    if not windows or not all(map(_is_window, windows)):
        expected = "one or more lengths in samples that are multiples of 4"
        raise SpecError(f"windows is {shown(list(windows))}; expected {expected}")
    return tuple(windows)


def check_window(window: int) -> None:
    """Raise SpecError unless the length in samples is a multiple of 4."""
    if not _is_window(window):
        raise SpecError(f"window is {window}; expected a length in samples that is a multiple of 4")


def _is_window(window: int) -> bool:
    return window >= 4 and window % 4 == 0
