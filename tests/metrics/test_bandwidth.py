"""The share of energy above a frequency: against its closed forms, and at its ends."""

import numpy as np
import pytest

from soundomni.metrics.bandwidth import energy_above


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
