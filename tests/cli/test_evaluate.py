"""`soundomni evaluate`: what it prints and saves, what it says of clips that it leaves out, and how it refuses wrong options."""

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

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.cli.result_lines import result_lines
from soundomni.core.waveform import RESAMPLER_QUALITY, resample
from soundomni.data.toys.analysis import analyze
from soundomni.evaluation import evaluate

LIST = """
description: A few toy sounds.
dataset: {class_path: toy-sounds, init_args: {size: 4, seconds: 0.5, events: [1, 1], seed: 5}}
tasks: [describe, reconstruct]
items_sha256: ITEMS
audio_sha256: AUDIO
"""
SUM = "0" * 64


def folder_slot(path: Path) -> str:
    return f"{{class_path: audio-folder, init_args: {{path: '{path}'}}}}"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return save_tiny_clap(folder / "clap"), save_tiny_classifier(folder / "classifier")


def write_list(path: Path, items: str = SUM, audio: str = SUM, *, text: str = LIST) -> Path:
    path.write_text(text.replace("ITEMS", items).replace("AUDIO", audio))
    return path


def own_list(path: Path, fails: Any, *, text: str = LIST) -> Path:
    """Writes a list with the sums that the errors name."""
    sums = []
    for _ in range(2):
        line = fails("evaluate", "--model", "x", "--list", write_list(path, *sums, text=text))
        sums.append(re.search(r"sha256 is ([0-9a-f]{64})", line)[1])
    return write_list(path, *sums, text=text)


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


def test_the_command_prints_what_python_returns(tiny_model: Path, result: Any) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    found = evaluate(model, limit=2, seed=3, num_steps=1, tasks=["generate", "describe"], loaded_from=tiny_model)
    asked = ("--limit", "2", "--seed", "3", "--steps", "1", "--tasks", "generate", "describe")
    assert result("evaluate", "--model", tiny_model, *asked) == json.loads(json.dumps(found))


def test_a_result_is_printed_as_a_table() -> None:
    row = {"task": "described", "score": "wer", "value": 0.25, "of": 4, "low": None, "high": None}
    right = row | {"score": "right", "low": 0.0629, "high": 0.6016}
    counts = {"clips": 4, "unreadable": 0, "unmeasurable": 1}
    assert result_lines({**counts, "details": [right, row], "not_measured": ["generated: why"]}) == [
        "4 clips, 1 unmeasurable",
        "task       score  value   95 % interval  of",
        "described  right  25.0 %  6.3 to 60.2 %  4",
        "described  wer    25.0 %                 4",
        "not measured: generated: why",
    ]
    rates = {"codec": 8000, "codec_keeps_hz": [0, 4000.0], "files": {"8000": 2}}
    last = result_lines({**counts, "details": [], "not_measured": [], "rates": rates})[-1]
    assert last == "reconstructed: the codec is at 8000 Hz and keeps 0-4000 Hz; files: 2 at 8000 Hz"


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
    assert "is not empty. Save to a directory that does not exist" in fails(*folder, "--save", tmp_path / "kept")
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
    assert "no clip can be read" in fails(*arguments)


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


def test_lists_that_are_not_there_damaged_or_changed_are_refused(tmp_path: Path, fails: Any) -> None:
    command = ("evaluate", "--model", "x", "--list")
    near = fails(*command, "new-combination")
    assert "Did you mean 'new-combinations'?" in near and "Shipped lists: between-notes, editing, new-combinations" in near
    path = write_list(tmp_path / "own.yaml", text=LIST.replace("toy-sounds", "toy-sound"))
    assert "Did you mean 'toy-sounds'" in fails(*command, path)
    assert "its items changed since it was written" in fails(*command, write_list(path))


def test_networks_that_are_not_there_or_damaged(tmp_path: Path, fails: Any, networks: tuple[Path, Path]) -> None:
    command = ("evaluate", "--model", "x", "--limit", "2")
    assert "does not exist; expected a network" in fails(*command, "--clap", tmp_path / "none")
    assert "has no config.json; expected a network" in fails(*command, "--classifier", tmp_path)
    for option, source in zip(("--clap", "--classifier"), networks, strict=True):
        shutil.copytree(source, tmp_path / option)
        without_a_weight(tmp_path / option)
        assert "1 missing" in fails(*command, option, tmp_path / option)
        (tmp_path / option / "model.safetensors").unlink()
        assert "has no *.safetensors; expected a network" in fails(*command, option, tmp_path / option)
    assert "has the model_type 'audio-spectrogram-transformer'; expected 'clap'" in fails(*command, "--clap", networks[1])
    assert "--limit is 1; expected at least 2" in fails("evaluate", "--model", "x", "--limit", "1", "--clap", networks[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list", "a", "--dataset", "toy-sounds"], "exclude each other. Give only one of them"),
        (["--list", "between-notes", "--clap", "x"], "a CLAP network or a classifier judges the clips of the task generate"),
        (["--list", ""], "no list ''"),
        (["--list", "between-notes", "--tasks", "describe", "generate"], "does not measure generate; expected some of describe, answer"),
        (["--tasks", "describe", "--clap", "x"], "but the tasks are describe. Add generate"),
        (["--tasks", "hear"], "--tasks is 'hear'; expected one of"),
        (["--tasks", "generate,describe"], "expected names with spaces between them. Use --tasks generate describe. See"),
        (["--tasks", "generate,", "describe"], "--tasks is 'generate,'; expected names with spaces between them. Use --tasks generate."),
        (["--limit", "0"], "--limit is 0; expected at least 1"),
        (["--steps", "0"], "--steps is 0; expected at least 1"),
        (["--guidance", "nan"], "the guidance scale is nan; expected a number from"),
        (["--batch", "0"], "--batch is 0; expected at least 1"),
        (["--seed=-3"], "the seed is -3; expected a whole number from 0"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--lst", "a"], "Did you mean '--list'"),
        ([], "neither a model directory nor a shipped model"),
    ],
)
def test_wrong_options_are_told_in_one_line(arguments: list[str], message: str, fails: Any) -> None:
    assert message in fails("evaluate", "--model", "no-such-model", *arguments)


def test_the_command_measures_and_keeps_what_was_edited(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    data = "{class_path: toy-sounds, init_args: {size: 3, seconds: 0.5, events: [1, 1], kinds: [tone, chirp], seed: 5}}"
    scores = result(
        *("evaluate", "--model", tiny_model, "--dataset", data, "--tasks", "continue", "vary", "--steps", "1"),
        *("--limit", "3", "--save", tmp_path / "kept"),
    )
    assert {"direction", "pitch", "level_step"} & scores["continued"].keys() == {"direction", "pitch", "level_step"}
    assert [name for name in scores["varied"] if name.startswith("distance")] == [f"distance at {s}" for s in (0.2, 0.5, 0.8)]
    rows = [json.loads(line) for line in (tmp_path / "kept" / "results.jsonl").read_text().splitlines()]
    for row in rows:
        files = [row["continued"], *row["varied"].values()]
        assert len(files) == 4 and all(len(soundfile.read(tmp_path / "kept" / file)[0]) == 4000 for file in files)
    assert rows[0]["varied_towards"] in rows[1]["captions"]
