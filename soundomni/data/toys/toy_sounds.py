"""A procedural dataset of captioned sounds: nothing to download, every caption exactly true, every attribute
measurable.

It is meant for tests, for learning on a laptop, and for measuring what a small model has learned: `analysis` hears the
attributes in audio, and `toy_language` reads them in text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from soundomni.core.errors import DataError, amount, did_you_mean
from soundomni.core.interfaces import Dataset, Item
from soundomni.core.limits import LARGEST_SEED
from soundomni.data.toys.toy_language import captions, questions
from soundomni.data.toys.toy_recipe import KINDS, NOTES, Event, Recipe, all_events, is_held_out
from soundomni.data.toys.toy_synthesis import MIN_SAMPLE_RATE, MIN_SECONDS, synthesize

HeldOut = Literal["exclude", "only", "include"]
T = TypeVar("T")

MAX_SIZE, MAX_SAMPLE_RATE, MAX_SECONDS = 10_000_000, 192_000, 120.0
"""Limits of a dataset and of a clip, which takes up to 92 MB."""
MAX_DETUNE = 50.0
"""Cents from a note to half way to the next."""

_DETUNE_STREAM = 1
_KIND_SHARES = {"tone": 0.4, "chirp": 0.2, "clicks": 0.2, "noise": 0.2}  # there are by far the most different tones


class ToySounds(Dataset):
    """Tones, chirps, clicks and noise, single or two in a row, with captions, questions and the recipe as attributes.

    Item i only depends on the seed and i: a larger `size` only adds items. It carries its recipe as
    `attributes["events"]` (`Recipe.from_json(item.attributes)`) and whether it is a reserved combination as
    `attributes["held_out"]`.

    Args:
        size: number of items.
        seed: seed of everything random.
        sample_rate: sample rate in Hz.
        seconds: length of every clip.
        events: minimum and maximum number of events per clip, each 1 or 2.
        notes: notes to use, such as ["A3", "A4"]; null for all 24, C3 to B4.
        kinds: kinds (tone, chirp, clicks, noise) or sounds (sine, square, ..., rising, falling, white, low, high) to
            use; null for all.
        variation: how much of what a recipe leaves open (onset, phase, course, spacing) is random: 0 makes each recipe
            the same sound every time, except for its noise, and 1 makes everything random. Less is easier to learn.
        detune: minimum and maximum, in cents, by which each tone is off its note, up or down, below 50: the nearest
            note stays the right answer. The cents of each event (0 except for tones) are in `attributes["detune"]` unless both are
            0.
        held_out: "exclude" leaves out the reserved combinations (see `is_held_out`), "only" uses nothing else,
            "include" uses all.

    Raises:
        DataError: a name is unknown, a value is out of range, or a choice leaves no sound.
    """

    def __init__(
        self,
        *,
        size: int = 20000,
        seed: int = 0,
        sample_rate: int = 8000,
        seconds: float = 1.0,
        events: tuple[int, int] = (1, 2),
        notes: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        variation: float = 1.0,
        detune: tuple[float, float] = (0.0, 0.0),
        held_out: HeldOut = "exclude",
    ) -> None:
        if not 0.0 <= variation <= 1.0:
            raise DataError(f"toy sounds: variation is {variation}; expected 0 to 1")
        if len(detune) != 2 or not 0.0 <= detune[0] <= detune[1] < MAX_DETUNE:
            raise DataError(
                f"toy sounds: detune is {list(detune)}; expected the minimum and maximum in cents, from 0 to below {MAX_DETUNE:g}"
            )
        _check(size=size, seed=seed, sample_rate=sample_rate, seconds=seconds, events=events, held_out=held_out)
        self.size, self.seed, self.sample_rate, self.seconds = size, seed, sample_rate, seconds
        self._generated_from = repr((size, seed, sample_rate, seconds, tuple(events), notes, kinds, variation, tuple(detune), held_out))
        self.variation = variation
        self.detune = (float(detune[0]), float(detune[1]))
        self.held_out = held_out
        self._counts = range(events[0], events[1] + 1)
        chosen = _choose(notes, kinds)
        # kind → sound → events: drawing level by level gives every sound of a kind the same share
        self._sounds = {kind: _group([event for event in chosen if event.kind == kind]) for kind in KINDS}
        self._sounds = {kind: sounds for kind, sounds in self._sounds.items() if sounds}
        shares = np.array([_KIND_SHARES[kind] for kind in self._sounds])
        self._shares = np.cumsum(shares / shares.sum())
        for count in self._counts:
            if not self._any_allowed(chosen, count):
                raise DataError(
                    f"no sound of {amount(count, 'event')} is left with held_out='{held_out}' and these notes and kinds; allow more of them"
                )

    def __len__(self) -> int:
        return self.size

    @property
    def generated_from(self) -> str:
        return self._generated_from

    def recipe(self, index: int) -> Recipe:
        """Return the recipe of item `index`."""
        return self._draw(self._generator(index))

    def item(self, index: int) -> Item:
        """Return captions, questions and attributes of item `index`."""
        recipe = self.recipe(index)
        detune = {"detune": self._detune(index, recipe)} if self.detune[1] > 0.0 else {}
        return Item(
            key=f"toy-{self.seed}-{index}",
            num_samples=round(self.seconds * self.sample_rate),
            sample_rate=self.sample_rate,
            captions=captions(recipe),
            questions=questions(recipe),
            attributes={**recipe.to_json(), "held_out": is_held_out(recipe), **detune},
        )

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Synthesize item `index`: float32 `[1, S]` in [-1, 1], and the sample rate."""
        rng = self._generator(index)
        recipe = self._draw(rng)
        waveform = synthesize(
            recipe,
            sample_rate=self.sample_rate,
            seconds=self.seconds,
            rng=rng,
            variation=self.variation,
            detune=self._detune(index, recipe),
        )
        return waveform, self.sample_rate

    def _generator(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.size:
            raise IndexError(f"there is no item {index} in a dataset of {self.size}")
        return np.random.default_rng((self.seed, index))

    def _detune(self, index: int, recipe: Recipe) -> list[float]:
        """Draw for each event how many cents it is off, from a separate generator: without it, the rest of the item
        stays the same."""
        rng = np.random.default_rng((self.seed, index, _DETUNE_STREAM))
        drawn = [float(rng.uniform(*self.detune)) * _pick((-1.0, 1.0), rng) for _ in recipe.events]
        return [cents if event.kind == "tone" else 0.0 for cents, event in zip(drawn, recipe.events, strict=True)]

    def _draw(self, rng: np.random.Generator) -> Recipe:
        """Draw recipes until one is allowed; the constructor has made sure that there is one."""
        count = _pick(self._counts, rng)
        while True:
            recipe = Recipe(tuple(self._draw_event(rng) for _ in range(count)))
            if self._allowed(recipe):
                return recipe

    def _draw_event(self, rng: np.random.Generator) -> Event:
        kind = int(np.searchsorted(self._shares[:-1], rng.random(), side="right"))
        sounds = list(self._sounds.values())[kind]
        return _pick(_pick(sounds, rng), rng)

    def _allowed(self, recipe: Recipe) -> bool:
        return self.held_out == "include" or is_held_out(recipe) == (self.held_out == "only")

    def _any_allowed(self, events: Sequence[Event], count: int) -> bool:
        if count == 1:
            return any(self._allowed(Recipe((event,))) for event in events)
        return any(self._allowed(Recipe((first, second))) for first in events for second in events)


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """Return one of the options, all with the same probability."""
    return options[int(rng.integers(len(options)))]


def _group(events: Sequence[Event]) -> list[list[Event]]:
    """Group the events of one kind by sound and, for clicks, by count."""
    groups: dict[tuple[str, int | None], list[Event]] = {}
    for event in events:
        groups.setdefault((event.sound, event.clicks), []).append(event)
    return list(groups.values())


def _choose(notes: Sequence[str] | None, kinds: Sequence[str] | None) -> list[Event]:
    """Return the events with these notes and kinds or sounds. Raise DataError for an unknown or missing name."""
    sounds = {event.sound for event in all_events()}
    for what, given, known in (("note", notes, NOTES), ("kind", kinds, (*KINDS, *sorted(sounds - set(KINDS))))):
        if given is not None and (isinstance(given, str) or not given):
            raise DataError(f"toy sounds: {what}s is {given!r}; expected a list of at least one {what}")
        for name in given or ():
            if name not in known:
                raise DataError(f"toy sounds: unknown {what} {name!r}; expected one of {', '.join(known)}.{did_you_mean(str(name), known)}")
    events = all_events(notes=NOTES if notes is None else tuple(dict.fromkeys(notes)))
    return [event for event in events if kinds is None or event.kind in kinds or event.sound in kinds]


def _check(*, size: int, seed: int, sample_rate: int, seconds: float, events: Sequence[int], held_out: str) -> None:
    """Raise DataError for values out of range."""
    choices = ("exclude", "only", "include")
    if held_out not in choices:
        raise DataError(
            f"toy sounds: held_out is {held_out!r}; expected one of {', '.join(choices)}.{did_you_mean(str(held_out), choices)}"
        )
    if not 1 <= size <= MAX_SIZE or not 0 <= seed <= LARGEST_SEED:
        raise DataError(f"toy sounds: size {size} and seed {seed}; expected a size of 1 to {MAX_SIZE:,} and a seed of 0 to {LARGEST_SEED}")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        side = "low" if sample_rate < MIN_SAMPLE_RATE else "high"
        given = f"sample_rate {sample_rate} Hz is too {side}"
        raise DataError(f"toy sounds: {given}; expected at least {MIN_SAMPLE_RATE} and at most {MAX_SAMPLE_RATE}")
    if len(events) != 2 or not 1 <= events[0] <= events[1] <= max(MIN_SECONDS):
        raise DataError(f"toy sounds: events is {list(events)}; expected the minimum and maximum per clip: [1, 1], [1, 2] or [2, 2]")
    if not seconds <= MAX_SECONDS:
        raise DataError(f"toy sounds: seconds is {seconds}; expected at most {MAX_SECONDS:g}")
    if seconds < MIN_SECONDS[events[1]]:
        raise DataError(
            f"toy sounds: {seconds} s is too short for {amount(events[1], 'event')}; expected at least {MIN_SECONDS[events[1]]} s"
        )
