"""Options that prepare clips: their checks, which of them a model keeps, and their description in words.

No torch here: a spec is checked before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable

from soundomni.core.errors import SpecError
from soundomni.core.limits import LONGEST_SECONDS
from soundomni.core.spec.schema import ClipSpec, Spec, TrainSpec

_RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("seconds", f"at least 0.01 and at most {LONGEST_SECONDS:,.0f}", lambda x: 0.01 <= x <= LONGEST_SECONDS),
    ("trim", "above 0 and at most 120 decibels", lambda x: 0 < x <= 120),
    ("peak", "above 0 and at most 1", lambda x: 0 < x <= 1),
    ("loudness", "at least -70 and at most 0 LUFS", lambda x: -70 <= x <= 0),
)


def check_clips(clips: ClipSpec | None, key: str) -> None:
    """Raise SpecError, which names the dotted key, for an option that is out of range or does not fit the others."""
    if clips is None:
        return
    for name, expected, holds in _RANGES:
        value = getattr(clips, name)
        if value is not None and not holds(value):
            raise SpecError(f"{key}.{name} is {value:g}; expected {expected}, or null")
    if clips.peak is not None and clips.loudness is not None:
        raise SpecError(f"{key} has both peak and loudness; expected one of them, because each sets the level. Set the other to null")
    if clips.seconds is None and (clips.cut != "start" or clips.trim is not None):
        given = f"cut is {clips.cut}" if clips.cut != "start" else f"trim is {clips.trim:g}"
        raise SpecError(f"{key}.{given}, but lengths must be known before clips are read. Set {key}.seconds to the length of all clips")


def used(clips: ClipSpec | None) -> ClipSpec | None:
    """Return the options, or None if all of them are off."""
    return None if clips == ClipSpec() else clips


def clips_of(spec: Spec) -> ClipSpec | None:
    """Return how the model of a spec prepares the clips that it is given: `model.clips`, or else what its datasets
    agree on.

    None if they do not agree, if they prepare nothing, or if there is no data.
    """
    if spec.model is not None and spec.model.clips is not None:
        return used(spec.model.clips)
    found = set(dataset_clips(spec).values())
    return found.pop() if len(found) == 1 else None


def validation_seconds(train: TrainSpec, clips: ClipSpec | None) -> float:
    """Return the length of the clips that a run generates while it trains: `train.validation.seconds`, or else that of all clips that
    the model is trained on, or else 1 s."""
    given = train.validating.seconds
    if given is not None:
        return given
    return 1.0 if clips is None or clips.seconds is None else clips.seconds


def dataset_clips(spec: Spec) -> dict[str, ClipSpec | None]:
    """Return how each dataset of a spec prepares its clips, by name; None for clips as they are."""
    entries = spec.data.datasets.items() if spec.data is not None else ()
    return {name: used(entry.clips) for name, entry in entries if entry is not None}


def announced(clips: ClipSpec) -> str:
    """Return the line that says how clips that a model is given are prepared."""
    return f"clips are prepared as in training: {in_words(clips)} (model.clips)"


def in_words(clips: ClipSpec) -> str:
    """Return how clips are prepared, for a line that people read.

    >>> in_words(ClipSpec(cut="onset", seconds=1.0, peak=0.9))
    'from the onset, 1 s long, peak 0.9'
    """
    words = {"start": [], "onset": ["from the onset"], "random": ["from a random place"]}[clips.cut]
    words += [f"silence below -{clips.trim:g} dB trimmed"] if clips.trim is not None else []
    words += [f"{clips.seconds:g} s long"] if clips.seconds is not None else []
    words += [f"peak {clips.peak:g}"] if clips.peak is not None else []
    words += [f"loudness {clips.loudness:g} LUFS"] if clips.loudness is not None else []
    return ", ".join(words)
