"""Continuations and variants in numbers: right for right ones, and wrong for each way to be wrong."""

from typing import Any

import numpy as np
import pytest

from soundomni import Audio
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation.tasks.continuation import Continuation, Cut, continuation_scores, find_cut
from soundomni.evaluation.tasks.variation import Variant, variation_scores

DATA = ToySounds(size=12, seed=4, kinds=["tone", "chirp"])
ITEMS = [DATA.item(i) for i in range(len(DATA))]
CLIPS = [Audio(*DATA.load(i)) for i in range(len(DATA))]
RATE = 8000


def cut_of(i: int) -> Cut:
    cut = find_cut(CLIPS[i], i)
    assert cut is not None
    return cut


def continued(change: Any) -> list[Continuation]:
    """Every clip, its samples after the join replaced by what `change` makes of them."""
    made = []
    for i, (item, clip) in enumerate(zip(ITEMS, CLIPS, strict=True)):
        cut, waveform = cut_of(i), clip.waveform.copy()
        join, end = round(cut.join * RATE), round(cut.end * RATE)
        waveform[0, join:end] = change(waveform[0, join:end], waveform[0, :join])
        made.append(Continuation(item, clip, cut, Audio(waveform, RATE)))
    return made


def stretched(factor: float) -> Any:
    """A change that plays what follows `factor` times as fast: its pitch is multiplied."""

    def change(part: np.ndarray, before: np.ndarray) -> np.ndarray:
        places = np.arange(len(part)) * factor % (len(part) - 1)
        return np.interp(places, np.arange(len(part)), part)

    return change


def test_clips_are_cut_in_the_middle_of_one_of_their_sounds_in_turn() -> None:
    for i, item in enumerate(ITEMS):
        cut, events = cut_of(i), item.attributes["events"]
        event = events[i % len(events)]
        assert cut.direction == event.get("direction")
        assert 0.05 < cut.join < cut.end < 1.0 and (len(events) == 1 or (cut.join > 0.5) == (i % 2 == 1))
    noise = ToySounds(size=1, kinds=["noise"])
    assert find_cut(Audio(*noise.load(0)), 0) is None


def test_a_clip_that_goes_on_as_it_was_is_right_in_everything() -> None:
    scores = continuation_scores(continued(lambda part, before: part))
    assert scores["direction"].value == scores["pitch"].value == 1.0 and scores["right"].value > 0.9
    assert scores["level_step"].value < 0.7 and scores["pitch"].of == len(ITEMS)
    assert scores["direction"].of == sum(cut_of(i).direction is not None for i in range(len(ITEMS)))


@pytest.mark.parametrize(("cents", "same"), [(-200, 0.0), (-50, 1.0), (50, 1.0), (150, 0.0)])
def test_a_pitch_counts_within_a_semitone(cents: int, same: float) -> None:
    tones = [one for one in continued(stretched(2 ** (cents / 1200))) if one.cut.direction is None]
    assert continuation_scores(tones)["pitch"].value == same


def test_a_chirp_that_turns_back_is_wrong() -> None:
    chirps = [one for one in continued(lambda part, before: part[::-1]) if one.cut.direction is not None]
    assert continuation_scores(chirps)["direction"].value == 0.0


@pytest.mark.parametrize("gain", [0.25, 0.5])
def test_a_step_in_level_is_told_in_decibels(gain: float) -> None:
    step = continuation_scores(continued(lambda part, before: gain * part))["level_step"].value
    assert step == pytest.approx(-20 * np.log10(gain), abs=0.7)


def test_silence_and_noise_after_the_join_have_no_pitch() -> None:
    rng = np.random.default_rng(0)
    for change in (lambda part, before: 0 * part, lambda part, before: 0.1 * rng.standard_normal(len(part))):
        scores = continuation_scores(continued(change))
        assert scores["pitch"].value < 0.1 and scores["direction"].value < 0.7


def test_a_clip_that_ends_early_is_silent_from_there() -> None:
    ended, silent = [], []
    for i, (item, clip) in enumerate(zip(ITEMS, CLIPS, strict=True)):
        join = round(cut_of(i).join * RATE)
        waveform = np.where(np.arange(clip.waveform.shape[1]) < join, clip.waveform, np.float32(0))
        ended.append(Continuation(item, clip, cut_of(i), Audio(waveform[:, :join], RATE)))
        silent.append(Continuation(item, clip, cut_of(i), Audio(waveform, RATE)))
    expected, found = continuation_scores(silent), continuation_scores(ended)
    assert all(found[name] == expected[name] for name in ("direction", "pitch", "level_step"))


def test_a_variant_is_near_the_clip_or_what_the_prompt_asks_for() -> None:
    following = [*range(1, len(ITEMS)), 0]
    near = [Variant(ITEMS[j], CLIPS[i], CLIPS[i]) for i, j in enumerate(following)]
    far = [Variant(ITEMS[j], CLIPS[i], CLIPS[j]) for i, j in enumerate(following)]
    scores = variation_scores({0.2: near, 0.8: far})
    assert scores["distance at 0.2"].value == 0.0 and scores["right at 0.2"].value < 0.2
    assert scores["distance at 0.8"].value > 0.5 and scores["right at 0.8"].value > 0.9
    assert scores["attributes at 0.2"].value < scores["attributes at 0.8"].value


def test_any_rate_of_a_model_is_compared_at_its_own_rate() -> None:
    wider = [Variant(item, clip, Audio(np.repeat(clip.waveform, 2, axis=1), 2 * RATE)) for item, clip in zip(ITEMS, CLIPS, strict=True)]
    assert variation_scores({0.5: wider})["distance at 0.5"].value < 0.2
