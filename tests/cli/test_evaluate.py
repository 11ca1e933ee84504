"""`soundomni evaluate`: scores that are right for right and wrong answers, fixed lists that cannot change, and what each number is of."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from tiny_networks import save_tiny_clap, save_tiny_classifier, without_a_weight

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.registry import build
from soundomni.core.waveform import RESAMPLER_QUALITY, Audio, resample
from soundomni.data.toys.analysis import analyze
from soundomni.data.toys.toy_recipe import Recipe, is_held_out, note_frequency
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation.lists import open_list, shipped_lists
from soundomni.evaluation.measure import Outcome, lines, score
from soundomni.evaluation.networks import load_networks
from soundomni.evaluation.reconstruction import compare

LIST = """
description: A few toy sounds.
dataset: {class_path: toy-sounds, init_args: {size: 4, seconds: 0.5, events: [1, 1], seed: 5}}
tasks: [describe, reconstruct]
items_sha256: ITEMS
audio_sha256: AUDIO
"""
SUM = "0" * 64


def outcome_of(data: ToySounds, *, offset: int = 0) -> Outcome:
    """What a model would make and say that takes each clip for the one `offset` further on."""
    items, clips = [data.item(i) for i in range(len(data))], [Audio(*data.load(i)) for i in range(len(data))]
    others = [items[(i + offset) % len(items)] for i in range(len(items))]
    known = [dict(other.questions) for other in others]
    return Outcome(
        items=items,
        clips=clips,
        unreadable=0,
        generated=[clips[(i + offset) % len(clips)] for i in range(len(clips))],
        described=[other.captions[0] for other in others],
        answered=[[answers.get(question, "no idea") for question, _ in item.questions] for item, answers in zip(items, known, strict=True)],
        reconstructed=[compare(clip, Audio(clip.waveform + np.float32(1e-3), clip.sample_rate)) for clip in clips],
    )


def folder_slot(path: Path) -> str:
    return f"{{class_path: audio-folder, init_args: {{path: '{path}'}}}}"


@pytest.fixture(scope="module")
def data() -> ToySounds:
    return ToySounds(size=60, seed=3, held_out="include")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return save_tiny_clap(folder / "clap"), save_tiny_classifier(folder / "classifier")


def write_list(path: Path, items: str = SUM, audio: str = SUM, *, text: str = LIST) -> Path:
    path.write_text(text.replace("ITEMS", items).replace("AUDIO", audio))
    return path


def own_list(path: Path, fails: Any, *, text: str = LIST) -> Path:
    """Writes a list with the sums that the errors tell."""
    sums = []
    for _ in range(2):
        line = fails("evaluate", "--model", "x", "--list", write_list(path, *sums, text=text))
        sums.append(re.search(r"sha256 is ([0-9a-f]{64})", line)[1])
    return write_list(path, *sums, text=text)


def test_a_model_that_is_right_scores_all(data: ToySounds) -> None:
    scores = score(outcome_of(data))
    assert scores["clips"] == 60 and scores["unreadable"] == 0 and scores["not_measured"] == []
    assert scores["generated"]["right"] > 0.95 and scores["generated"]["attributes"] > 0.98
    described = scores["described"]
    assert {described[name] for name in ("right", "attributes", "exact")} == {1.0} and described["wer"] == described["cer"] == 0.0
    assert described["cider_d"] > 2
    assert set(scores["answered"].values()) == {1.0} and "what is the pitch?" in scores["answered"]
    assert set(scores["reconstructed"]) == {"si_sdr", "stft_distance", "mel_distance"} and scores["reconstructed"]["si_sdr"] > 20


def test_a_model_that_is_wrong_scores_little(data: ToySounds) -> None:
    right, wrong = score(outcome_of(data)), score(outcome_of(data, offset=1))
    for task in ("generated", "described"):
        assert wrong[task]["right"] < 0.1 and wrong[task]["attributes"] < 0.6
    assert wrong["described"]["exact"] < 0.1 and wrong["described"]["wer"] > 0.3 and wrong["described"]["cer"] > 0.3
    assert wrong["described"]["cider_d"] < 0.5 * right["described"]["cider_d"]
    assert wrong["answered"]["right"] < 0.6


def test_every_number_says_of_how_much_it_is(data: ToySounds) -> None:
    result = score(outcome_of(data, offset=1))
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
    text = "\n".join(lines(result))
    assert text.startswith("60 clips\ntask") and "SI" not in text and " dB" in text and " to " in text


def test_silent_clips_are_left_out_of_what_is_relative_to_them(data: ToySounds) -> None:
    outcome = outcome_of(data)
    before = score(outcome)["reconstructed"]
    silence = Audio(np.zeros_like(outcome.clips[0].waveform), outcome.clips[0].sample_rate)
    outcome.reconstructed[0] = compare(silence, silence)
    rows = {row["score"]: row for row in score(outcome)["details"] if row["task"] == "reconstructed"}
    assert {name: row["of"] for name, row in rows.items()} == {"si_sdr": 59, "stft_distance": 59, "mel_distance": 60}
    for name in ("si_sdr", "stft_distance"):
        assert rows[name]["value"] == pytest.approx(before[name], rel=0.05)


def test_other_collections_have_events_too(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(4000), 8000)
        (tmp_path / f"{i}.json").write_text(json.dumps({"caption": "a dog barks", "events": ["dog bark"]}))
    scores = result("evaluate", "--model", tiny_model, "--dataset", folder_slot(tmp_path))
    assert scores["described"].keys() == {"exact", "wer", "cer", "cider_d"}
    assert "the clips are no toy sounds" in scores["not_measured"][0]


def test_what_cannot_be_measured_is_named_before_anything_is_made(
    tiny_model: Path, tmp_path: Path, fails: Any, result: Any, networks: tuple[Path, Path]
) -> None:
    for name, seconds in (("short", 0.5), ("long", 60.0)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(round(8000 * seconds)), 8000)
        (tmp_path / f"{name}.txt").write_text("noise")
    command = ("evaluate", "--model", tiny_model, "--dataset", folder_slot(tmp_path))
    scores = result(*command, "--tasks", "reconstruct")
    assert "reconstructed" in scores and not scores.keys() & {"generated", "described", "answered"}
    judged = (*command, "--tasks", "generate", "--classifier", networks[1])
    assert re.search(r"'long.*': 60 s of audio and a prompt of", fails(*judged))
    (tmp_path / "long.wav").unlink()
    assert "need at least 2, there is 1" in fails(*judged)
    (tmp_path / "short.txt").write_text("...")
    assert re.search(r"'short.*': the caption '...' has no words", fails(*command))


def test_networks_tell_a_model_that_is_right_from_one_that_is_wrong(data: ToySounds, networks: tuple[Path, Path]) -> None:
    loaded = load_networks(clap=str(networks[0]), classifier=str(networks[1]), device="cpu")
    same, shifted = outcome_of(data), outcome_of(data, offset=1)
    right, wrong = (score(outcome, networks=loaded)["generated"] for outcome in (same, shifted))
    assert right["clap_score"] == right["clap_score_of_data"] and right["kl"] == 0.0 < wrong["kl"]
    for name in ("frechet_clap", "frechet_classifier"):
        assert right[name] == pytest.approx(0.0, abs=1e-6) and wrong[name] == pytest.approx(right[name], abs=1e-6)  # the same set
    shifted.generated = [Audio(np.float32(0.1) * clip.waveform[:, ::-1].cumsum(axis=1), clip.sample_rate) for clip in shifted.clips]
    other = score(shifted, networks=loaded)["generated"]
    assert other["frechet_clap"] > 1e-3 and other["kernel_clap"] > right["kernel_clap"] and other["frechet_classifier"] > 1e-3


@pytest.mark.parametrize("name", shipped_lists())
def test_nothing_of_a_list_occurs_in_training(name: str) -> None:
    fixed = open_list(name)
    assert len(fixed.dataset) == (100 if name == "editing" else 200) and fixed.description
    specs = [load_spec(["nano"]), load_spec(["nano", Path(__file__).parents[2] / "tools" / "nano_editing.yaml"])]
    entries = [entry for spec in specs for entry in spec.data.datasets.values() if entry is not None]
    sources = [entry.source for entry in entries if entry.source.class_path == "toy-sounds"]
    assert len(sources) == len(entries) == 7
    recipes = [Recipe.from_json(fixed.dataset.item(i).attributes) for i in range(len(fixed.dataset))]
    for source in sources:
        trained = build("dataset", source)
        assert isinstance(trained, ToySounds)
        seen = {trained.recipe(i) for i in range(min(len(trained), 2000))}
        if name == "new-combinations":
            # training draws again until a recipe is not held out, and all of these are
            assert trained.held_out == "exclude" and all(map(is_held_out, recipes))
            assert seen.isdisjoint(recipes)
            said = {caption for i in range(500) for caption in trained.item(i).captions}
            assert said.isdisjoint(fixed.dataset.item(i).captions[0] for i in range(200))
        elif name == "editing":
            # onset, phase and course of every sound are drawn anew: clips of another seed are other clips of the same kind
            assert trained.seed != fixed.slot.init_args["seed"] and fixed.slot.init_args["variation"] == 1.0
        else:
            # training has every tone on its note, and each clip of these has tones that are all off theirs
            assert trained.detune == (0.0, 0.0)
            for i, recipe in enumerate(recipes):
                cents = fixed.dataset.item(i).attributes["detune"]
                assert {event.kind for event in recipe.events} == {"tone"} and all(15 <= abs(c) <= 35 for c in cents)


def test_the_pitches_between_notes_are_where_the_list_says() -> None:
    dataset = open_list("between-notes").dataset
    for i in range(40):
        item = dataset.item(i)
        heard = analyze(*dataset.load(i)).events
        for event, found, cents in zip(Recipe.from_json(item.attributes).events, heard, item.attributes["detune"], strict=True):
            assert 1200 * np.log2(found.pitch / note_frequency(event.note)) == pytest.approx(cents, abs=10)
            assert found.event.note == event.note


def test_a_list_is_measured_whole_and_says_what_it_was_made_with(
    tiny_model: Path, tmp_path: Path, result: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_list(tmp_path / "own.yaml", fails)
    arguments = ("evaluate", "--model", tiny_model, "--list", path, "--seed", "7", "--steps", "3", "--guidance", "1.5")
    scores = result(*arguments)
    assert scores["clips"] == 4 and {"described", "reconstructed"} == scores.keys() & {
        "generated",
        "described",
        "answered",
        "reconstructed",
    }
    made = scores["made_with"]
    assert len(made["model"]["sha256"]) == len(made["data"]["sha256"]) == 64 and made["model"]["name"] == str(tiny_model)
    assert made["data"]["list"] == str(path) and made["data"]["dataset"]["init_args"]["seed"] == 5
    assert (made["seed"], made["steps"], made["guidance"]["scale"], made["device"]) == (7, 3, 1.5, "cpu")
    assert [plugin["distribution"] for plugin in made["plugins"]] == ["soundomni"]
    assert made["sampler"]["class_path"] == "euler" and {"python", "torch", "numpy", "soundomni"} <= made["versions"].keys()
    assert result(*arguments) == scores

    asked: list[str] = []
    whole = soxr.resample
    monkeypatch.setattr(soxr, "resample", lambda *a, **k: (asked.append(k["quality"]), whole(*a, **k))[1])
    resample(np.zeros((1, 80), np.float32), 8000, 16000)
    assert asked == [made["resampler"]["quality"]] == [RESAMPLER_QUALITY]


def test_the_default_is_the_list_of_new_combinations_and_everything_is_kept(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    scores = result("evaluate", "--model", tiny_model, "--limit", "3", "--save", tmp_path / "kept")
    assert scores["clips"] == 3 and scores["made_with"]["data"]["list"] == "new-combinations"
    for task in ("generated", "described", "answered"):
        assert 0.0 <= scores[task]["right"] <= 1.0
    assert scores["reconstructed"]["si_sdr"] > 60
    rows = [json.loads(line) for line in (tmp_path / "kept" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["answered"] and row["prompt"] in row["captions"] and "described" in row for row in rows)
    for row in rows:
        waveform, rate = soundfile.read(tmp_path / "kept" / row["generated"])
        assert len(waveform) == rate == 8000 and row["heard"] == analyze(waveform, rate).recipe.to_json()["events"]


def test_networks_judge_what_was_generated(tiny_model: Path, tmp_path: Path, result: Any, fails: Any, networks: tuple[Path, Path]) -> None:
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(2000 + 1000 * i), 8000)
        (tmp_path / f"{i}.txt").write_text(f"noise number {i}")
    folder = ("evaluate", "--model", tiny_model, "--dataset", folder_slot(tmp_path))
    plain = result(*folder)
    assert "generated" not in plain and plain["described"].keys() == {"exact", "wer", "cer", "cider_d"}
    assert [line.partition(":")[0] for line in plain["not_measured"]] == ["generated", "answered"]
    judged = result(*folder, "--clap", networks[0], "--classifier", networks[1], "--save", tmp_path / "kept")
    names = {"clap_score", "clap_score_of_data", "frechet_clap", "kernel_clap", "kl", "frechet_classifier"}
    assert judged["generated"].keys() == names and all(np.isfinite(value) for value in judged["generated"].values())
    record = judged["made_with"]["judges"]
    assert [(record[name]["name"], len(record[name]["sha256"])) for name in ("clap", "classifier")] == [(str(one), 64) for one in networks]
    assert plain["made_with"]["judges"] == {"clap": None, "classifier": None}
    assert "is not empty; give --save a directory" in fails(*folder, "--save", tmp_path / "kept")
    # each clip is made as long as the one it stands for
    assert [len(soundfile.read(path)[0]) for path in sorted((tmp_path / "kept").glob("*.wav"))] == [2000, 3000, 4000]


def test_clips_that_cannot_be_read_are_left_out_of_an_evaluation_by_name(
    tiny_model: Path, tmp_path: Path, result: Any, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.flac", 0.1 * np.random.default_rng(i).standard_normal(8000), 8000)
        (tmp_path / f"{i}.txt").write_text("noise")
    data = bytearray((tmp_path / "1.flac").read_bytes())
    data[2000:2400] = bytes(range(200)) * 2
    (tmp_path / "1.flac").write_bytes(data)
    arguments = ("evaluate", "--model", tiny_model, "--dataset", folder_slot(tmp_path))
    scores = result(*arguments, status=1)
    assert (scores["clips"], scores["unreadable"]) == (2, 1) and scores["reconstructed"]["si_sdr"] > 60
    assert [failure["file"] for failure in scores["failures"]] == ["1.flac"]
    assert main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    assert "1.flac" in captured.err and captured.out.startswith("2 clips, 1 unreadable\n")
    for i in (0, 2):
        (tmp_path / f"{i}.flac").unlink()
    assert "none of the 1 clips can be read" in fails(*arguments)


def test_clips_that_a_model_does_not_take_are_left_out_of_an_evaluation_by_name(
    tiny_model: Path, tmp_path: Path, result: Any, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds, caption in (("a", 0.5, "noise"), ("b", 60.0, "noise"), ("c", 0.5, "..."), ("d", 0.6, "more noise")):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(round(8000 * seconds)), 8000)
        (tmp_path / f"{name}.txt").write_text(caption)
    command = ("evaluate", "--model", tiny_model, "--dataset", folder_slot(tmp_path), "--tasks", "describe", "reconstruct")
    scores = result(*command, status=1)
    assert (scores["clips"], scores["unreadable"], scores["unmeasurable"]) == (2, 0, 2)
    assert [failure["file"] for failure in scores["failures"]] == ["b.wav", "c.wav"]
    assert "a clip of 60 s" in scores["failures"][0]["error"] and "has no words" in scores["failures"][1]["error"]
    assert main([str(a) for a in command]) == 1
    captured = capsys.readouterr()
    assert "left out 'b.wav': a clip of 60 s" in captured.err and captured.out.startswith("2 clips, 2 unmeasurable\n")
    for name in "ad":
        (tmp_path / f"{name}.wav").unlink()
    assert "'b.wav': a clip of 60 s" in fails(*command)


def test_lists_that_are_not_there_or_damaged(tmp_path: Path, fails: Any) -> None:
    def line(text: str | None, name: str = "own.yaml") -> str:
        if text is not None:
            (tmp_path / name).write_text(text)
        return str(fails("evaluate", "--model", "x", "--list", tmp_path / name if text is not None else name))

    near = line(None, "new-combination")
    assert "Did you mean 'new-combinations'?" in near and "Shipped lists: between-notes, editing, new-combinations" in near
    assert "not a file" in line(None, "no/such.yaml")
    assert "is empty, expected the keys description" in line("")
    assert "is no mapping" in line("- 1")
    assert "not valid YAML" in line("description: {")
    assert "Did you mean 'tasks'" in line(LIST.replace("tasks:", "task:"))
    assert "Did you mean 'describe'" in line(LIST.replace("[describe,", "[descrive,"))
    assert "measures no task" in line(LIST.replace("[describe, reconstruct]", "[]"))
    assert "Did you mean 'toy-sounds'" in line(LIST.replace("toy-sounds", "toy-sound"))
    assert "0.1 s is too short" in line(LIST.replace("seconds: 0.5", "seconds: 0.1"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in fails("evaluate", "--model", "x", "--list", tmp_path / "binary.yaml")


def test_a_list_whose_items_or_audio_changed_is_refused(tmp_path: Path, fails: Any) -> None:
    path = own_list(tmp_path / "own.yaml", fails)
    whole = path.read_text()
    assert len(open_list(str(path)).dataset) == 4
    path.write_text(whole.replace("seed: 5", "seed: 6"))
    assert "its items changed since it was written" in fails("evaluate", "--model", "x", "--list", path)
    path.write_text(whole.replace("seed: 5", "seed: 5, variation: 0.5"))  # other sounds of the same recipes
    assert "its audio changed since it was written" in fails("evaluate", "--model", "x", "--list", path)
    path.write_text(whole.replace("items_sha256", "# items_sha256"))
    assert re.search("has no items_sha256, .* now is [0-9a-f]{64}", fails("evaluate", "--model", "x", "--list", path))


def test_networks_that_are_not_there_or_damaged(tmp_path: Path, fails: Any, networks: tuple[Path, Path]) -> None:
    command = ("evaluate", "--model", "x", "--limit", "2")
    assert "there is no such directory" in fails(*command, "--clap", tmp_path / "none")
    assert "it has no config.json" in fails(*command, "--classifier", tmp_path)
    for option, source in zip(("--clap", "--classifier"), networks, strict=True):
        shutil.copytree(source, tmp_path / option)
        without_a_weight(tmp_path / option)
        assert "1 missing" in fails(*command, option, tmp_path / option)
        (tmp_path / option / "model.safetensors").unlink()
        assert "it has no *.safetensors" in fails(*command, option, tmp_path / option)
    assert "of type 'audio-spectrogram-transformer'; expected 'clap'" in fails(*command, "--clap", networks[1])
    assert "need at least 2" in fails("evaluate", "--model", "x", "--limit", "1", "--clap", networks[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list", "a", "--dataset", "toy-sounds"], "not allowed with"),
        (["--list", "between-notes", "--clap", "x"], "generates nothing that --clap or --classifier could judge"),
        (["--list", ""], "no list ''"),
        (["--list", "between-notes", "--tasks", "describe", "generate"], "does not measure generate, only describe, answer"),
        (["--tasks", "describe", "--clap", "x"], "measuring describe generates nothing"),
        (["--tasks", "hear"], "invalid choice: 'hear'"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--guidance", "nan"], "the guidance scale must be from"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--seed=-3"], "a seed must be from 0"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--lst", "a"], "Did you mean '--list'"),
        ([], "neither a model directory nor a shipped model"),
    ],
)
def test_wrong_options_are_told_in_one_line(arguments: list[str], message: str, fails: Any) -> None:
    assert message in fails("evaluate", "--model", "no-such-model", *arguments)
