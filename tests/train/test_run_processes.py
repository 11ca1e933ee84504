"""Runs as real processes: stopped by a signal, and under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import VALIDATION, measured
from tiny_spec import tiny_spec

from soundomni.data.audio import read_audio
from soundomni.train.checkpoint import find_latest
from soundomni.train.run import run_training
from soundomni.train.signals import STOPPED_STATUS

PROGRAM = Path(__file__).with_name("tiny_spec.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    run_dir, lines = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    command = [sys.executable, str(PROGRAM), str(run_dir), "train.steps=100000", "train.save_every=0"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (lines.exists() and len(lines.read_text().splitlines()) >= 3) and process.poll() is None:
            assert time.monotonic() < deadline, "no step was logged"
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == STOPPED_STATUS == 75, errors
    assert "stopped on request after step" in errors
    latest = find_latest(run_dir / "checkpoints")
    assert latest is not None
    stopped = int(latest.name.removeprefix("step-"))
    assert stopped >= 3
    assert run_training(tiny_spec(run_dir, f"train.steps={stopped + 2}", "train.save_every=0")).step == stopped + 2
    assert [line["step"] for line in measured(run_dir)] == list(range(1, stopped + 3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same spec in one process; and in two that torchrun starts, then from step 3 in one."""
    base = tmp_path_factory.mktemp("runs")
    run_training(tiny_spec(base / "one", *VALIDATION))
    command = [sys.executable, *TORCHRUN, str(PROGRAM), str(base / "two"), *VALIDATION, "train.steps=3"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run_training(tiny_spec(base / "two", *VALIDATION))
    return base / "one", base / "two"


@pytest.mark.long
def test_two_processes_learn_what_one_does_and_one_goes_on(runs: tuple[Path, Path]) -> None:
    one, two = (measured(run_dir) for run_dir in runs)
    assert len(one) == len(two) == 6
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_two_processes_make_and_say_what_one_does(runs: tuple[Path, Path]) -> None:
    folders = [run_dir / "samples" / "step-00000003" for run_dir in runs]
    one, two = (read_audio(folder / "00-a-sine.wav")[0] for folder in folders)
    assert abs(one - two).max() < 2e-3 < abs(one).max()
    said = [[json.loads(line) for line in (folder / "descriptions.jsonl").read_text().splitlines()] for folder in folders]
    assert [line["clip"] for line in said[0]] == [line["clip"] for line in said[1]]


@pytest.mark.long
def test_the_losses_of_two_processes_are_those_of_one_over_twenty_steps(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "one", "train.steps=20"))
    command = [sys.executable, *TORCHRUN, str(PROGRAM), str(tmp_path / "two"), "train.steps=20"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = (measured(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 20
    for name in ("loss/ce", "loss/velocity"):
        assert max(abs(a[name] - b[name]) for a, b in zip(one, two, strict=True)) <= 1e-5
