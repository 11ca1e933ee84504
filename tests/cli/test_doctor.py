"""`soundomni doctor`: its report, as text and as JSON, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from soundomni.cli.doctor import ROWS
from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec, resolve
from soundomni.train.memory.diagnosis import RESERVE
from soundomni.train.memory.footprint import list_parts
from soundomni.train.without_memory import model_without_memory


def test_the_report_adds_up(tiny_spec: Path, result: Any) -> None:
    found = result("doctor", "--config", tiny_spec, "--seconds", "0.5", "--gpu-memory", "2")
    sizes = found["bytes_per_gpu"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert list(sizes) == [*ROWS, "total"] and all(sizes[name] > 0 for name in ROWS if name != "gathered")
    trained = sum(part["trained"] for part in found["parameters"].values())
    assert sizes["gradients"] == sizes["ema"] == 4 * trained
    assert sizes["reserve"] == RESERVE and sizes["gathered"] == 0
    assert found["complete"] and found["fits"] and found["free"] == found["gpu_memory"] - sizes["total"] > 0 and found["change"] is None


def test_what_does_not_fit_is_a_report_too(tiny_spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(tiny_spec), "--seconds", "0.5", "--gpu-memory", "0.5"]) == 0
    shown = capsys.readouterr()
    assert "does not fit: needs 0.5" in shown.out and "more GPUs that share" in shown.out
    for label in ROWS.values():
        assert f"\n{label} " in shown.out
    assert "toys/generate" in shown.out and "no data, tokenizer or weights were read" in shown.out
    assert "Warning" not in shown.err


def test_a_change_is_named_with_what_it_takes(tiny_spec: Path, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["doctor", "--config", str(tiny_spec), "--seconds", "0.5", "--data.tokens_per_batch=4096"]
    whole = result(*given)["bytes_per_gpu"]["total"]
    memory = f"{(whole - 1_000_000) / 2**30:.9f}"
    found = result(*given, "--gpu-memory", memory)
    assert not found["fits"] and found["change"]["activation_checkpointing"]
    assert found["change"]["bytes_per_gpu"]["total"] <= found["gpu_memory"]
    assert main([*given, "--gpu-memory", memory]) == 0
    assert "\nit fits with train.activation_checkpointing=true: " in capsys.readouterr().out


def test_what_cannot_be_known_is_said(tiny_spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How many tokens each network of a mixture gets depends on values."""
    assert main(["doctor", "--config", str(tiny_spec), "--seconds", "0.5", "--model.router=top-k"]) == 0
    shown = capsys.readouterr().out
    assert "\nthe known part fits: " in shown and "unknown" in shown and "- activations cannot be known: " in shown


def test_mistakes_end_in_one_line(tiny_spec: Path, tmp_path: Path, fails: Any) -> None:
    told = fails("doctor", "--config", tiny_spec, "--train.optimizer.rule=adamw-8bit", "--gpus", "2")
    assert "'adamw-8bit', which only runs in one process, but there are 2 GPUs; choose adamw" in told
    assert "--gpus is '0'; expected a whole number" in fails("doctor", "--config", tiny_spec, "--gpus", "0")
    assert "--gpu-memory is 'much'; expected a number above 0" in fails("doctor", "--config", tiny_spec, "--gpu-memory", "much")
    assert "Did you mean 'soundomni-7b'?" in fails("doctor", "--config", "soundomni-7")
    assert "--config" in fails("doctor")
    assert "train.parallel.replicate is 3" in fails("doctor", "--config", tiny_spec, "--gpus", "2", "--train.parallel.replicate=3")
    codec = ("--model=null", "--codec={codec: oobleck}")
    long = fails("doctor", "--config", tiny_spec, *codec, "--seconds", "1000")
    assert "a clip of 1000 s has 21536 tokens, but data.tokens_per_batch is" in long
    none = fails("doctor", "--config", tiny_spec, "--data.datasets.toys=null")
    assert "data.datasets has no dataset to draw from ('toys' set to null); expected at least one" in none
    for override, expected in {
        "--data.tokens_per_batch=1000000000000": "expected at most 1,048,576",
        "--data.datasets.toys.max_seconds=1e300": "max_seconds is 1e+300; expected more than 0 and at most 86,400",
        "--model.backbone.num_layers=1000000000": "mot: num_layers is 1000000000; expected at most 256",
        "--model.encoder.num_layers=1000000000": "the spec asks for more than 50,000 parameters",
    }.items():
        assert expected in fails("doctor", "--config", tiny_spec, override)
    assert "--seconds is '1e8'; expected a number above 0 and at most 86,400" in fails("doctor", "--config", tiny_spec, "--seconds", "1e8")
    bare = tmp_path / "bare.yaml"
    bare.write_text(tiny_spec.read_text().partition("data:")[0])
    assert "no 'data' section" in fails("doctor", "--config", bare)


@pytest.mark.long
def test_the_7b_spec_is_weighed_in_little_memory() -> None:
    """A small process between this one and the command measures its peak: a child's peak begins with that of its parent."""
    measure = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'soundomni', *sys.argv[1:]])\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, "doctor", "--config", "soundomni-7b", "--gpus", "8"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "expert gen          2,953,457,664" in done.stdout and "fits: " in done.stdout
    assert int(done.stdout.split("peak ")[1]) < 2e6  # kilobytes


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("soundstorm", 345e6, 360e6), ("audiolm-semantic", 200e6, 210e6), ("audiolm-coarse", 205e6, 215e6), ("audiolm-fine", 215e6, 230e6)],
)
def test_models_of_codes_have_the_published_sizes(name: str, least: float, most: float) -> None:
    parts = list_parts(model_without_memory(resolve(load_spec([name])), trust_class_paths=False))
    assert least < sum(part.trained for part in parts) < most


@pytest.mark.long
def test_soundstorm_is_weighed_before_its_codecs_are_there(result: Any) -> None:
    found = result("doctor", "--config", "soundstorm", "--gpus", "8")
    assert found["complete"] and found["fits"] and found["bytes_per_gpu"]["activations"] > 1 << 30


def test_training_the_7b_spec_without_its_start_says_how_to_make_it(tmp_path: Path, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    told = fails("train", "--config", "soundomni-7b")
    assert "model.start: 'data/start/soundomni-7b' is neither a model directory nor a shipped model" in told
    assert "Make one with `soundomni import qwen2-audio SRC --config SPEC --out data/start/soundomni-7b` or `soundomni export`" in told
    assert not (tmp_path / "runs").exists()
