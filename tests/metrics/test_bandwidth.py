"""Bandwidth and the share of energy above a frequency: against their closed forms, and at their ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundomni.metrics.bandwidth import bandwidth, energy_above


def sine(hertz: float, rate: int = 8000, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("rate", "cutoff"), [(8000, 2000.0), (44100, 4000.0)])
def test_two_tones_have_the_share_of_their_powers(ratio: float, rate: int, cutoff: float) -> None:
    clip = sine(0.2 * cutoff, rate) + np.sqrt(ratio) * sine(1.5 * cutoff, rate)
    assert energy_above(clip, rate, cutoff) == pytest.approx(ratio / (1 + ratio), abs=2e-3)


def test_noise_is_spread_evenly_and_a_click_counts_wherever_it_is() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 40000))
    assert energy_above(noise, 8000, 3000) == pytest.approx(0.25, abs=0.01)
    for place in (0, 1, 1023, 4999):  # flat spectra, also where no window would be at its full height
        assert energy_above(np.eye(1, 5000, place), 8000, 1000) == pytest.approx(0.75, abs=2e-3)


def test_samples_at_the_ends_count_like_those_between() -> None:
    low, high = sine(300, seconds=0.2), sine(3000, seconds=0.2)
    orders = ([high, low, low, low], [low, high, low, low], [low, low, low, high])
    assert [energy_above(np.concatenate(order), 8000, 1500) for order in orders] == pytest.approx([0.25] * 3, abs=0.01)


def test_channels_count_by_their_energy() -> None:
    clip = np.stack([sine(500), 2 * sine(3000)])
    assert energy_above(clip, 8000, 2000) == pytest.approx(0.8, abs=2e-3)


def test_a_low_sound_loses_nothing() -> None:
    assert energy_above(sine(300, 44100), 44100, 4000) < 1e-6
    assert energy_above(np.zeros((1, 10)), 8000, 100) == 0.0
    assert energy_above(np.random.default_rng(0).standard_normal(500), 8000, 4000) == 0.0


def test_a_short_clip_is_measured() -> None:
    assert energy_above(np.ones(1, np.float32), 8000, 2000) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(
    ("waveform", "rate", "cutoff"),
    [(np.zeros((1, 0)), 8000, 10.0), (np.zeros((1, 2, 3)), 8000, 10.0), (np.zeros(4), 0, 10.0), (np.zeros(4), 8000, float("nan"))],
)
def test_what_has_no_spectrum_is_refused(waveform: np.ndarray, rate: int, cutoff: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        energy_above(waveform, rate, cutoff)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_the_bandwidth_reaches_the_highest_tone_that_is_loud_enough(rate: int) -> None:
    low, high = sine(300, rate), sine(0.4 * rate, rate)
    for level, wanted in ((0.3, 0.4 * rate), (0.05, 300)):  # 8 % and 0.2 % of the energy
        assert bandwidth(low + level * high, rate) == pytest.approx(wanted, abs=rate / 500)
    both = np.stack([np.zeros_like(low), low + 0.05 * high])
    assert bandwidth(both, rate) == bandwidth(low + 0.05 * high, rate) < bandwidth(both, rate, share=0.9995)


@given(share=st.floats(0.02, 1), seed=st.integers(0, 9))
def test_the_bandwidth_of_noise_is_the_share_of_all_frequencies(share: float, seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(20000)
    found = bandwidth(noise, 8000, share=share)
    assert found == pytest.approx(4000 * share, abs=150)
    assert energy_above(noise, 8000, found) <= 1 - share + 1e-9 if found > 0 else True


def test_a_bandwidth_needs_sound_and_a_share() -> None:
    assert np.isnan(bandwidth(np.zeros((1, 10)), 8000))
    assert bandwidth(np.ones(1, np.float32), 8000) == pytest.approx(0.99 * 4000, abs=10)  # a click
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected a number above 0 and at most 1"):
            bandwidth(np.ones(5), 8000, share=share)
    with pytest.raises(ValueError, match="expected"):
        bandwidth(np.zeros((1, 0)), 8000)
