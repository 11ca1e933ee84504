"""Clips as a task needs them: their length, their beginning and their level, for any clip; and what is refused.

Shape letters: C audio channels, S samples.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.loudness import loudness
from soundomni.core.spec.clips import check_clips, clips_of, in_words
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.waveform import resampled_length
from soundomni.core.writing.preparing import SILENT_PEAK, find_part, known_part, prepare, prepared_length

RATES = st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000])
DRAWS = st.floats(0.0, 1.0, exclude_max=True)


@st.composite
def options(draw: st.DrawFn, *, needs_seconds: bool = False) -> ClipSpec:
    seconds = draw(st.floats(0.01, 0.5) if needs_seconds else st.none() | st.floats(0.01, 0.5))
    level = draw(st.sampled_from(["none", "peak", "loudness"]))
    return ClipSpec(
        cut=draw(st.sampled_from(["start", "onset", "random"])) if seconds is not None else "start",
        seconds=seconds,
        trim=draw(st.none() | st.floats(1.0, 80.0)) if seconds is not None else None,
        peak=draw(st.floats(0.05, 1.0)) if level == "peak" else None,
        loudness=draw(st.floats(-40.0, -6.0)) if level == "loudness" else None,
    )


@st.composite
def clips(draw: st.DrawFn) -> np.ndarray:
    """A clip `[C, S]`: one to a few thousand samples of decaying noise with silence around it, loud, quiet or silent."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sounding, before, after = draw(st.integers(1, 6000)), draw(st.integers(0, 2000)), draw(st.integers(0, 2000))
    noise = random.standard_normal((draw(st.integers(1, 2)), sounding)) * np.exp(
        -draw(st.floats(0.0, 5.0)) * np.arange(sounding) / sounding
    )
    scale = draw(st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.2])) / np.abs(noise).max()
    return np.pad(noise * scale, ((0, 0), (before, after))).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(clip=clips(), rate=RATES, spec=options(), place=DRAWS)
def test_length_channels_and_level_are_as_asked_and_the_clip_that_was_given_stays(
    clip: np.ndarray, rate: int, spec: ClipSpec, place: float
) -> None:
    check_clips(spec, "clips")
    before = clip.copy()
    found = prepare(clip, rate, spec, draw=place)
    assert found.dtype == np.float32 and found.shape == (len(clip), prepared_length(clip.shape[1], rate, spec))
    assert np.array_equal(clip, before) and np.isfinite(found).all()
    peak = np.abs(found).max()
    if np.abs(clip).max() < SILENT_PEAK:
        assert peak <= np.abs(clip).max(), "silence does not become noise"
    elif spec.peak is not None and peak >= SILENT_PEAK:
        assert peak == pytest.approx(spec.peak, rel=1e-5)
    elif spec.loudness is not None and peak >= SILENT_PEAK:
        assert peak <= 1 + 1e-6
        if 1e-3 < peak < 0.999 and np.isfinite(heard := loudness(found, rate)):
            assert heard == pytest.approx(spec.loudness, abs=0.5)


@settings(max_examples=150, deadline=None)
@given(clip=clips(), rate=RATES, spec=options(), place=DRAWS, again=DRAWS)
def test_preparing_a_prepared_clip_again_changes_nothing(clip: np.ndarray, rate: int, spec: ClipSpec, place: float, again: float) -> None:
    once = prepare(clip, rate, spec, draw=place)
    twice = prepare(once, rate, spec, draw=again)
    if spec.loudness is None:
        np.testing.assert_allclose(twice, once, rtol=2e-6, atol=0)
    else:  # a louder clip may have more blocks above the gate
        ratio = np.abs(twice).max() / max(np.abs(once).max(), 1e-30)
        assert np.abs(once).max() == 0 or abs(20 * np.log10(ratio)) < 1.0


@settings(max_examples=100, deadline=None)
@given(clip=clips(), rate=RATES, seconds=st.floats(0.01, 0.5), place=DRAWS, cut=st.sampled_from(["start", "random"]))
def test_the_part_that_is_known_beforehand_is_the_one_that_is_found(
    clip: np.ndarray, rate: int, seconds: float, place: float, cut: Any
) -> None:
    spec = ClipSpec(cut=cut, seconds=seconds)
    part = known_part(clip.shape[1], rate, spec, draw=place)
    assert part == find_part(clip, rate, spec, draw=place) and part is not None
    length = prepared_length(clip.shape[1], rate, spec)
    used = clip[:, part.first : part.end]
    kept = used.shape[1] - (length // 10 if part.is_cut and cut == "start" else 0)
    found = prepare(clip, rate, spec, draw=place)
    assert np.array_equal(found[:, :kept], used[:, :kept]) and not found[:, used.shape[1] :].any()


@settings(max_examples=200, deadline=None)
@given(frames=st.integers(1, 400), hop=st.sampled_from([64, 160, 512]), codec=RATES, rate=RATES, extra=st.floats(0.0, 1.0))
def test_clips_of_any_rate_have_the_same_number_of_frames(frames: int, hop: int, codec: int, rate: int, extra: float) -> None:
    """A length in whole frames never takes one more, whatever the rate of a file."""
    spec = ClipSpec(seconds=frames * hop / codec)
    samples = resampled_length(prepared_length(1, rate, spec), rate, codec)
    assert frames * hop - max(1, codec // rate + 1) < samples <= frames * hop


def test_the_onset_is_kept_with_five_milliseconds_before_it() -> None:
    clip = np.zeros((2, 16000), np.float32)
    clip[1, 4000:12000] = np.linspace(0.8, 0.0, 8000)
    clip[0, 3000] = 0.039  # below a twentieth of the peak
    found = prepare(clip, 16000, ClipSpec(cut="onset", seconds=0.25, peak=0.5))
    assert found.shape == (2, 4000) and not found[0].any()
    assert not found[1, :80].any() and found[1, 80] == pytest.approx(0.5)
    tail = found[1, -400:] / (clip[1, 3920:7920][-400:] / 1.6)
    np.testing.assert_allclose(tail, np.linspace(1, 0, 400), atol=1e-5)


def test_silence_is_trimmed_at_both_ends_and_a_random_cut_keeps_out_of_it() -> None:
    clip = np.zeros((1, 10000), np.float32)
    clip[0, 2000:5000], clip[0, 1990], clip[0, 5009] = 0.5, 0.004, 0.004
    found = prepare(clip, 8000, ClipSpec(seconds=0.5, trim=40.0))
    assert (found[0, :3000] == 0.5).all() and not found[0, 3000:].any()
    for place in np.linspace(0, 0.999, 7):
        assert (prepare(clip, 8000, ClipSpec(cut="random", seconds=0.25, trim=40.0), draw=place) == 0.5).all()
        longer = prepare(clip, 8000, ClipSpec(cut="random", seconds=0.5, trim=40.0), draw=place)
        assert (longer == 0.5).sum() == 3000, "a part that is longer than the sound holds all of it"


REFUSED: Mapping[str, ClipSpec] = {
    "clips.seconds is 0.001; expected at least 0.01": ClipSpec(seconds=0.001),
    "clips.seconds is nan; expected at least 0.01": ClipSpec(seconds=float("nan")),
    "clips.trim is -3; expected above 0": ClipSpec(seconds=1.0, trim=-3),
    "clips.peak is 1.5; expected above 0 and at most 1": ClipSpec(peak=1.5),
    "clips.loudness is 3; expected at least -70": ClipSpec(loudness=3),
    "clips has both peak and loudness": ClipSpec(peak=0.9, loudness=-23.0),
    "clips.cut is onset, but lengths must be known before clips are read. Set clips.seconds": ClipSpec(cut="onset"),
    "clips.cut is random, but lengths must be known": ClipSpec(cut="random"),
    "clips.trim is 40, but lengths must be known": ClipSpec(trim=40.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_out_of_range_or_at_odds_are_refused_in_one_line(message: str) -> None:
    with pytest.raises(SpecError) as error:
        check_clips(REFUSED[message], "clips")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


AGREED = {"seconds": 0.5, "peak": 0.9}


@pytest.mark.parametrize(
    ("entries", "own", "expected"),
    [
        ([None, None], None, None),
        ([AGREED, AGREED], None, ClipSpec(**AGREED)),
        ([AGREED, {"seconds": 0.4}], None, None),
        ([AGREED, None], None, None),
        ([AGREED, None], {"seconds": 0.3}, ClipSpec(seconds=0.3)),
        ([{}, None], None, None),
        ([AGREED, AGREED], {}, None),
    ],
)
def test_a_model_keeps_what_all_its_datasets_agree_on(entries: list[Any], own: Any, expected: ClipSpec | None) -> None:
    names = {"toys": entries[0], "others": entries[1]}
    pairs = [(f"data.datasets.{name}", json.dumps({"source": "toy-sounds", "clips": clips})) for name, clips in names.items()]
    spec = load_spec(["demo"], [*pairs, ("model.clips", json.dumps(own))])
    assert clips_of(spec) == expected


def test_a_line_says_what_is_done() -> None:
    spec = ClipSpec(cut="random", seconds=2.5, trim=60.0, loudness=-23.0)
    assert in_words(spec) == "from a random place, silence below -60 dB trimmed, 2.5 s long, loudness -23 LUFS"
    assert in_words(ClipSpec(cut="onset", seconds=1.0, peak=0.9)) == "from the onset, 1 s long, peak 0.9"
