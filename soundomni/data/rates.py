"""Sample rates of a dataset's files, and how much of their sound a codec of another rate keeps: reported once, before
the first step.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from soundomni.core.errors import UnreadableAudioError
from soundomni.data.mixture import Mixture
from soundomni.data.usage import looked_at
from soundomni.metrics.bandwidth import energy_above

MEASURED_CLIPS, LONGEST_SECONDS = 20, 60.0
"""Number of clips of a dataset that are decoded to measure the loss, and the length of the longest such clip."""
_RATES = 4  # rates that are named


def describe_rates(mixture: Mixture, name: str, *, codec_rate: int) -> str:
    """Return in one line the sample rates of a dataset's files, and how much of their energy a codec of `codec_rate` Hz
    can keep.

    The energy is measured on at most MEASURED_CLIPS clips, which the seed of the mixture picks, and only if a file has
    a higher rate.
    """
    dataset = mixture.sources[name].dataset
    if dataset.encoding is not None:
        return f"data '{name}': clips are encoded by {dataset.encoding.codec}, which works at {dataset.encoding.spec.sample_rate} Hz"
    indices = looked_at(mixture, name)
    items = {index: dataset.item(index) for index in indices.tolist()}
    rates = Counter(item.sample_rate for item in items.values()).most_common()
    told = ", ".join(f"{rate} Hz ({count:,})" for rate, count in rates[:_RATES]) + (", and others" if len(rates) > _RATES else "")
    line = f"data '{name}': files are at {told}; the codec works at {codec_rate} Hz and keeps 0-{codec_rate // 2} Hz"
    if all(rate <= codec_rate for rate, _ in rates):
        return f"{line}, which covers their full bandwidth"
    short = [index for index, item in items.items() if item.num_samples <= LONGEST_SECONDS * item.sample_rate]
    picked = np.random.default_rng(mixture.seed).permutation(len(short))[:MEASURED_CLIPS]
    kept = [share for place in picked if (share := _kept(mixture, name, short[place], codec_rate)) is not None]
    if not kept:
        return f"{line}; the share of their energy was not measured, because no clip of at most {LONGEST_SECONDS:g} s could be read"
    poor = sum(share < 0.5 for share in kept)
    line += f", {np.mean(kept):.0%} of their energy on average over {len(kept)} clip{'s' if len(kept) > 1 else ''}"
    if poor:
        line += f"; {poor} of these lose{'s' if poor == 1 else ''} more than half; set a higher sample_rate in model.codec if that matters"
    return line


def _kept(mixture: Mixture, name: str, index: int, codec_rate: int) -> float | None:
    """Return the share of a clip's energy at frequencies that the codec can represent; None if it cannot be read."""
    try:
        waveform, rate = mixture.sources[name].dataset.load(index)
    except UnreadableAudioError:
        return None  # the loader names and counts it when its turn comes
    return 1.0 - energy_above(waveform, rate, codec_rate / 2)
