"""Clips that are left out of an evaluation: each is reported to the observer, and becomes a row of the result's "failures"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soundomni.evaluation.observer import Observer

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset

MEASURED, COMPARED = "", ", a clip of the reference"
"""What follows the name of a clip that is measured, and of one that others are compared with."""


def left_out(key: str, reason: str, observer: Observer, *, role: str = MEASURED) -> dict[str, str]:
    """Report a clip that is left out, and return its row."""
    observer.note(f"left out '{key}'{role}: {reason}")
    return {"file": key, "error": reason}


def unreadable_files(dataset: Dataset, observer: Observer, *, role: str = MEASURED) -> list[dict[str, str]]:
    """Return the files that the dataset found unreadable when it listed them; report which others it leaves out."""
    from soundomni.data.reports import name_first

    others = [skip for skip in dataset.skipped if skip.kind != "unreadable"]
    if others:
        count = len(others) + len(dataset)
        observer.note(f"{len(others)} of {count} items of the {'reference' if role else 'dataset'} cannot be used: {name_first(others)}")
    return [left_out(skip.key, skip.reason, observer, role=role) for skip in dataset.skipped if skip.kind == "unreadable"]
