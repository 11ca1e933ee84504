"""Checks of sizes given by a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soundomni.core.errors import SpecError, did_you_mean


def require_positive(plugin: str, sizes: Mapping[str, int | None]) -> None:
    """Raise SpecError if a size is below 1; None means a default."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise SpecError(f"{plugin}: {name} is {size}; expected at least 1")


def check_stream(stream: str, streams: Sequence[str]) -> None:
    """Raise SpecError if there is no expert stream of this name."""
    if stream not in streams:
        known = ", ".join(f"'{name}'" for name in streams)
        raise SpecError(f"unknown expert stream '{stream}'; expected one of {known}.{did_you_mean(stream, streams)}")
