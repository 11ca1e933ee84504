"""Toy sounds in words: captions, questions with answers, and the way back from a caption to its recipe.

Captions are plain words in a few phrasings. The parser reads each phrase as a set of known words, so that it
understands every phrasing written here and similar ones, and rejects text with any other word or with a contradiction.
"""

from __future__ import annotations

import re

from soundomni.data.toys.toy_recipe import COLORS, LOUDNESSES, WAVEFORMS, Event, Kind, Recipe, spell_note

COUNT_WORDS = ("one", "two", "three", "four")
NUM_PHRASINGS = 4

_DIRECTION_WORDS = {"rising": "rising", "falling": "falling", "up": "rising", "down": "falling"}
_FILLERS = frozenset(("a", "an", "the", "some", "as", "at", "going", "burst", "of", "sound", "sounds", "short"))
_KIND_WORDS: dict[str, Kind] = {
    **dict.fromkeys(("tone", "wave", "note"), "tone"),
    **dict.fromkeys(("chirp", "sweep"), "chirp"),
    **dict.fromkeys(("clicks", "ticks", "clicking"), "clicks"),
    "noise": "noise",
}
_SEQUENCES = (  # pattern, whether the sound named first comes last
    (re.compile(r"first (.+), then (.+)"), False),
    (re.compile(r"(.+?),? (?:and )?then (.+)"), False),
    (re.compile(r"(.+?),? followed by (.+)"), False),
    (re.compile(r"(.+?) before (.+)"), False),
    (re.compile(r"(.+?) after (.+)"), True),
)


def captions(recipe: Recipe) -> tuple[str, ...]:
    """Return the captions of a recipe of one or two events: four phrasings with all attributes, then one without
    loudness.

    The first is the canonical one; duplicates are left out.
    """
    full = (_sequence([_phrase(event, index) for event in recipe.events], index) for index in range(NUM_PHRASINGS))
    plain = _sequence([_phrase(event, 0) for event in recipe.without_loudness().events], 0)
    return tuple(dict.fromkeys((*full, plain)))


def questions(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Return the (question, answer) pairs that make sense for a recipe; each has one right answer."""
    events = recipe.events
    pairs = [("how many events are there?", COUNT_WORDS[len(events) - 1])]
    if len(events) == 1:
        pairs.append(("what is it?", _name(events[0])))
    else:
        pairs += [("what comes first?", _name(events[0])), ("what comes last?", _name(events[-1]))]
    for event in events:
        if sum(other.kind == event.kind for other in events) == 1:
            pairs += _about(event)
    loudness = [str(event.loudness) for event in events]
    if len(set(loudness)) == 1:
        pairs.append(("is it loud or quiet?", loudness[0]))
    else:
        pairs.append(("which event is louder?", ("the first", "the second")[loudness.index("loud")]))
    return tuple(pairs)


def parse_caption(text: str) -> Recipe | None:
    """Return the recipe that a caption describes, or None if it describes none.

    Attributes not stated are None in its events.

    >>> parse_caption("two quiet clicks").events[0].clicks
    2
    """
    text = " ".join(text.lower().split()).rstrip(".! ")
    phrases = [text]
    for pattern, backwards in _SEQUENCES:
        match = pattern.fullmatch(text)
        if match:
            phrases = list(match.groups())[:: -1 if backwards else 1]
            break
    events = [_parse_phrase(phrase) for phrase in phrases]
    known = tuple(event for event in events if event is not None)
    return Recipe(known) if len(known) == len(events) else None


def _phrase(event: Event, index: int) -> str:
    """Return the phrase for an event in phrasing `index`."""
    loud = f"{event.loudness} " if event.loudness else ""
    if event.kind == "tone":
        wave, note = event.waveform, event.note
        phrase = (
            f"a {loud}{wave} tone at {note}",
            f"a {loud}{wave} wave at {note}",
            f"a {loud}{note} {wave} tone",
            f"the note {note} as a {loud}{wave} wave",
        )[index]
    elif event.kind == "chirp":
        course = "up" if event.direction == "rising" else "down"
        phrase = (
            f"a {loud}{event.direction} chirp",
            f"a {loud}{event.direction} sweep",
            f"a {loud}{event.direction} sine tone",
            f"a {loud}chirp going {course}",
        )[index]
    elif event.kind == "clicks":
        count = event.clicks or 1
        many = "s" if count > 1 else ""
        phrase = f"{COUNT_WORDS[count - 1]} {loud}" + (f"click{many}", f"short click{many}", f"tick{many}", f"clicking sound{many}")[index]
    else:
        noise = f"{loud}{event.color} noise"
        phrase = (noise, f"a burst of {noise}", f"some {noise}", f"the sound of {noise}")[index]
    return phrase


def _sequence(phrases: list[str], index: int) -> str:
    """Join one or two phrases in phrasing `index`."""
    if len(phrases) == 1:
        return phrases[0]
    one, two = phrases
    return (f"{one}, then {two}", f"{one} followed by {two}", f"{two} after {one}", f"first {one}, then {two}")[index]


def _name(event: Event) -> str:
    """Return a short name of an event, as an answer."""
    if event.kind == "tone":
        return f"a {event.waveform} tone"
    if event.kind == "chirp":
        return f"a {event.direction} chirp"
    if event.kind == "clicks":
        return "one click" if event.clicks == 1 else f"{COUNT_WORDS[(event.clicks or 1) - 1]} clicks"
    return f"{event.color} noise"


def _about(event: Event) -> list[tuple[str, str]]:
    """Return questions about the only event of its kind."""
    if event.kind == "tone":
        return [("what is the pitch?", str(event.note)), ("what is the waveform?", str(event.waveform))]
    if event.kind == "chirp":
        return [("is it rising or falling?", str(event.direction))]
    if event.kind == "clicks":
        return [("how many clicks are there?", COUNT_WORDS[(event.clicks or 1) - 1])]
    return [("what kind of noise is it?", str(event.color))]


def _parse_phrase(phrase: str) -> Event | None:
    """Read one event, or None for an unknown word, two values of one attribute, or attributes of different kinds."""
    found: dict[str, str | int] = {}
    kinds: set[Kind] = set()
    for word in phrase.split():
        if word in _FILLERS:
            continue
        if word in _KIND_WORDS:
            kinds.add(_KIND_WORDS[word])
            continue
        attribute = _attribute(word)
        if attribute is None or found.setdefault(*attribute) != attribute[1]:
            return None
    return _event(found, kinds)


def _attribute(word: str) -> tuple[str, str | int] | None:
    """Return the attribute that a word states and its value, or None for an unknown word."""
    if word in ("click", "tick"):  # the singular states the count
        return "clicks", 1
    if word in COUNT_WORDS:
        return "clicks", COUNT_WORDS.index(word) + 1
    if word in _DIRECTION_WORDS:
        return "direction", _DIRECTION_WORDS[word]
    for name, values in (("waveform", WAVEFORMS), ("color", COLORS), ("loudness", LOUDNESSES)):
        if word in values:
            return name, word
    note = spell_note(word)
    return None if note is None else ("note", note)


_OWNERS: dict[str, Kind] = {"waveform": "tone", "note": "tone", "direction": "chirp", "clicks": "clicks", "color": "noise"}


def _event(found: dict[str, str | int], kinds: set[Kind]) -> Event | None:
    """Return the event of the one kind that all words refer to; a rising or falling sine tone is a chirp."""
    if "direction" in found and found.get("waveform", "sine") == "sine":
        found.pop("waveform", None)
        kinds = kinds - {"tone"}
    kinds = kinds | {_OWNERS[name] for name in found if name in _OWNERS}
    if len(kinds) != 1:
        return None
    return Event(kind=kinds.pop(), **found)  # type: ignore[arg-type]
