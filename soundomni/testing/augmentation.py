"""Conformance of augmentations.

Shape letters: C audio channels, S samples, T tokens, F feature dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from soundomni.core.interfaces import FASTEST, SLOWEST, TEMPO_ROUNDING, Augmentation
from soundomni.testing.suite import ConformanceSuite, in_threads, seeded

SEEDS = range(12)
SIZES = ((1, 1, 8000), (1, 2, 8000), (2, 777, 16000), (2, 12000, 44100), (6, 100, 8000))
"""(channels, samples, rate) of the suite's clips."""


class AugmentationSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Augmentation`."""

    kind: ClassVar[str] = "augmentation"

    @abstractmethod
    def make(self) -> Augmentation:
        """Return a new augmentation."""

    def built(self, seed: int = 0) -> Augmentation:
        """Return `make()`."""
        made: Augmentation = seeded(self.make, seed)
        return made

    def clips(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield clips `[C, S]` of several lengths, rates and numbers of channels, and their rates."""
        for number, (channels, samples, rate) in enumerate(SIZES):
            yield np.random.default_rng(number).uniform(-0.9, 0.9, (channels, samples)).astype(np.float32), rate

    def test_tempo(self) -> None:
        """`tempo` is a finite number from 0.1 to 10."""
        made = self.built()
        for seed in SEEDS:
            tempo = made.tempo(_draws(seed))
            good = isinstance(tempo, float | int) and SLOWEST <= tempo <= FASTEST
            self.require(good, "tempo", f"tempo is {tempo!r}; expected {SLOWEST:g} to {FASTEST:g}")

    def test_change(self) -> None:
        """A changed clip is float32 and finite, with as many channels as before and S / tempo samples up to rounding. A
        clip may have a single sample."""
        made = self.built()
        for waveform, rate in self.clips():
            for seed in SEEDS:
                expected = max(1, round(waveform.shape[1] / made.tempo(_draws(seed))))
                found = made.change(waveform.copy(), rate, _draws(seed))
                good = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.ndim == 2 and len(found) == len(waveform)
                given = f"{getattr(found, 'dtype', type(found).__name__)} {list(getattr(found, 'shape', ()))}"
                message = f"change of {list(waveform.shape)} gave {given}; expected float32 {[len(waveform), expected]}"
                self.require(good and abs(found.shape[1] - expected) <= TEMPO_ROUNDING, "change", message)
                self.require(bool(np.isfinite(found).all()), "change", "change gave samples that are not finite")

    def test_silence(self) -> None:
        """Silence stays finite."""
        made = self.built()
        for seed in SEEDS:
            found = made.change(np.zeros((2, 4000), np.float32), 8000, _draws(seed))
            self.require(bool(np.isfinite(found).all()), "silence", "change of silence gave samples that are not finite")

    def test_in_place(self) -> None:
        """`change` does not change the clip that it is given."""
        made = self.built()
        for waveform, rate in self.clips():
            before = waveform.copy()
            for seed in SEEDS:
                made.change(waveform, rate, _draws(seed))
                self.require(np.array_equal(waveform, before), "in_place", "change changed its clip in place; expected a new array")

    def test_draws(self) -> None:
        """Results only depend on the arguments: the same draws give the same bytes, in another instance and after other
        clips."""
        first, second = self.built(1), self.built(2)
        for waveform, rate in self.clips():
            for seed in SEEDS:
                first.change(waveform, rate, _draws(seed + 1000))
                found = [one.change(waveform, rate, _draws(seed)).tobytes() for one in (first, second)]
                self.require(found[0] == found[1], "draws", "the same draws gave different clips in two instances; draw only from `draws`")
                tempos = [one.tempo(_draws(seed)) for one in (first, second)]
                self.require(tempos[0] == tempos[1], "draws", f"the same draws gave the tempos {tempos}; draw only from `draws`")
                masks = [None if (mask := one.mask(50, 16, _draws(seed))) is None else mask.tolist() for one in (first, second)]
                self.require(masks[0] == masks[1], "draws", "the same draws gave two masks; draw only from `draws`")

    def test_threads(self) -> None:
        """Several threads may use one augmentation."""
        made, clips = self.built(), list(self.clips())

        def changed() -> list[bytes]:
            return [made.change(waveform, rate, _draws(7)).tobytes() for waveform, rate in clips]

        expected = changed()
        found, failed = in_threads(changed)
        good = not failed and all(one == expected for one in found)
        self.require(good, "threads", f"four threads got different clips than one{f': {failed[0]}' if failed else ''}")

    def test_mask(self) -> None:
        """A mask is None or bool `[T, F]`, even for a single token."""
        made = self.built()
        for num_tokens, feature_dim in ((1, 1), (1, 80), (60, 7), (300, 128)):
            for seed in SEEDS:
                found = made.mask(num_tokens, feature_dim, _draws(seed))
                good = found is None or (found.dtype == np.bool_ and found.shape == (num_tokens, feature_dim))
                given = f"{getattr(found, 'dtype', type(found).__name__)} {getattr(found, 'shape', '')}"
                self.require(good, "mask", f"mask({num_tokens}, {feature_dim}) gave {given}; expected None or bool of this shape")


def _draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
