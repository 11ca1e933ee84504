"""Checks of sizes given by a spec."""

from __future__ import annotations

from collections.abc import Mapping

from soundomni.core.errors import SpecError


def require_positive(plugin: str, sizes: Mapping[str, int | None]) -> None:
    """Raise SpecError if a size is below 1; None means a default."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise SpecError(f"{plugin}: {name} is {size}; expected at least 1")
