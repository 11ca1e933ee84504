"""Which frames of a clip are given if a part of it is kept: continuation and inpainting.

Shape letters: S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from soundomni.core.errors import SpecError
from soundomni.core.representation import RepresentationSpec
from soundomni.core.waveform import Audio


@dataclass(frozen=True)
class Kept:
    """The parts of a clip to keep while the rest is made: its beginning to continue it, or all but a gap to fill the
    gap.

    Args:
        clip: a clip with any rate and channel count; its time 0 is that of the clip to make.
        spans: (from, to) in seconds. The codec frames that lie entirely within them are given to the model, and come
            back as the codec reconstructs them.
    """

    clip: Audio
    spans: Sequence[tuple[float, float]]


def known_frames(
    spans: Sequence[tuple[float, float]],
    spec: RepresentationSpec,
    *,
    num_samples: int,
    num_given: int,
    num_asked: int | None = None,
    may_be_all: bool = False,
) -> np.ndarray:
    """Return bool `[T]`: the frames made only of samples within the spans.

    A frame stands for its own `downsampling_ratio` samples and, if the codec has extra frames, for those of as many
    frames before. A codec with a receptive field looks further, so that frames next to the end of a span know a little
    about what follows.

    Args:
        spans: (from, to) in seconds.
        spec: the codec's spec.
        num_samples: S of the clip to make.
        num_given: samples of the clip that the spans refer to.
        num_asked: samples that are not cut off again, for a window or headroom; None for all.
        may_be_all: whether nothing may be left to make.

    Raises:
        SpecError: a span is empty or lies outside the clip, or no whole frame or every frame is kept.
    """
    longest = min(num_samples, num_given)
    covered = np.zeros(num_samples, dtype=bool)
    for start, end in spans:
        if not 0 <= start < end or end * spec.sample_rate >= longest + 0.5:
            seconds = longest / spec.sample_rate
            raise SpecError(f"the span to keep is ({start}, {end}); expected (from, to) with 0 <= from < to <= {seconds:g} s")
        covered[round(start * spec.sample_rate) : round(end * spec.sample_rate)] = True
    frames = np.arange(spec.num_frames(num_samples))
    first = np.maximum((frames - spec.extra_frames) * spec.downsampling_ratio, 0)
    last = np.minimum((frames + 1) * spec.downsampling_ratio, num_samples)
    count = np.concatenate([[0], np.cumsum(covered)])
    known: np.ndarray = count[last] - count[first] == last - first
    if not known.any():
        enough = (spec.extra_frames + 2) * spec.downsampling_ratio / spec.sample_rate
        raise SpecError(f"the spans to keep hold no whole frame of the codec. Keep {enough:g} s or more, which always hold one")
    asked = num_samples if num_asked is None else num_asked
    covers_all = known.all() or (asked < num_samples and covered[:asked].all())
    if covers_all and not may_be_all:
        raise SpecError(f"all {asked / spec.sample_rate:g} s are kept, so nothing is left to make. Ask for a longer clip, or keep less")
    return known
