"""The models that come with the package."""

from __future__ import annotations

from pathlib import Path

from soundomni.core.files.names import CONFIG_FILE

SHIPPED = Path(__file__).parents[2] / "models"
"""Folder of the models that come with the package, by name."""


def shipped_models() -> tuple[str, ...]:
    """Return the names of the models that come with the package."""
    return tuple(sorted(path.name for path in SHIPPED.iterdir() if (path / CONFIG_FILE).is_file()))


def shipped_path(name: str) -> Path:
    """Return the directory of a model that comes with the package."""
    return SHIPPED / name
