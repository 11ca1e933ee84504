"""The beginning of import-report.json, which says where imported weights come from."""

from __future__ import annotations

from typing import Any

from soundomni.core.pretrained.foreign_weights import WeightFile, digest

FORMAT = 1
"""Format of the reports."""


def report_start(kind: str, source: WeightFile) -> dict[str, Any]:
    """Return what was imported, with checksums, which need the source to be read again.

    Args:
        kind: kind of import.
        source: the imported weights.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    files = {file.relative_to(folder).as_posix(): digest(file) for file in source.files}
    return {"format": FORMAT, "kind": kind, "source": {"name": source.path.resolve().name, "files": files}}
