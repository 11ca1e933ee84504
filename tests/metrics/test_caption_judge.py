"""The judge of captions on tones and noise: right and swapped captions, copies, silence, and that it only knows training clips."""

from collections.abc import Iterator

import numpy as np
import pytest

from soundomni.core.waveform import Audio, convert
from soundomni.metrics.caption_judge import COPY_BELOW, CaptionJudge, why_no_classes

RATE = 8000
Clip = tuple[np.ndarray, int]


def tone(seed: int, rate: int = RATE, seconds: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng([seed, 0])
    time = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * rng.uniform(300, 600) * time) * np.exp(-rng.uniform(1, 4) * time))[None].astype(np.float32)


def noise(seed: int, seconds: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    time = np.arange(round(RATE * seconds)) / RATE
    return (0.2 * rng.standard_normal(len(time)) * np.exp(-rng.uniform(1, 4) * time))[None].astype(np.float32)


def judge_of(count: int = 8) -> CaptionJudge:
    clips = [(caption, make(seed), RATE) for seed in range(count) for caption, make in (("tone", tone), ("noise", noise))]
    return CaptionJudge(iter(clips), sample_rate=RATE, seconds=0.5)


def held_out() -> list[tuple[str, np.ndarray]]:
    return [(caption, make(seed)) for seed in range(100, 106) for caption, make in (("tone", tone), ("noise", noise))]


@pytest.mark.parametrize("rate", [8000, 16000])
def test_tones_and_noise_are_told_apart_at_any_rate_and_swapped_captions_are_all_wrong(rate: int) -> None:
    clips = [(caption, make(seed), RATE) for seed in range(8) for caption, make in (("tone", tone), ("noise", noise))]
    judge = CaptionJudge(clips, sample_rate=rate, seconds=0.5)
    asked = held_out()
    found = judge.judge((waveform, RATE) for _, waveform in asked)
    for swapped, share in ((False, 1.0), (True, 0.0)):
        wanted = [caption if not swapped else {"tone": "noise", "noise": "tone"}[caption] for caption, _ in asked]
        assert np.mean([judge.captions[one.nearest] == name for one, name in zip(found, wanted, strict=True)]) == share
        assert np.mean([one.classified == name for one, name in zip(found, wanted, strict=True)]) == share
    assert judge.classes == ("noise", "tone") and judge.obstacle is None


def test_a_copy_has_the_novelty_0_and_so_has_a_quieter_one_and_a_new_clip_has_about_1() -> None:
    judge = judge_of(30)
    copy, quiet, stereo = judge.judge([(tone(3), RATE), (noise(3) / 8, RATE), (np.repeat(tone(5), 2, axis=0), RATE)])
    assert (copy.novelty, copy.nearest, copy.is_copy) == (0.0, 6, True)
    assert quiet.novelty == pytest.approx(0.0, abs=1e-4) and quiet.nearest == 7 and stereo.nearest == 10 and stereo.is_copy
    fresh = judge.judge([(waveform, RATE) for _, waveform in held_out()])
    assert 0.7 < np.median([one.novelty for one in fresh]) < 1.4 and not any(one.is_copy for one in fresh)


def test_the_unit_of_novelty_is_the_median_distance_to_the_nearest_other_clip_of_the_same_caption() -> None:
    judge = judge_of(5)
    levels = {
        name: [judge.spectra.levels(judge.spectra.power(make(seed), RATE)) for seed in range(5)]
        for name, make in (("tone", tone), ("noise", noise))
    }
    nearest = [
        min(np.sqrt(np.mean((one.astype(np.float64) - other) ** 2)) for j, other in enumerate(rows) if j != i)
        for rows in levels.values()
        for i, one in enumerate(rows)
    ]
    assert judge.spread == pytest.approx(float(np.median(nearest)), rel=1e-9)
    new = judge.judge([(noise(77), RATE)])[0]
    own = judge.spectra.levels(judge.spectra.power(noise(77), RATE)).astype(np.float64)
    distance = min(np.sqrt(np.mean((own - other) ** 2)) for other in levels["noise"])
    assert new.novelty == pytest.approx(distance / judge.spread, rel=1e-9) and new.novelty > COPY_BELOW


def test_the_bandwidth_is_that_of_band_limited_noise() -> None:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(RATE))
    spectrum[2001:] = 0.0  # at one bin per hertz
    clip = np.fft.irfft(spectrum)[None].astype(np.float32)
    assert judge_of().judge([(clip, RATE)])[0].bandwidth == pytest.approx(0.99 * 2000, abs=RATE / 500)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_bandwidth_is_that_at_the_rate_of_the_judge_in_mono_whatever_the_file_has(rate: int, channels: int) -> None:
    clip = np.random.default_rng(0).standard_normal((channels, rate)).astype(np.float32) / 8
    found = judge_of().judge([(clip, rate), (convert(Audio(clip, rate), channels=1, sample_rate=RATE), RATE)])
    assert found[0].bandwidth == found[1].bandwidth == pytest.approx(0.99 * min(rate, RATE) / 2, rel=0.1)


def test_silence_is_judged_and_may_be_a_class() -> None:
    silent = np.zeros((1, 100), np.float32)
    found = judge_of().judge([(silent, RATE)])[0]
    assert found.bandwidth is None and found.novelty is not None and found.novelty > 1 and found.classified in ("tone", "noise")
    clips = [("tone", tone(0), RATE), ("tone", tone(1), RATE), ("silence", silent, RATE), ("silence", silent, RATE)]
    judge = CaptionJudge(clips, sample_rate=RATE, seconds=0.5)
    assert judge.judge([(silent, 44100)])[0].classified == "silence" and judge.spread is not None
    only = CaptionJudge([("silence", silent, RATE)] * 3, sample_rate=RATE, seconds=0.5)
    assert only.spread is None and only.judge([(tone(0), RATE)])[0].novelty is None  # equal clips give no unit


def test_the_same_clips_give_the_same_verdicts_and_only_training_clips_decide() -> None:
    asked = [(waveform, RATE) for _, waveform in held_out()]
    first, other = judge_of(), judge_of()
    found = first.judge(asked)
    assert other.judge(asked) == found
    assert [other.judge([clip])[0] for clip in asked] == found  # others that are judged with it change nothing
    first.judge([(noise(9), RATE)] * 50)
    assert first.judge(asked) == found and first.judge([]) == []


def test_clips_are_read_one_by_one() -> None:
    alive: list[int] = []

    def clips() -> Iterator[tuple[str, np.ndarray, int]]:
        for seed in range(4):
            alive.append(seed)
            yield ("tone" if seed % 2 else "noise"), (tone if seed % 2 else noise)(seed), RATE

    judge = CaptionJudge(clips(), sample_rate=RATE, seconds=0.5)
    assert alive == [0, 1, 2, 3] and judge.captions == ("noise", "tone", "noise", "tone")


@pytest.mark.parametrize(
    ("captions", "why"),
    [
        (["a", "b", "c"], "every caption of the reference is unique"),
        (["a", "a"], "all clips of the reference have the same caption"),
        (["a"], "all clips of the reference have the same caption"),
        (["a", "a", ""], "not every clip of the reference has a caption"),
        (["a", "b", "b"], None),
    ],
)
def test_captions_that_are_not_classes_leave_novelty_and_bandwidth(captions: list[str], why: str | None) -> None:
    assert why_no_classes(captions) == why
    judge = CaptionJudge([(caption, tone(seed), RATE) for seed, caption in enumerate(captions)], sample_rate=RATE, seconds=0.5)
    found = judge.judge([(tone(50), RATE)])[0]
    assert judge.obstacle == why and (found.classified is None) == bool(why) == (not judge.classes)
    assert (found.novelty is None) == (len(captions) == 1) and found.bandwidth is not None


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no clips"):
        CaptionJudge([], sample_rate=RATE, seconds=1.0)
    with pytest.raises(ValueError, match="all finite"):
        judge_of().judge([(np.full((1, 10), np.nan, np.float32), RATE)])
