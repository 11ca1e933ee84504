"""Generated clips compared with those of training: the scores of right and wrong clips, their ceiling, and what is said about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni import Audio, SoundOmni
from soundomni.core.errors import DataError, SoundOmniError, SpecError
from soundomni.core.interfaces import Dataset, Item
from soundomni.core.spec.schema import Slot
from soundomni.core.waveform import convert
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import (
    Judges,
    Outcome,
    Reference,
    Score,
    evaluate,
    open_data,
    open_reference,
    read_reference,
    score_outcome,
    score_text,
)
from soundomni.evaluation.caption_scores import saturated_lines
from soundomni.evaluation.observer import SILENT, Silent

PAIRED = {"nearest", "classified", "novelty", "copies", "bandwidth"}


def sounding(caption: str, seed: int) -> np.ndarray:
    """A clip of half a second: a low tone, or a click of noise."""
    rng = np.random.default_rng([seed, len(caption)])
    time = np.arange(4000) / 8000
    if caption == "A low tone.":
        hertz, decay = rng.uniform(200, 600), rng.uniform(0, 8)
        return (0.4 * np.sin(2 * np.pi * hertz * time) * np.exp(-decay * time))[None].astype(np.float32)
    return (0.3 * rng.standard_normal(4000) * np.exp(-20 * time))[None].astype(np.float32)


class Sounds(Dataset):
    """Clips of two captions in turn, from a seed up."""

    def __init__(self, size: int, *, first: int = 0, captions: tuple[str, ...] = ("A low tone.", "noise")) -> None:
        self._size, self._first, self._captions = size, first, captions

    def __len__(self) -> int:
        return self._size

    def item(self, index: int) -> Item:
        caption = self._captions[index % len(self._captions)]
        return Item(key=f"{self._first + index}.wav", num_samples=4000, sample_rate=8000, captions=(caption,) if caption else ())

    def load(self, index: int) -> tuple[np.ndarray, int]:
        return sounding("A low tone." if index % 2 == 0 else "noise", self._first + index), 8000


def reference_of(dataset: Dataset, model: SoundOmni, **options: Any) -> Reference:
    return read_reference(open_data(dataset), model, **options)


def outcome_of(data: Dataset, *, offset: int = 0, first: int | None = None) -> Outcome:
    """Return what a model would make that gives each clip the sound of the one `offset` further on, new by default."""
    items = [data.item(i) for i in range(len(data))]
    made = [sounding("A low tone." if (i + offset) % 2 == 0 else "noise", (5000 if first is None else first) + i) for i in range(len(data))]
    return Outcome(items=items, clips=[Audio(*data.load(i)) for i in range(len(data))], generated=[Audio(one, 8000) for one in made])


def test_right_clips_reach_the_ceiling_and_swapped_ones_get_nothing(model: SoundOmni) -> None:
    judges = Judges(reference=reference_of(Sounds(24), model))
    right, swapped = (score_outcome(outcome_of(Sounds(12, first=100), offset=offset), judges=judges) for offset in (0, 1))
    for result, share in ((right, 1.0), (swapped, 0.0)):
        found = result["generated"]
        assert found.keys() == PAIRED | {f"{name}_of_data" for name in PAIRED} | {"chance"}
        assert found["nearest"] == found["classified"] == share and found["nearest_of_data"] == found["classified_of_data"] == 1.0
        assert found["chance"] == 0.5 and found["copies"] == found["copies_of_data"] == 0.0 and 0.5 < found["novelty"] < 2
        assert json.dumps(result, allow_nan=False) and all(score_text(name, value) for name, value in found.items())
        rows = {row["score"]: row for row in result["details"]}
        assert (rows["nearest"]["low"], rows["nearest"]["of"], rows["novelty"]["low"]) == (
            pytest.approx(0.7575 * share, abs=1e-3),
            12,
            None,
        )
    report = swapped["reference"]
    assert (report["clips"], report["captions"], report["judged"], report["sample_rate"], report["seconds"]) == (24, 2, 12, 8000, 0.5)
    assert report["confusions"] == [
        {"caption": "A low tone.", "heard": "noise", "clips": 6, "of": 6},
        {"caption": "noise", "heard": "A low tone.", "clips": 6, "of": 6},
    ]
    assert report["saturated"] == report["notes"] == report["copies"] == right["reference"]["confusions"] == []
    assert [line.partition(":")[0] for line in right["reference"]["saturated"]] == ["nearest", "classified"]


@pytest.mark.parametrize(("rate", "channels"), [(24000, 1), (44100, 2), (6000, 1)])
def test_clips_made_exactly_like_held_out_files_of_another_rate_score_exactly_like_them(model: SoundOmni, rate: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    files = [Audio(rng.standard_normal((channels, rate // 2)).astype(np.float32) / 8, rate) for _ in range(4)]
    items = [Item(key=f"{i}.wav", num_samples=rate // 2, sample_rate=rate, captions=("noise",)) for i in range(4)]
    made = [Audio(convert(clip, channels=1, sample_rate=8000), 8000) for clip in files]
    judges = Judges(reference=reference_of(Sounds(24), model))
    found = score_outcome(Outcome(items=items, clips=files, generated=made), judges=judges)["generated"]
    for name in PAIRED:
        assert found[name] == found[f"{name}_of_data"]
    assert found["bandwidth"] <= 4000


def test_a_copy_of_a_training_clip_is_named_and_so_are_held_out_clips_that_are_copies(model: SoundOmni) -> None:
    reference = reference_of(Sounds(24), model)
    result = score_outcome(outcome_of(Sounds(4, first=100), first=2), judges=Judges(reference=reference))
    assert result["generated"]["novelty"] == 0.0 and result["generated"]["copies"] == 1.0
    assert result["reference"]["copies"][0] == {"clip": "100.wav", "of": "2.wav", "novelty": 0.0}
    leaked = score_outcome(outcome_of(Sounds(4, first=6)), judges=Judges(reference=reference))
    assert leaked["reference"]["notes"] == ["as near to a training clip as copies: 4 of 4 held-out clips, so the ceiling may be too high"]
    assert leaked["generated"]["copies_of_data"] == 1.0 and leaked["generated"]["copies"] == 0.0


@pytest.mark.parametrize(
    ("captions", "why"),
    [
        (tuple(map(str, range(24))), "every caption of the reference is unique"),
        (("the same",), "all clips of the reference have the same caption"),
        (("some", ""), "not every clip of the reference has a caption"),
    ],
)
def test_without_classes_only_novelty_and_bandwidth_are_measured(model: SoundOmni, captions: tuple[str, ...], why: str) -> None:
    result = score_outcome(outcome_of(Sounds(4, first=100)), judges=Judges(reference=reference_of(Sounds(24, captions=captions), model)))
    names = {"novelty", "copies", "bandwidth"}
    assert result["generated"].keys() == names | {f"{name}_of_data" for name in names}
    assert result["reference"]["notes"] == [f"captions are not judged: {why}"] and result["reference"]["saturated"] == []


def test_captions_that_the_reference_does_not_have_are_left_out_and_named(model: SoundOmni) -> None:
    data = Sounds(6, first=100, captions=("a LOW tone", "noise", "A low tone", "a gong"))  # spelling does not matter
    result = score_outcome(outcome_of(data), judges=Judges(reference=reference_of(Sounds(24), model)))
    rows = {row["score"]: row["of"] for row in result["details"]}
    assert (rows["nearest"], rows["classified_of_data"], rows["novelty"], result["reference"]["judged"]) == (5, 5, 6, 5)
    assert result["generated"]["nearest"] == 1.0
    assert result["reference"]["notes"] == ["nearest and classified leave out 1 clip whose caption the reference does not have: 'a gong'"]
    none = score_outcome(outcome_of(Sounds(2, captions=("gong", "bell"))), judges=Judges(reference=reference_of(Sounds(24), model)))
    assert "nearest" not in none["generated"] and "chance" not in none["generated"] and none["reference"]["judged"] == 0


@pytest.mark.parametrize(
    ("made", "ceiling", "chance", "line"),
    [
        (0.2, 0.5, 0.1, "nearest: held-out clips only reach 50.0 % (chance 10.0 %), so it says little about a model"),
        (0.9, 0.5, 0.1, "nearest: held-out clips only reach 50.0 % (chance 10.0 %), so it says little about a model"),
        (0.85, 0.8, 0.1, "nearest: generated clips reach 85.0 % and held-out clips 80.0 %, so it cannot show that a model gets better"),
        (0.7, 0.8, 0.1, None),
        (0.6, 0.7, 0.5, "nearest: held-out clips only reach 70.0 % (chance 50.0 %), so it says little about a model"),
    ],
)
def test_a_measure_that_saturates_is_named(made: float, ceiling: float, chance: float, line: str | None) -> None:
    scores = {"nearest": Score(made, 100), "nearest_of_data": Score(ceiling, 100), "chance": Score(chance, 100)}
    assert saturated_lines(scores) == ([] if line is None else [line])


def test_an_evaluation_compares_with_a_folder_and_records_it(model: SoundOmni, tmp_path: Path) -> None:
    for part, first, count in (("train", 0, 8), ("test", 50, 3)):
        (tmp_path / part).mkdir()
        for i in range(count):
            caption = "A low tone." if i % 2 == 0 else "noise"
            soundfile.write(tmp_path / part / f"{i}.wav", sounding(caption, first + i)[0], 8000)
            (tmp_path / part / f"{i}.txt").write_text(caption)
    (tmp_path / "train" / "broken.wav").write_bytes(b"RIFF....WAVEfmt no audio")
    (tmp_path / "train" / "broken.txt").write_text("noise")
    slots = {part: Slot("audio-folder", {"path": str(tmp_path / part)}) for part in ("train", "test")}
    result = evaluate(model, slots["test"], tasks=["generate"], num_steps=1, reference=slots["train"])
    assert result == evaluate(model, slots["test"], tasks=["generate"], num_steps=1, reference=slots["train"])
    assert result["generated"]["nearest_of_data"] == 1.0 and result["reference"]["clips"] == 8
    assert [row["file"] for row in result["failures"]] == ["broken.wav"]
    record = result["made_with"]["reference"]
    assert record["dataset"]["init_args"] == slots["train"].init_args and record["clips"] == 8 and len(record["items_sha256"]) == 64
    built = evaluate(model, slots["test"], tasks=["generate"], num_steps=1, reference=AudioFolder(path=str(tmp_path / "train")))
    assert built["generated"] == result["generated"]


def test_clips_of_the_reference_that_cannot_be_read_are_named_and_counted(model: SoundOmni, tmp_path: Path) -> None:
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.flac", sounding("noise", i)[0], 8000)
        (tmp_path / f"{i}.txt").write_text("noise")
    data = AudioFolder(path=str(tmp_path))
    whole = (tmp_path / "2.flac").read_bytes()
    (tmp_path / "2.flac").write_bytes(whole[:200])
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    reference = reference_of(data, model, observer=Noting())
    assert [item.key for item in reference.items] == ["0.flac", "1.flac", "3.flac"] and [row["file"] for row in reference.failures] == [
        "2.flac"
    ]
    assert notes[0].startswith("left out '2.flac', a clip of the reference: ")
    result = score_outcome(outcome_of(Sounds(2)), judges=Judges(reference=reference))
    assert [row["file"] for row in result["failures"]] == ["2.flac"]
    for i in range(4):
        (tmp_path / f"{i}.flac").write_bytes(whole[:200])
    with pytest.raises(DataError, match="there is nothing to compare with: none of the 4 clips of the reference can be read"):
        reference_of(data, model)


def test_a_long_reference_is_cut_and_long_clips_are_compared_at_their_beginning(model: SoundOmni) -> None:
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    assert len(reference_of(Sounds(24), model, limit=5, observer=Noting()).items) == 5
    assert notes == ["the reference has 24 clips; only the first 5 are compared"]

    asked: list[int] = []

    class Long(Sounds):
        def item(self, index: int) -> Item:
            return Item(key=str(index), num_samples=8000 * 3600, sample_rate=8000, captions=("noise",))

        def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
            asked.append(num_samples)
            return np.resize(sounding("noise", index), (1, num_samples)), 8000

    assert reference_of(Long(2), model).judge.spectra.seconds == 10.0 and asked == [80000, 80000]


def test_a_clip_that_is_not_finite_is_refused_in_one_line(model: SoundOmni) -> None:
    outcome = outcome_of(Sounds(2, first=100))
    outcome.generated[1] = Audio.unchecked(np.full((1, 4000), np.nan, np.float32), 8000)
    with pytest.raises(DataError, match="the clip generated for '101.wav' has samples that are not finite"):
        score_outcome(outcome, judges=Judges(reference=reference_of(Sounds(24), model)), observer=SILENT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"reference": "train"},
            SpecError,
            "reference is 'train'.*; expected the Slot or Dataset of the clips that the model was trained on",
        ),
        ({"reference": Slot("toy-sounds", {"size": 3})}, SpecError, "the reference is the dataset that is measured; expected two"),
        (
            {"reference": ToySounds(size=5), "tasks": ["describe"]},
            SpecError,
            "the tasks are describe. Add generate, or leave the reference out",
        ),
        ({"reference": Sounds(0)}, DataError, "the reference is empty; expected the clips that the model was trained on"),
        ({"reference": Slot("toy-sound")}, SoundOmniError, "Did you mean 'toy-sounds'"),
    ],
)
def test_a_wrong_reference_is_refused_before_anything_is_made(
    model: SoundOmni, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        evaluate(model, Slot("toy-sounds", {"size": 3}), **options)
    assert "\n" not in str(raised.value)


def test_the_same_dataset_object_and_encoded_clips_are_refused() -> None:
    data = open_data(Sounds(3))
    with pytest.raises(SpecError, match="the reference is the dataset that is measured"):
        open_reference(data.dataset, data)

    class Encoded(Sounds):
        encoding = property(lambda self: "an encoding")  # type: ignore[assignment]

    with pytest.raises(DataError, match="the reference holds encoded clips; expected audio"):
        open_reference(Encoded(3), data)
