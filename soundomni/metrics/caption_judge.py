"""A judge of clips that knows only training clips and their captions: which training clip is nearest, which caption a
classifier gives, and whether a clip is new.

Each different caption is a class. The same judge also hears held-out recordings: what it says about them shows
how much its verdicts on generated clips can mean.

Shape letters: C channels, S samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from soundomni.core.waveform import match_channels, resample
from soundomni.metrics.bandwidth import bandwidth
from soundomni.metrics.log_mel import LogMel
from soundomni.metrics.nearest import nearest_rows
from soundomni.metrics.softmax_classifier import SoftmaxClassifier

COPY_BELOW = 0.3
"""Novelty below which a clip counts as a copy of its nearest training clip."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge found in a clip.

    Args:
        nearest: place of the nearest training clip.
        classified: caption that the classifier gives; None if captions are not judged.
        novelty: distance from the nearest training clip, in units of `CaptionJudge.spread`; None without a unit.
        bandwidth: frequency in Hz below which 99 % of the energy lies, at the rate of the judge; None for silence.
    """

    nearest: int
    classified: str | None
    novelty: float | None
    bandwidth: float | None

    @property
    def is_copy(self) -> bool:
        """Whether the clip is much nearer to a training clip than training clips are to each other."""
        return self.novelty is not None and self.novelty < COPY_BELOW


def why_no_classes(captions: Sequence[str]) -> str | None:
    """Return why captions of training clips cannot serve as classes; None if they can.

    >>> why_no_classes(["a kick", "a snare"])
    'every caption of the reference is unique'
    """
    counts = Counter(captions)
    if "" in counts:
        return "not every clip of the reference has a caption"
    if len(counts) < 2:
        return "all clips of the reference have the same caption"
    return "every caption of the reference is unique" if max(counts.values()) < 2 else None


class CaptionJudge:
    """A judge of clips, trained on the given clips only.

    Args:
        clips: caption of each clip, or an empty text; waveform, float `[C, S]`; and rate in Hz. They are read one by
            one and not kept. See `why_no_classes` for captions that are not judged.
        sample_rate: rate in Hz at which clips are compared.
        seconds: length that is compared, from the beginning.

    Raises:
        ValueError: there are no clips, or one is empty or not finite.
    """

    def __init__(self, clips: Iterable[tuple[str, np.ndarray, int]], *, sample_rate: int, seconds: float) -> None:
        self.spectra = LogMel(sample_rate=sample_rate, seconds=seconds)
        rows = [(caption, *self._features(waveform, rate)) for caption, waveform, rate in clips]
        if not rows:
            raise ValueError("there are no clips; expected at least one")
        self.captions, levels, summaries = zip(*rows, strict=True)
        self._levels = np.stack(levels)
        self.obstacle = why_no_classes(self.captions)
        self._classifier = None if self.obstacle else SoftmaxClassifier(np.stack(summaries), self.captions)
        self.spread = _spread(self._levels, [""] * len(rows) if self.obstacle else self.captions)

    @property
    def classes(self) -> tuple[str, ...]:
        """The different captions, sorted; empty if captions are not judged."""
        return () if self._classifier is None else self._classifier.classes

    def judge(self, clips: Iterable[tuple[np.ndarray, int]]) -> list[Verdict]:
        """Judge clips: waveforms, float `[C, S]`, and their rates in Hz; they are read one by one and not kept.

        Raises:
            ValueError: a clip is empty or not finite.
        """
        heard = [(*self._features(waveform, rate), self._bandwidth(waveform, rate)) for waveform, rate in clips]
        if not heard:
            return []
        levels, summaries, widths = zip(*heard, strict=True)
        places, distances = nearest_rows(np.stack(levels), self._levels)
        classes = [None] * len(heard) if self._classifier is None else self._classifier.classify(np.stack(summaries))
        novelties = [None if self.spread is None else float(distance) / self.spread for distance in distances]
        found = zip(places, classes, novelties, widths, strict=True)
        return [Verdict(nearest=int(place), classified=name, novelty=new, bandwidth=width) for place, name, new, width in found]

    def _features(self, waveform: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Return levels and summary of a clip."""
        power = self.spectra.power(waveform, rate)
        return self.spectra.levels(power), self.spectra.summary(power)

    def _bandwidth(self, waveform: np.ndarray, rate: int) -> float | None:
        """Return the bandwidth of a clip, in mono at the rate of the judge: generated and real clips have one limit."""
        mono = resample(match_channels(waveform.astype(np.float32), 1), rate, self.spectra.sample_rate)
        return bandwidth(mono, self.spectra.sample_rate) if mono.any() else None


def _spread(levels: np.ndarray, captions: Sequence[str]) -> float | None:
    """Return the median distance in dB of a clip to its nearest other clip with the same caption.

    Equal clips do not count; None if no two clips with the same caption differ.
    """
    found: list[np.ndarray] = []
    for caption, count in Counter(captions).items():
        if count > 1:
            rows = levels[[place for place, other in enumerate(captions) if other == caption]]
            found.append(nearest_rows(rows, rows, skip_own=True)[1])
    distances = np.concatenate(found) if found else np.empty(0)
    distances = distances[distances > 0.0]
    return float(np.median(distances)) if distances.size else None
