"""Log-mel spectra of clips: their shape, what they ignore, and their levels against closed forms."""

import numpy as np
import pytest

from soundomni.metrics.log_mel import BANDS, FLOOR_DB, MOST_FRAMES, RANGE_DB, LogMel


def sine(hertz: float, rate: int = 8000, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)[None].astype(np.float32)


@pytest.mark.parametrize(("rate", "seconds"), [(8000, 1.0), (16000, 0.05), (44100, 0.3), (11025, 7.7), (200, 1.0)])
def test_every_clip_has_the_same_shape(rate: int, seconds: float) -> None:
    spectra = LogMel(sample_rate=rate, seconds=seconds)
    rng = np.random.default_rng(0)
    clips = [(sine(60), 8000), (np.zeros((1, 10), np.float32), 8000), (rng.standard_normal((2, 400_000)).astype(np.float32), 44100)]
    powers = [spectra.power(*clip) for clip in clips]
    assert len({power.shape for power in powers}) == 1 and powers[0].shape[1] == BANDS
    for power in powers:
        levels, summary = spectra.levels(power), spectra.summary(power)
        assert (
            levels.dtype == np.float32 and levels.size <= MOST_FRAMES * BANDS and np.isfinite(levels).all() and np.isfinite(summary).all()
        )
        assert levels.min() >= FLOOR_DB and summary.size == spectra.summary(powers[0]).size


def test_a_sine_at_its_peak_has_a_level_of_0_db_at_its_frequency_and_halves_by_6_db() -> None:
    spectra = LogMel(sample_rate=8000, seconds=1.0)
    whole = 10 * np.log10(spectra.power(sine(1000), 8000)[25])
    assert whole.max() == pytest.approx(0.0, abs=2.5)  # a band adds the bins next to the peak
    beats = sine(1000) * (1 - 0.5 * (np.arange(8000) >= 4000))
    power = 10 * np.log10(spectra.power(beats, 8000)[:, whole.argmax()])
    assert power[40] - power[10] == pytest.approx(-6.02, abs=0.01)


def test_gain_and_channels_do_not_matter_and_only_the_beginning_counts() -> None:
    spectra = LogMel(sample_rate=8000, seconds=0.5)
    clip = np.random.default_rng(1).standard_normal((1, 4000)).astype(np.float32)
    whole = spectra.levels(spectra.power(clip, 8000))
    others = (clip / 64, np.repeat(clip, 3, axis=0), np.concatenate([clip, 3 * clip], axis=1))
    for other in others:
        np.testing.assert_allclose(spectra.levels(spectra.power(other, 8000)), whole, atol=1e-4)


def test_after_a_clip_there_is_silence_and_silence_is_at_the_floor() -> None:
    spectra = LogMel(sample_rate=8000, seconds=1.0)
    levels = spectra.levels(spectra.power(sine(500, seconds=0.2), 8000)).reshape(-1, BANDS)
    assert levels[5].max() > -3 and (levels[20:] == FLOOR_DB).all()
    silence = spectra.power(np.zeros((1, 800), np.float32), 8000)
    assert not silence.any() and (spectra.levels(silence) == FLOOR_DB).all()
    assert set(spectra.summary(silence)) == {-RANGE_DB, 0.0}  # means at the lowest level, and no deviation


def test_a_summary_does_not_depend_on_the_peak_of_a_click() -> None:
    spectra = LogMel(sample_rate=8000, seconds=1.0)
    steady = spectra.power(sine(700), 8000)
    np.testing.assert_allclose(spectra.summary(steady / 100), spectra.summary(steady), atol=1e-9)
    assert not np.allclose(spectra.levels(steady / 100), spectra.levels(steady))


@pytest.mark.parametrize(("rate", "seconds"), [(100, 1.0), (8000, 0.0), (8000, float("nan"))])
def test_a_rate_or_length_that_cannot_be_compared_is_refused(rate: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="expected above 120 Hz and above 0 s"):
        LogMel(sample_rate=rate, seconds=seconds)


@pytest.mark.parametrize("waveform", [np.zeros((1, 0)), np.zeros(8), np.full((1, 8), np.nan), np.full((1, 8), np.inf)])
def test_what_is_not_a_clip_is_refused(waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least one sample, all finite"):
        LogMel(sample_rate=8000, seconds=1.0).power(waveform, 8000)
