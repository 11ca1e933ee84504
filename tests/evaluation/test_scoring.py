"""Scores are right for right and wrong answers, and every number says what it sums up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soundomni import Audio
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import Outcome, compare, load_judges, score_outcome

OutcomeOf = Callable[..., Outcome]


def test_a_model_that_is_right_scores_all(data: ToySounds, outcome_of: OutcomeOf) -> None:
    scores = score_outcome(outcome_of(data))
    assert scores["clips"] == 60 and scores["unreadable"] == 0 and scores["not_measured"] == []
    assert scores["generated"]["right"] > 0.95 and scores["generated"]["attributes"] > 0.98
    described = scores["described"]
    assert {described[name] for name in ("right", "attributes", "exact")} == {1.0} and described["wer"] == described["cer"] == 0.0
    assert described["cider_d"] > 2
    assert set(scores["answered"].values()) == {1.0} and "what is the pitch?" in scores["answered"]
    assert set(scores["reconstructed"]) == {"si_sdr", "stft_distance", "mel_distance"} and scores["reconstructed"]["si_sdr"] > 20


def test_a_model_that_is_wrong_scores_little(data: ToySounds, outcome_of: OutcomeOf) -> None:
    right, wrong = score_outcome(outcome_of(data)), score_outcome(outcome_of(data, offset=1))
    for task in ("generated", "described"):
        assert wrong[task]["right"] < 0.1 and wrong[task]["attributes"] < 0.6
    assert wrong["described"]["exact"] < 0.1 and wrong["described"]["wer"] > 0.3 and wrong["described"]["cer"] > 0.3
    assert wrong["described"]["cider_d"] < 0.5 * right["described"]["cider_d"]
    assert wrong["answered"]["right"] < 0.6


def test_every_number_says_of_how_much_it_is(data: ToySounds, outcome_of: OutcomeOf) -> None:
    result = score_outcome(outcome_of(data, offset=1))
    rows = {(row["task"], row["score"]): row for row in result["details"]}
    assert {key: row["value"] for key, row in rows.items()} == {
        (task, name): value for task in ("generated", "described", "answered", "reconstructed") for name, value in result[task].items()
    }
    tones = sum(any(e.kind == "tone" for e in data.recipe(i).events) for i in range(60))
    assert rows["generated", "pitch"]["of"] == tones < 60 == rows["generated", "right"]["of"]
    assert rows["answered", "right"]["of"] == sum(len(data.item(i).questions) for i in range(60))
    pitch = rows["described", "pitch"]
    assert 0.0 <= pitch["low"] <= pitch["value"] <= pitch["high"] <= 1.0
    assert rows["answered", "right"]["low"] is None  # several verdicts from one clip are not independent


def test_silent_clips_are_left_out_of_what_is_relative_to_them(data: ToySounds, outcome_of: OutcomeOf) -> None:
    outcome = outcome_of(data)
    before = score_outcome(outcome)["reconstructed"]
    silence = Audio(np.zeros_like(outcome.clips[0].waveform), outcome.clips[0].sample_rate)
    outcome.reconstructed[0] = compare(silence, silence)
    rows = {row["score"]: row for row in score_outcome(outcome)["details"] if row["task"] == "reconstructed"}
    assert {name: row["of"] for name, row in rows.items()} == {"si_sdr": 59, "stft_distance": 59, "mel_distance": 60}
    for name in ("si_sdr", "stft_distance"):
        assert rows[name]["value"] == pytest.approx(before[name], rel=0.05)


def test_networks_tell_a_model_that_is_right_from_one_that_is_wrong(
    data: ToySounds, outcome_of: OutcomeOf, networks: tuple[Path, Path]
) -> None:
    judges = load_judges(clap=str(networks[0]), classifier=str(networks[1]))
    same, shifted = outcome_of(data), outcome_of(data, offset=1)
    right, wrong = (score_outcome(outcome, judges=judges)["generated"] for outcome in (same, shifted))
    assert right["clap_score"] == right["clap_score_of_data"] and right["kl"] == 0.0 < wrong["kl"]
    for name in ("frechet_clap", "frechet_classifier"):
        assert right[name] == pytest.approx(0.0, abs=1e-6) and wrong[name] == pytest.approx(right[name], abs=1e-6)  # the same set
    shifted.generated = [Audio(np.float32(0.1) * clip.waveform[:, ::-1].cumsum(axis=1), clip.sample_rate) for clip in shifted.clips]
    other = score_outcome(shifted, judges=judges)["generated"]
    assert other["frechet_clap"] > 1e-3 and other["kernel_clap"] > right["kernel_clap"] and other["frechet_classifier"] > 1e-3


def test_scores_at_the_files_rate_are_only_listed_if_it_differs() -> None:
    data = ToySounds(size=2)
    clips = [Audio(*data.load(i)) for i in range(2)]
    same = Outcome(items=[data.item(i) for i in range(2)], clips=clips, reconstructed=[compare(clip, clip) for clip in clips])
    result = score_outcome(same)
    assert result["reconstructed"].keys() == {"si_sdr", "stft_distance", "mel_distance"}
    assert result["rates"] == {"codec": 8000, "codec_keeps_hz": [0, 4000.0], "files": {"8000": 2}}
