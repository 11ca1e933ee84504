"""Loudness against the closed form for tones, and against the filters of BS.1770 run sample by sample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from soundomni.core.loudness import loudness

SHELF = ([1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585])
HIGH_PASS = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])
"""The two filters as the standard prints them for 48 kHz."""


def by_the_standard(waveform: np.ndarray) -> float:
    """Loudness of `[C, S]` at 48 kHz, block by block."""
    weighted = lfilter(*HIGH_PASS, lfilter(*SHELF, waveform.astype(np.float64)))
    power = np.array([(weighted[:, i : i + 19200] ** 2).mean(axis=1).sum() for i in range(0, waveform.shape[1] - 19200 + 1, 4800)])

    def level(of: np.ndarray) -> np.ndarray:
        return -0.691 + 10 * np.log10(of)

    loud = power[level(power) > -70]
    return float(level(loud[level(loud) > level(loud.mean()) - 10].mean()))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), channels=st.integers(1, 2), seconds=st.floats(0.4, 3.0), quiet=st.floats(-60.0, 0.0))
def test_noise_that_gets_quiet_is_as_loud_as_by_the_standard(seed: int, channels: int, seconds: float, quiet: float) -> None:
    noise = 0.1 * np.random.default_rng(seed).standard_normal((channels, int(seconds * 48000))).astype(np.float32)
    noise[:, noise.shape[1] // 2 :] *= np.float32(10 ** (quiet / 20))
    assert loudness(noise, 48000) == pytest.approx(by_the_standard(noise), abs=1e-4)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize(("amplitude", "channels", "expected"), [(1.0, 1, -3.01), (0.1, 1, -23.01), (0.1, 2, -20.0)])
def test_a_tone_of_997_hertz_has_the_loudness_that_the_standard_says(rate: int, amplitude: float, channels: int, expected: float) -> None:
    tone = amplitude * np.sin(2 * np.pi * 997 * np.arange(2 * rate) / rate)
    assert loudness(np.tile(tone, (channels, 1)).astype(np.float32), rate) == pytest.approx(expected, abs=0.1)


def test_silence_has_no_loudness_and_a_short_clip_has() -> None:
    assert loudness(np.zeros((2, 48000), np.float32), 48000) == -np.inf
    short = np.sin(2 * np.pi * 997 * np.arange(4800) / 48000)[None].astype(np.float32)
    assert loudness(short, 48000) == pytest.approx(-3.01, abs=0.2)
