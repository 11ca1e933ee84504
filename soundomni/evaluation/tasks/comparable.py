"""A clip and the model's version of it in the same form, so that their samples can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.waveform import Audio


def comparable(clip: Audio, made: Audio) -> tuple[np.ndarray, np.ndarray]:
    """Return both waveforms `[S]`, mono, at the rate of `made`, the shorter one padded: after the end of a clip there is silence."""
    from soundomni.core.waveform import convert, fit_length

    reference = convert(clip, channels=1, sample_rate=made.sample_rate)
    estimate = convert(made, channels=1, sample_rate=made.sample_rate)
    longest = max(reference.shape[1], estimate.shape[1])
    return fit_length(reference, longest)[0], fit_length(estimate, longest)[0]
