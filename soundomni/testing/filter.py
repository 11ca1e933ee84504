"""Conformance of filters.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from soundomni.core.interfaces import Filter, Item
from soundomni.testing.suite import ConformanceSuite, in_threads, seeded

RATES = (8000, 44100)
SECONDS = (0.001, 0.5, 3.0)


class FilterSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Filter`.

    Attributes:
        attributes: more fields for the suite's items, for filters that read them.
    """

    kind: ClassVar[str] = "filter"
    attributes: ClassVar[dict[str, object]] = {}

    @abstractmethod
    def make(self) -> Filter:
        """Return a new filter."""

    def built(self, seed: int = 0) -> Filter:
        """Return `make()`."""
        made: Filter = seeded(self.make, seed)
        return made

    def items(self) -> list[Item]:
        """Return items of several lengths and rates, some without captions or attributes."""
        found = []
        for rate in RATES:
            for number, seconds in enumerate(SECONDS):
                key = f"{rate}/{number}.wav"
                texts = ((), ("a dog barks",), ("a dog barks", "barking"))[number]
                given = self.attributes if number else {}
                samples = max(1, round(seconds * rate))
                found.append(Item(key=key, num_samples=samples, sample_rate=rate, captions=texts, attributes=given))
        return found

    def test_describe(self) -> None:
        """`describe` returns a complete item of the same clip, or the reason to leave it out in one line."""
        made = self.built()
        for item in self.items():
            found = made.describe(item)
            if isinstance(found, str):
                self._one_line("describe", f"describe('{item.key}')", found)
                continue
            self.require(isinstance(found, Item), "describe", f"describe returned a {type(found).__name__}; expected an Item or a reason")
            same = (found.key, found.num_samples, found.sample_rate) == (item.key, item.num_samples, item.sample_rate)
            self.require(same, "describe", f"describe('{item.key}') returned an item of another clip, '{found.key}'")
            texts = isinstance(found.captions, tuple) and all(isinstance(caption, str) for caption in found.captions)
            self.require(texts, "describe", f"describe('{item.key}') gave the captions {found.captions!r}; expected a tuple of texts")

    def test_reject(self) -> None:
        """`reject` returns None or a reason in one line, for mono, stereo and silent clips of any length, and changes
        none."""
        made = self.built()
        for number, item in enumerate(self.items()):
            noise = np.random.default_rng(number).uniform(-0.5, 0.5, (1 + number % 2, item.num_samples)).astype(np.float32)
            for clip in (noise, np.zeros_like(noise)):
                before = clip.copy()
                reason = made.reject(item, clip, item.sample_rate)
                if reason is not None:
                    self.require(isinstance(reason, str), "reject", f"reject returned a {type(reason).__name__}; expected None or a reason")
                    self._one_line("reject", f"reject('{item.key}')", reason)
                self.require(np.array_equal(clip, before), "reject", "reject changed the clip in place; expected no change")

    def test_stable(self) -> None:
        """Answers only depend on the arguments: another instance, as on another rank, gives the same answers."""
        first, second = self.built(1), self.built(2)
        items = self.items()
        for item, other in zip(items, reversed(items), strict=True):
            first.describe(other)  # earlier questions must not matter
            self.require(first.describe(item) == second.describe(item), "stable", f"describe('{item.key}') differs in another instance")
            clip = np.random.default_rng(0).uniform(-0.5, 0.5, (1, item.num_samples)).astype(np.float32)
            found = [one.reject(item, clip, item.sample_rate) for one in (first, second)]
            self.require(found[0] == found[1], "stable", f"reject('{item.key}') differs in another instance: {found}")

    def test_threads(self) -> None:
        """Several threads may use one filter."""
        made, items = self.built(), [made for made in map(self.built().describe, self.items()) if isinstance(made, Item)]
        clips = [np.random.default_rng(0).uniform(-0.5, 0.5, (1, item.num_samples)).astype(np.float32) for item in items]

        def reasons() -> list[str | None]:
            return [made.reject(item, clip, item.sample_rate) for item, clip in zip(items, clips, strict=True)]

        expected = reasons()
        found, failed = in_threads(reasons)
        good = not failed and all(one == expected for one in found)
        self.require(good, "threads", f"four threads got other answers than one{f': {failed[0]}' if failed else ''}")

    def _one_line(self, clause: str, given: str, reason: str) -> None:
        good = bool(reason.strip()) and len(reason.splitlines()) == 1
        self.require(good, clause, f"{given} returned the reason {reason!r}; expected one line")
