"""What each augmentation does to a clip, in closed form, and which values it refuses."""

import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.data.augmentations.phase_vocoder import stretched

RATE = 8000
SEEDS = st.integers(0, 2**32)


def make(name, **arguments):
    return build("augmentation", Slot(name, arguments))


def draws(seed=0):
    return np.random.default_rng(seed)


def noise(channels=2, samples=500, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (channels, samples)).astype(np.float32)


def tone(hertz, seconds=1.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate, dtype=np.float32)[None]


def pitch_of(clip, rate=RATE):
    """Returns the frequency of the largest bin of a tone, in Hz."""
    middle = clip[0, len(clip[0]) // 8 : -len(clip[0]) // 8]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 16))
    return float(np.argmax(spectrum)) * rate / (1 << 16)


def test_a_phase_flip_is_the_exact_negative():
    clip = noise()
    assert make("phase-flip", probability=1.0).change(clip, RATE, draws()).tobytes() == (-clip).tobytes()
    assert make("phase-flip", probability=0.0).change(clip, RATE, draws()).tobytes() == clip.tobytes()


@given(seed=SEEDS, low=st.floats(-60, 0), width=st.floats(0, 30))
def test_a_gain_is_one_of_the_range_in_decibels(seed, low, width):
    clip, bounds = 0.01 * noise(), (low, min(low + width, 0.0))
    changed = make("gain", decibels=list(bounds)).change(clip, RATE, draws(seed))
    ratio = changed.astype(np.float64) / clip
    assert np.ptp(20 * np.log10(ratio)) < 1e-5
    assert bounds[0] - 1e-5 <= 20 * math.log10(np.median(ratio)) <= bounds[1] + 1e-5


def test_a_fixed_gain_is_its_factor():
    clip = 0.01 * noise()
    np.testing.assert_array_equal(make("gain", decibels=[6.0, 6.0]).change(clip, RATE, draws()), clip * np.float32(10 ** (6 / 20)))


@pytest.mark.parametrize(("peak", "reached"), [(0.9, 1.0), (0.1, 0.1 * 10 ** (12 / 20)), (1.5, 1.5), (0.0, 0.0)])
def test_a_gain_never_takes_a_clip_beyond_full_scale(peak, reached):
    clip = np.full((1, 10), -peak, np.float32)
    found = np.abs(make("gain", decibels=[12.0, 12.0]).change(clip, RATE, draws())).max()
    assert found == pytest.approx(reached, rel=1e-6)


def test_channels_are_exchanged_or_mixed():
    clip = noise()
    np.testing.assert_array_equal(make("channel-swap", probability=1.0).change(clip, RATE, draws()), clip[[1, 0]])
    for other in (noise(1), noise(6)):
        np.testing.assert_array_equal(make("channel-swap", probability=1.0).change(other, RATE, draws()), other)
    mixed = make("mono", probability=1.0).change(clip, RATE, draws())
    np.testing.assert_allclose(mixed, np.repeat(clip.mean(0, keepdims=True), 2, 0), atol=1e-7)
    np.testing.assert_array_equal(make("mono", probability=1.0).change(noise(1), RATE, draws()), noise(1))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in ("phase-flip", "channel-swap", "mono", "gain", "speed", "pitch")),
        ("resample", {"rates": [1000, 2000]}),
    ],
)
def test_a_share_of_the_clips_is_changed(name, arguments):
    one, clip = make(name, probability=0.3, **arguments), noise(samples=200)
    changed = sum(one.change(clip, RATE, draws(seed)).tobytes() != clip.tobytes() for seed in range(400))
    assert 0.22 < changed / 400 < 0.38  # 3.5 standard deviations


@given(seed=SEEDS, samples=st.integers(1, 3000))
@settings(deadline=None)
def test_speed_gives_the_length_that_its_tempo_announces(seed, samples):
    one = make("speed", factors=[0.5, 2.0])
    tempo = one.tempo(draws(seed))
    assert 0.5 <= tempo <= 2.0
    assert one.change(noise(1, samples), RATE, draws(seed)).shape == (1, max(1, round(samples / tempo)))


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_moves_pitch_and_length_as_torchaudio_does(factor):
    clip = tone(440)
    changed = make("speed", factors=[factor, factor]).change(clip, RATE, draws())
    theirs, _ = torchaudio.functional.speed(torch.from_numpy(clip), RATE, factor)
    assert changed.shape == theirs.shape and pitch_of(changed) == pytest.approx(440 * factor, abs=0.5)
    np.testing.assert_allclose(changed[:, 100:-100], theirs.numpy()[:, 100:-100], atol=5e-3)  # the filters differ


@pytest.mark.parametrize("semitones", [-12.0, -3.5, 7.0])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_pitch_moves_a_tone_and_keeps_its_length(semitones, rate):
    clip = tone(440, rate=rate)
    changed = make("pitch", semitones=[semitones, semitones]).change(clip, rate, draws())
    assert changed.shape == clip.shape and changed.dtype == np.float32
    assert pitch_of(changed, rate) == pytest.approx(440 * 2 ** (semitones / 12), rel=3e-3)
    assert np.sqrt(np.mean(changed[:, 1000:-1000] ** 2)) == pytest.approx(np.sqrt(np.mean(clip**2)), rel=0.01)


def test_pitch_keeps_what_channels_have_in_common():
    left = tone(440)
    clip = np.concatenate([left, -0.5 * left])
    changed = make("pitch", semitones=[4.0, 4.0]).change(clip, RATE, draws())
    np.testing.assert_allclose(changed[1], -0.5 * changed[0], atol=1e-6)


def test_a_vocoder_that_changes_nothing_is_exact():
    clip = noise(samples=5000)
    np.testing.assert_allclose(stretched(clip, 1.0, RATE), clip, atol=1e-6)
    assert stretched(clip, 2.5, RATE).shape == (2, 12500) and not stretched(0 * clip, 2.5, RATE).any()


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    one = make("resample", rates=[2000, 2000], probability=1.0)
    assert np.abs(one.change(tone(1500), RATE, draws())[:, 200:-200]).max() < 1e-3
    low = tone(300)
    np.testing.assert_allclose(one.change(low, RATE, draws())[:, 200:-200], low[:, 200:-200], atol=1e-3)
    np.testing.assert_array_equal(one.change(low, 2000, draws()), low)


@given(seed=SEEDS, tokens=st.integers(1, 400), dims=st.integers(1, 200), longest=st.floats(0, 1), widest=st.floats(0, 1))
def test_spec_augment_hides_whole_stripes_within_their_limits(seed, tokens, dims, longest, widest):
    masked = make("spec-augment", time_masks=1, longest=longest, feature_masks=1, widest=widest).mask(tokens, dims, draws(seed))
    assert masked.shape == (tokens, dims) and masked.dtype == np.bool_
    for axis, largest in ((1, longest), (0, widest)):
        whole = masked.all(axis=axis)
        if masked.all():
            continue
        places = np.flatnonzero(whole)
        assert len(places) <= largest * len(whole)
        assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
    rows, columns = masked.all(axis=1), masked.all(axis=0)
    assert masked.all() or np.array_equal(masked, rows[:, None] | columns)


def test_spec_augment_covers_the_expected_share():
    one = make("spec-augment", time_masks=1, longest=0.2, feature_masks=0)
    shares = [one.mask(100, 4, draws(seed)).mean() for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.005)  # widths 0 to 20, evenly
    assert one.mask(100, 4, draws()).shape == (100, 4) and make("spec-augment", probability=0.0).mask(100, 4, draws()) is None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("phase-flip", {"probability": 1.5}, "phase-flip: probability is 1.5; expected a number from 0 to 1"),
        ("mono", {"probability": -0.1}, "mono: probability is -0.1; expected a number from 0 to 1"),
        ("channel-swap", {"probability": math.nan}, "channel-swap: probability is nan; expected a number from 0 to 1"),
        ("gain", {"decibels": [3, -3]}, r"gain: decibels is \[3, -3\]; expected two numbers from -60 to 60, the smaller one first"),
        ("gain", {"decibels": 3}, "gain.*decibels"),
        ("gain", {"decibel": [0, 1]}, "augmentation 'gain' has no argument 'decibel'. Did you mean 'decibels'?"),
        ("speed", {"factors": [0, 1]}, r"speed: factors is \[0, 1\]; expected two numbers from 0.25 to 4"),
        ("pitch", {"semitones": [0, math.inf]}, r"pitch: semitones is \[0, inf\]; expected two numbers from -24 to 24"),
        ("resample", {"rates": [10, 8000]}, r"resample: rates is \[10, 8000\]; expected two numbers from 1000 to 1e\+06"),
        ("spec-augment", {"longest": 2.0}, "spec-augment: longest is 2; expected a share from 0 to 1"),
        ("spec-augment", {"time_masks": -1}, "spec-augment: time_masks is -1; expected 0 to 100"),
    ],
)
def test_bad_values_are_one_line(name, arguments, message):
    with pytest.raises(SpecError, match=message) as caught:
        make(name, **arguments)
    assert "\n" not in str(caught.value)
