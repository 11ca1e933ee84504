"""How often an epoch draws each clip, so that rare captions come up about as often as the median one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

Captions = tuple[str, ...]
"""The captions of a clip; clips with the same ones are of one kind."""


def repeats(captions: Sequence[Captions], *, most: int) -> np.ndarray:
    """Return how often each clip is drawn in an epoch, integers `[N]`: the median number of clips of a kind, divided by
    the number of clips of its own kind.

    A clip is drawn at least once and at most `most` times. Clips without a caption are drawn once.

    >>> repeats([("kick",)] * 6 + [("snare",)] * 4 + [("rimshot",)], most=10).tolist()
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4]
    """
    counts = Counter(one for one in captions if one)
    middle = float(np.median(list(counts.values()))) if counts else 1.0
    times = {one: min(most, max(1, round(middle / count))) for one, count in counts.items()}
    return np.asarray([times.get(one, 1) for one in captions], dtype=np.int64)
