"""Training, exporting and using a model from the command line, with right and with wrong input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from soundomni import SoundOmni
from soundomni.cli.main import main


def test_training_leaves_everything_a_run_is(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert {"spec.yaml", "lock.json", "metrics.jsonl", "tokenizer.json", "checkpoints"} <= names
    steps = [json.loads(line)["step"] for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_finished_run_is_not_trained_again(tiny_spec: Path, tiny_run: Path) -> None:
    before = (tiny_run / "metrics.jsonl").read_text()
    assert main(["train", "--config", str(tiny_spec)]) == 0
    assert (tiny_run / "metrics.jsonl").read_text() == before


def test_generate_writes_sound_and_pictures(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    made = result(
        "generate",
        "--model",
        tiny_model,
        "--prompt",
        "a sine tone",
        "--prompt",
        "two clicks",
        "--seconds",
        "0.4",
        "--out",
        tmp_path / "out",
    )
    assert len(made["clips"]) == 2
    for clip in made["clips"]:
        wav, png = map(Path, clip["files"])
        waveform, rate = soundfile.read(wav)
        assert rate == 8000 and len(waveform) == 3200 and np.isfinite(waveform).all() and np.abs(waveform).max() > 0
        assert png.read_bytes().startswith(b"\x89PNG")


def test_a_clip_depends_on_its_prompt_and_seed_alone(tiny_model: Path, tmp_path: Path) -> None:
    def make(name: str, *arguments: str) -> np.ndarray:
        out = tmp_path / name
        common = ["generate", "--model", str(tiny_model), "--seconds", "0.4", "--no-pictures", "--out", str(out)]
        assert main([*common, *arguments]) == 0
        return np.stack([soundfile.read(path, dtype="int16")[0] for path in sorted(out.glob("*.wav"))])

    both = make("both", "--prompt", "a sine tone", "--prompt", "two loud clicks", "--seed", "7")
    second = make("second", "--prompt", "two loud clicks", "--seed", "8", "--batch", "1")
    other = make("other", "--prompt", "two loud clicks", "--seed", "9")
    assert np.abs(both[1].astype(int) - second[0]).max() <= 1
    assert np.abs(both[1].astype(int) - other[0]).max() > 1


def test_a_grid_makes_every_combination(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: [a sine tone, white noise]\nseconds: 0.3\nguidance: [1.0, 3.0]\nsteps: [1, 2]\nseed: [0, 1]\n")
    made = result("generate", "--model", tiny_model, "--grid", grid, "--no-pictures", "--out", tmp_path / "out")["clips"]
    assert len(made) == 16 == len({(c["prompt"], c["guidance"], c["steps"], c["seed"]) for c in made})
    log = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert [line["file"] for line in log] == [Path(clip["files"][0]).name for clip in made]


def test_samplers_are_swapped_by_name(tiny_model: Path, tmp_path: Path) -> None:
    for sampler in ("heun", "midpoint", "rk4", "dpmpp"):
        arguments = ["--model", str(tiny_model), "--prompt", "noise", "--seconds", "0.2", "--no-pictures", "--steps", "2"]
        assert main(["generate", *arguments, f"--sampler={sampler}", "--out", str(tmp_path / sampler)]) == 0
        assert len(list((tmp_path / sampler).glob("*.wav"))) == 1


def test_describe_says_something_of_each_file(tiny_model: Path, wav: Path, result: Any) -> None:
    heard = result("describe", wav, wav, "--model", tiny_model)["heard"]
    assert len(heard) == 2 and heard[0]["text"] == heard[1]["text"]
    asked = result("describe", wav, "--model", tiny_model, "--question", "how many events?", "--max-tokens", "3")
    assert asked["question"] == "how many events?"


def test_reconstruct_measures_an_invertible_codec(tiny_model: Path, wav: Path, tmp_path: Path, result: Any) -> None:
    row = result("reconstruct", wav, "--model", tiny_model, "--out", tmp_path / "out")["files"][0]
    assert row["si_sdr"] > 60
    assert soundfile.info(row["out"]).samplerate == 8000


def test_evaluate_scores_every_task(tiny_model: Path, result: Any) -> None:
    dataset = "{class_path: toy-sounds, init_args: {held_out: only, seconds: 0.5, events: [1, 1]}}"
    scores = result("evaluate", "--model", tiny_model, "--limit", "4", "--dataset", dataset)
    assert scores["clips"] == 4 and scores["reconstructed"]["si_sdr"] > 60
    for task in ("generated", "described", "answered"):
        assert all(0.0 <= value <= 1.0 for value in scores[task].values())
    assert scores["made_with"]["sampler"]["class_path"] == "euler"


def test_the_model_in_three_lines_of_python(tiny_model: Path, tmp_path: Path) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    clip = model.generate(["a sine tone"], seconds=0.4)[0]
    assert clip.waveform.shape == (1, 3200) and isinstance(model.describe([clip])[0], str)
    again = SoundOmni.from_pretrained(model.save_pretrained(tmp_path / "copy"))
    assert np.array_equal(again.generate(["a sine tone"], seconds=0.4)[0].waveform, clip.waveform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "an empty prompt"),
        (["--prompt", "x", "--seconds", "0"], "seconds must be above 0"),
        (["--prompt", "x", "--steps", "0"], "steps must be at least 1"),
        (["--prompt", "x", "--batch", "0"], "--batch must be at least 1"),
        (["--prompt", "x", "--sampler=hun"], "Did you mean 'heun'"),
        (["--prompt", "x", "--secnds", "1"], "Did you mean '--seconds'"),
        (["--prompt", "x", "--grid", "y"], "not allowed with"),
        (["--grid", "missing.yaml"], "cannot read the grid"),
    ],
)
def test_wrong_requests_end_in_one_line(tiny_model: Path, fails: Any, arguments: list[str], message: str) -> None:
    assert message in fails("generate", "--model", tiny_model, *arguments)


@pytest.mark.parametrize("text", ["seconds: 1", "prompt: [1]", "prompt: a\nstep: 3", "- a", "prompt: [a"])
def test_wrong_grids_end_in_one_line(tiny_model: Path, tmp_path: Path, fails: Any, text: str) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(text)
    assert "the grid" in fails("generate", "--model", tiny_model, "--grid", grid)


def test_files_that_cannot_be_heard_end_in_one_line(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF not really")
    assert "broken.wav" in fails("describe", broken, "--model", tiny_model)
    assert "missing.wav" in fails("reconstruct", tmp_path / "missing.wav", "--model", tiny_model)


def test_an_output_that_cannot_be_written_ends_in_one_line(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("generate", "--model", tiny_model, "--prompt", "x", "--out", tmp_path / "file" / "out")
    assert "cannot write" in fails("export", tiny_model.parent / "run", "--out", tmp_path / "file")


def test_what_is_not_a_model_or_a_run_is_named(tmp_path: Path, fails: Any) -> None:
    assert "not a model directory" in fails("generate", "--model", tmp_path, "--prompt", "x")
    assert "not a run directory" in fails("export", tmp_path, "--out", tmp_path / "out")


def test_a_model_directory_may_not_name_import_paths(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    stranger = tmp_path / "stranger"
    shutil.copytree(tiny_model, stranger)
    spec = stranger / "spec.yaml"
    spec.write_text(spec.read_text().replace("class_path: mdct", "class_path: os.path.join"))
    assert "os.path.join" in fails("generate", "--model", stranger, "--prompt", "x")
    assert "os.path.join" in fails("generate", "--model", stranger, "--prompt", "x", "--trust-class-paths")


def test_damaged_and_foreign_weights_are_refused(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    weights = copy / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "extra": torch.zeros(1)}, weights)
    assert "holds another model: 0 tensors missing, 1 unexpected" in fails("generate", "--model", copy, "--prompt", "x")
    save_file(dict(list(state.items())[1:]), weights)
    assert "1 tensors missing" in fails("generate", "--model", copy, "--prompt", "x")
    weights.write_bytes((tiny_model / "model.safetensors").read_bytes()[:-100])
    assert "cannot be read as safetensors" in fails("generate", "--model", copy, "--prompt", "x")
