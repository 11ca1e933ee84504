"""The analysis hears what was synthesised, clean and disturbed, and nothing that is not there."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError
from soundomni.data.toys.analysis import SoundReport, analyze, compare
from soundomni.data.toys.pitch import pitch_track
from soundomni.data.toys.toy_recipe import NOTES, Recipe, note_frequency
from soundomni.data.toys.toy_sounds import ToySounds

ATTRIBUTES = {"events", "kinds", "order", "waveform", "pitch", "direction", "clicks", "noise", "loudness"}
COUNT = 200


def white(waveform: np.ndarray, decibels: float, seed: int) -> np.ndarray:
    """Adds white noise at a signal-to-noise ratio over the whole clip."""
    noise = np.random.default_rng(seed).standard_normal(waveform.shape)
    return waveform + noise * np.sqrt(np.mean(waveform**2) * 10 ** (-decibels / 10))


def softened(waveform: np.ndarray, seed: int) -> np.ndarray:
    """A gentle slope down to -4.4 dB at the Nyquist frequency."""
    return np.asarray(scipy.signal.lfilter([0.1, 0.8, 0.1], [1.0], waveform))


def thinned(waveform: np.ndarray, seed: int) -> np.ndarray:
    """A first-order high-pass at 80 Hz, with noise at 20 dB."""
    return white(np.asarray(scipy.signal.sosfilt(scipy.signal.butter(1, 80, "high", fs=8000, output="sos"), waveform)), 20.0, seed)


def accuracy(data: ToySounds, change: Callable[[np.ndarray, int], np.ndarray], *, offset: int = 0) -> dict[str, float]:
    """Share of right verdicts per attribute, each clip judged by the recipe of the item `offset` further on."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for index in range(len(data)):
        waveform, rate = data.load(index)
        report = analyze(change(waveform, index), rate)
        for name, right in compare(data.recipe((index + offset) % len(data)), report).items():
            verdicts[name].append(right)
    return {name: float(np.mean(values)) for name, values in verdicts.items()}


@pytest.fixture(scope="module")
def data() -> ToySounds:
    return ToySounds(size=COUNT, seed=11, held_out="include")


@pytest.mark.parametrize(
    ("change", "least"),
    [
        pytest.param(lambda waveform, _: waveform, 0.99, id="clean"),
        pytest.param(lambda waveform, seed: white(waveform, 20.0, seed), 0.95, id="noise-20dB"),
        pytest.param(lambda waveform, seed: white(waveform, 15.0, seed), 0.95, id="noise-15dB"),
        pytest.param(softened, 0.95, id="softened"),
        pytest.param(thinned, 0.95, id="high-pass-and-noise"),
    ],
)
def test_hears_every_attribute(data: ToySounds, change: Callable[[np.ndarray, int], np.ndarray], least: float) -> None:
    shares = accuracy(data, change)
    assert set(shares) == ATTRIBUTES
    assert min(shares.values()) >= least, shares


@pytest.mark.parametrize(
    ("rate", "seconds", "most"), [(6000, 4.0, 2), (16000, 0.8, 2), (44100, 2.0, 2), (8000, 0.4, 1)], ids=["6k", "16k", "44k", "short"]
)
def test_hears_at_other_rates_and_lengths(rate: int, seconds: float, most: int) -> None:
    data = ToySounds(size=60, seed=2, sample_rate=rate, seconds=seconds, events=(1, most), held_out="include")
    shares = accuracy(data, lambda waveform, seed: white(waveform, 20.0, seed))
    assert min(shares.values()) >= 0.95, shares


def test_mismatched_recipes_are_right_by_chance_only(data: ToySounds) -> None:
    shares = accuracy(data, lambda waveform, _: waveform, offset=7)
    # chance: an attribute is right only if the event is there at all, so each stays below the share of its values in the data
    chance = {"events": 0.55, "kinds": 0.2, "order": 0.15, "waveform": 0.3, "pitch": 0.08, "direction": 0.5, "clicks": 0.3, "noise": 0.35}
    for name, most in {**chance, "loudness": 0.55}.items():
        assert shares[name] < most, (name, shares)


def test_times_levels_and_sweep_are_measured() -> None:
    rate = 8000
    time = np.arange(2 * rate) / rate
    clip = np.zeros(2 * rate)
    clip[2000:6000] = 0.1 * np.sqrt(2) * np.sin(2 * np.pi * 300 * time[:4000])
    course = 200 * 2 ** (-time[:6000] / 0.75)  # one octave down in 0.75 s
    clip[9000:15000] = 0.2 * np.sin(2 * np.pi * np.cumsum(course) / rate)
    tone, chirp = analyze(clip, rate).events
    assert (tone.kind, chirp.kind) == ("tone", "chirp")
    assert (tone.onset, tone.offset, chirp.onset, chirp.offset) == pytest.approx((0.25, 0.75, 1.125, 1.875), abs=0.012)
    assert tone.level == pytest.approx(-20.0, abs=0.1)
    assert tone.pitch == pytest.approx(300, rel=0.002) and tone.centroid == pytest.approx(300, rel=0.02) and tone.harmonicity > 0.98
    assert chirp.sweep == pytest.approx(-8.0, abs=0.7)  # two thirds of twelve semitones
    assert chirp.event.direction == "falling" and chirp.pitch is None


def test_centroid_of_white_noise_is_half_the_nyquist_frequency() -> None:
    (noise,) = analyze(0.1 * np.random.default_rng(0).standard_normal((1, 8000)), 8000).events
    assert (noise.kind, noise.color) == ("noise", "white")
    assert noise.centroid == pytest.approx(2000, rel=0.05) and noise.harmonicity < 0.35


@pytest.mark.parametrize("shift", [-0.45, 0.45, -0.55, 0.55])
def test_pitch_counts_within_half_a_semitone(shift: float) -> None:
    recipe = ToySounds(size=1, kinds=["square"], notes=["E4"], events=(1, 1), held_out="include").recipe(0)
    time = np.arange(8000) / 8000
    square = 0.1 * np.sign(np.sin(2 * np.pi * note_frequency("E4") * 2 ** (shift / 12) * time))
    verdict = compare(recipe, analyze(square[None], 8000))
    assert verdict["waveform"] and verdict["kinds"]
    assert verdict["pitch"] == (abs(shift) < 0.5)


@settings(max_examples=40, deadline=None)
@given(st.floats(90, 1000), st.integers(0, 2**32 - 1), st.sampled_from([8000, 16000, 44100]))
def test_pitch_track_finds_any_fundamental(frequency: float, seed: int, rate: int) -> None:
    rng = np.random.default_rng(seed)
    time = np.arange(rate // 2) / rate
    amplitudes, phases = rng.uniform(0.2, 0.6, 3), rng.uniform(0, 2 * np.pi, 3)
    signal = np.sin(2 * np.pi * frequency * time)
    for order, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), start=2):
        signal += amplitude * np.sin(2 * np.pi * order * frequency * time + phase) * (order * frequency < rate / 2)
    found, clarity = pitch_track(signal, rate)
    assert np.median(found) == pytest.approx(frequency, rel=0.01)
    assert np.median(clarity) > 0.9


def test_pitch_track_of_silence_and_of_less_than_a_frame() -> None:
    frequency, clarity = pitch_track(np.zeros(3), 8000)
    assert frequency.tolist() == [0.0] and clarity.tolist() == [0.0]


@pytest.mark.parametrize("shape", [(1, 0), (1, 1), (1, 2), (2, 100), (3, 8000), (5,)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constants_of_any_shape_hold_no_event(shape: tuple[int, ...], value: float) -> None:
    report = analyze(np.full(shape, value), 8000)
    assert report == SoundReport((), -np.inf, shape[-1] / 8000)
    assert compare(ToySounds(size=1).recipe(0), report)["events"] is False


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.sampled_from([6000, 8000, 48000]))
def test_any_waveform_can_be_analyzed(seed: int, length: int, rate: int) -> None:
    rng = np.random.default_rng(seed)
    waveform = rng.standard_normal((rng.integers(1, 3), length)) * 10 ** rng.uniform(-4, 1)
    waveform[:, rng.random(length) < rng.random()] = 0.0
    report = analyze(waveform, rate)
    for event in report.events:
        assert 0 <= event.onset < event.offset <= report.seconds and 0 <= event.harmonicity <= 1 and np.isfinite(event.level)
        assert event.pitch is None or event.event.note is not None
    assert isinstance(report.recipe, Recipe)


def test_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(DataError, match="is 4000 Hz; expected at least 6000 Hz"):
        analyze(np.zeros((1, 100)), 4000)
    with pytest.raises(DataError, match="NaN or infinite"):
        analyze(np.array([[0.0, np.nan]]), 8000)


def test_all_notes_are_heard_in_all_waveforms_by_frequency() -> None:
    for waveform in ("sine", "sawtooth"):
        for note in NOTES:
            data = ToySounds(size=1, kinds=[waveform], notes=[note], events=(1, 1), held_out="include")
            (event,) = analyze(*data.load(0)).events
            assert event.pitch == pytest.approx(note_frequency(note), rel=0.006)  # a tenth of a semitone
