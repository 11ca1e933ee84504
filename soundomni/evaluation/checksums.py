"""Checksums of clips and their metadata: numbers only compare if they were measured on the same clips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Item

AUDIO_STEP = 2.0**-10
"""Samples are first rounded to multiples of this, far more than the differences between versions of libraries."""


def items_sha256(items: Iterable[Item]) -> str:
    """Return the SHA-256 of the metadata of all items: key, length, rate, captions, questions and attributes."""
    total = hashlib.sha256()
    for item in items:
        known = [item.key, item.num_samples, item.sample_rate, item.captions, item.questions, dict(item.attributes)]
        total.update(json.dumps(known, sort_keys=True, default=str).encode())
    return total.hexdigest()


def audio_sha256(clips: Iterable[tuple[np.ndarray, int]]) -> str:
    """Return the SHA-256 of clips, each a waveform `[C, S]`, rounded to AUDIO_STEP, and its rate in Hz."""
    import numpy as np

    total = hashlib.sha256()
    for waveform, rate in clips:
        total.update(f"{waveform.shape} {rate}".encode())
        total.update(np.round(waveform / AUDIO_STEP).astype("<i4").tobytes())
    return total.hexdigest()
