"""Under torchrun: a mistake is told once, a rank's own mistake is told by it, a signal saves, and counts are of all ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resuming import broken_folder
from test_run import measured
from tiny_spec import tiny_spec
from tiny_training import alone

from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError
from soundomni.core.spec.load import dump_spec
from soundomni.train.checkpoint import find_latest
from soundomni.train.parallel import World

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "soundomni", "train"]


def command(tmp_path: Path, *overrides: str) -> list[str]:
    config = tmp_path / "spec.yaml"
    config.write_text(dump_spec(tiny_spec(tmp_path / "run", *overrides)))
    return [*TORCHRUN, "--config", str(config)]


def told(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if "soundomni: " in line]


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({}, 1),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 1),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 0),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 0),
        ({"RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "16"}, 1),
        ({"RANK": "1"}, 1),
        ({"LOCAL_RANK": "3"}, 1),
    ],
)
def test_a_mistake_of_the_user_is_told_by_one_process_of_a_node(
    environment: dict[str, str], lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--config", "nowhere"]) == 2
    assert len(told(capsys.readouterr().err)) == lines


def test_what_a_rank_met_alone_is_told_by_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(world: World) -> None:
        with world.own_errors():
            raise CheckpointError("a shard is gone")

    for world, expected in ((World(1, 2, alone().device), "soundomni: error: a shard is gone (on rank 1)\n"), (alone(), "")):
        monkeypatch.setattr("soundomni.cli.train.run", lambda args, overrides, world=world: run(world))
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["train", "--config", "nano"]) == 2
        assert capsys.readouterr().err == expected


@pytest.mark.long
def test_torchrun_shows_a_mistake_once(tmp_path: Path) -> None:
    arguments = command(tmp_path)
    for override in ("--train.optimizer.lr=-1", "--model.backbone.num_heads=5"):
        done = subprocess.run([*arguments, override], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
        assert done.returncode != 0
        assert len(told(done.stderr)) == 1, done.stderr


@pytest.mark.long
def test_a_signal_to_torchrun_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run_dir, lines = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    arguments = command(tmp_path, "train.steps=100000", "train.save_every=0")
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (lines.exists() and len(lines.read_text().splitlines()) >= 3) and process.poll() is None:
            assert time.monotonic() < deadline, "no step was logged"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: to torchrun, which passes it on, and to its workers
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    latest = find_latest(run_dir / "checkpoints")
    assert latest is not None, errors
    stopped = int(latest.name.removeprefix("step-"))
    assert stopped >= 3 and f"after step {stopped} and saved" in errors
    done = subprocess.run([*arguments, f"--train.steps={stopped + 2}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"resuming from step {stopped} of checkpoint") == 1
    assert [line["step"] for line in measured(run_dir)] == list(range(1, stopped + 3))


@pytest.mark.long
def test_unreadable_clips_are_judged_over_all_ranks(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "sounds", good=8, bad=4)
    arguments = command(tmp_path, folder, "data.skip_limit=0.05", "train.steps=60")
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    lines = told(done.stderr)
    assert len(lines) == 1 and "clips could not be read, more than data.skip_limit = 0.05 allows: mine:" in lines[0], done.stderr
