"""Recipes of toy sounds: one or two events, each with attributes that can be measured from audio.

A recipe is the ground truth of a synthesized clip, the content of a caption, and the result of an analysis: all three
are compared here, attribute by attribute. An attribute that is not stated is None and is not judged.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Kind = Literal["tone", "chirp", "clicks", "noise"]

KINDS: tuple[Kind, ...] = ("tone", "chirp", "clicks", "noise")
WAVEFORMS = ("sine", "square", "sawtooth", "triangle")
DIRECTIONS = ("rising", "falling")
COLORS = ("white", "low", "high")
CLICK_COUNTS = (1, 2, 3, 4)
LOUDNESSES = ("quiet", "loud")
LEVELS = {"quiet": -28.0, "loud": -16.0}
"""Level of an event in dB relative to a full-scale constant: RMS of a sustained event; for a click, RMS over
CLICK_WINDOW."""
CLICK_WINDOW = 0.02
"""Seconds over which the level of one click is measured."""

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
NOTES = tuple(f"{name}{octave}" for octave in (3, 4) for name in PITCH_CLASSES)

_FLATS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#"}
_WRITTEN = {"color": "colour"}
"""Attributes that JSON spells in another way: digests of the items of lists depend on it."""
_HELD_OUT_TONES = 0.1
_HELD_OUT_PAIRS = 0.06


@dataclass(frozen=True, kw_only=True)
class Event:
    """One sound. Attributes that do not belong to its kind, or are unknown, are None.

    Args:
        kind: tone, chirp, clicks or noise.
        loudness: "quiet" or "loud".
        waveform: waveform of a tone, one of WAVEFORMS.
        note: note of a tone, such as "A4" (440 Hz).
        direction: direction of a chirp, "rising" or "falling".
        clicks: number of clicks.
        color: color of noise: "white", "low" or "high".
    """

    kind: Kind
    loudness: str | None = None
    waveform: str | None = None
    note: str | None = None
    direction: str | None = None
    clicks: int | None = None
    color: str | None = None

    @property
    def sound(self) -> str:
        """The event without note, count and loudness: "sine", "rising", "clicks", "white"; the kind if that is not
        known."""
        return self.waveform or self.direction or self.color or self.kind


@dataclass(frozen=True)
class Recipe:
    """The events of a clip, in order of time."""

    events: tuple[Event, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: {"events": [{"kind": ..., stated attributes}]}."""
        stated = [{name: value for name, value in vars(event).items() if value is not None} for event in self.events]
        return {"events": [{_WRITTEN.get(name, name): value for name, value in event.items()} for event in stated]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what `to_json` returned; keys other than "events" are ignored."""
        return cls(tuple(Event(**_current_names(event)) for event in data["events"]))

    def without_loudness(self) -> Recipe:
        """Return the recipe without any loudness."""
        return Recipe(tuple(replace(event, loudness=None) for event in self.events))


def is_recipe(data: Mapping[str, Any]) -> bool:
    """Return whether `Recipe.from_json` can read `data`: other collections have attributes called "events" too.

    >>> is_recipe({"events": [{"kind": "noise", "color": "white"}]}), is_recipe({"events": ["a dog barks"]})
    (True, False)
    """
    known, events = {one.name for one in fields(Event)}, data.get("events")
    return isinstance(events, (list, tuple)) and all(
        isinstance(event, Mapping) and event.get("kind") in KINDS and _current_names(event).keys() <= known for event in events
    )


def _current_names(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event in which every attribute has its name in Python."""
    names = {written: name for name, written in _WRITTEN.items()}
    return {names.get(name, name): value for name, value in event.items()}


def note_frequency(note: str) -> float:
    """Return the frequency of a note in Hz, equal temperament, A4 = 440 Hz.

    >>> round(note_frequency("C3"), 2)
    130.81
    """
    semitone = PITCH_CLASSES.index(note[:-1]) + 12 * int(note[-1])
    return float(440.0 * 2.0 ** ((semitone - 57) / 12))


def nearest_note(frequency: float) -> str:
    """Return the note within half a semitone of a frequency in Hz, of any octave.

    >>> nearest_note(447.0)
    'A4'
    """
    semitone = round(57 + 12 * math.log2(frequency / 440.0))
    return f"{PITCH_CLASSES[semitone % 12]}{semitone // 12}"


def spell_note(text: str) -> str | None:
    """Return a note under its name here ("a4" → "A4", "Db3" → "C#3"), or None if `text` is not a note."""
    name, octave = text[:-1].capitalize(), text[-1:]
    name = _FLATS.get(name, name)
    return name + octave if name in PITCH_CLASSES and octave in "0123456789" and octave else None


def all_events(*, notes: Sequence[str] = NOTES, loudnesses: Sequence[str | None] = LOUDNESSES) -> list[Event]:
    """Return all events with these notes and loudnesses: tones, chirps, clicks, noise, in this order."""
    events: list[Event] = []
    for loudness in loudnesses:
        events += [Event(kind="tone", waveform=w, note=n, loudness=loudness) for w in WAVEFORMS for n in notes]
        events += [Event(kind="chirp", direction=direction, loudness=loudness) for direction in DIRECTIONS]
        events += [Event(kind="clicks", clicks=count, loudness=loudness) for count in CLICK_COUNTS]
        events += [Event(kind="noise", color=color, loudness=loudness) for color in COLORS]
    return sorted(events, key=lambda event: KINDS.index(event.kind))


def is_held_out(recipe: Recipe) -> bool:
    """Return whether a recipe belongs to the combinations reserved for tests of unseen combinations.

    Reserved are 26 of the 192 tones (waveform, note and loudness together), also within a sequence, and 9 of the 100
    ordered pairs of sounds (such as square then sine, whatever their notes, counts and loudness). Every single
    attribute still occurs in the rest. The rule is a hash of the attributes, the same for every seed.
    """
    for event in recipe.events:
        if event.kind == "tone" and _hash(f"{event.waveform} {event.note} {event.loudness}") < _HELD_OUT_TONES:
            return True
    return len(recipe.events) > 1 and _hash(" then ".join(event.sound for event in recipe.events)) < _HELD_OUT_PAIRS


def agreement(expected: Recipe, heard: Recipe | None) -> dict[str, bool]:
    """Return for each attribute that `expected` states whether `heard` has it; all are False for None.

    Attributes: "events" (how many), "kinds" (which, in any order), "order" (of two different kinds), and of the events
    together "waveform", "pitch", "direction", "clicks", "noise" and "loudness". Events are matched to the heard ones by
    kind first, so that a wrong order only costs the order.
    """
    other = heard.events if heard is not None else ()
    kinds, heard_kinds = [event.kind for event in expected.events], [event.kind for event in other]
    result = {"events": len(kinds) == len(heard_kinds), "kinds": sorted(kinds) == sorted(heard_kinds)}
    if len(set(kinds)) > 1:
        result["order"] = kinds == heard_kinds
    matched = _match(expected.events, other)
    for name, attribute in _ATTRIBUTES.items():
        stated = [(attribute(event), found) for event, found in zip(expected.events, matched, strict=True)]
        verdicts = [found is not None and attribute(found) == value for value, found in stated if value is not None]
        if verdicts:
            result[name] = all(verdicts)
    return result


_ATTRIBUTES: dict[str, Callable[[Event], str | int | None]] = {
    "waveform": lambda event: event.waveform,
    "pitch": lambda event: event.note,
    "direction": lambda event: event.direction,
    "clicks": lambda event: event.clicks,
    "noise": lambda event: event.color,
    "loudness": lambda event: event.loudness,
}


def _match(expected: Sequence[Event], heard: Sequence[Event]) -> list[Event | None]:
    """Return a partner for each expected event: most equal kinds first, then keeping the order."""
    padded: list[Event | None] = [*heard, *[None] * max(0, len(expected) - len(heard))]
    # permutations come in lexicographic order and max keeps the first, so ties keep the order of time
    best = max(
        itertools.permutations(padded, len(expected)),
        key=lambda partners: sum(p is not None and p.kind == e.kind for p, e in zip(partners, expected, strict=True)),
    )
    return list(best)


def _hash(text: str) -> float:
    """Return a fixed pseudo-random number in [0, 1) for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32
