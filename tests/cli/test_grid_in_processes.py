"""A grid is divided over the processes of torchrun, and nobody can tell from the files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from two_processes import run_in_two_processes

from soundomni.cli.generate import is_one_of_several, own_device
from soundomni.cli.main import main
from soundomni.core.errors import SpecError


def test_a_grid_in_two_processes_writes_what_one_process_writes(tmp_path: Path) -> None:
    """The same files with the same bytes, in a folder that has files already."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: [two clicks, white noise, a rising chirp]\nseconds: [0.3, 0.5]\nseed: [1, 2]\nsteps: 2\n")
    command = ["generate", "--model", "nano", "--grid", str(grid), "--batch", "2", "--no-pictures", "--out"]
    program = tmp_path / "program.py"
    program.write_text("import sys\nfrom soundomni.cli.main import main\nsys.exit(main(sys.argv[1:]))\n")
    alone, together = tmp_path / "alone", tmp_path / "together"
    for out in (alone, together):
        assert main(["generate", "--model", "nano", "--prompt", "two clicks", "--steps", "1", "--no-pictures", "--out", str(out)]) == 0
    assert main([*command, str(alone)]) == 0
    run_in_two_processes(program, *command, str(together))
    names = sorted(path.name for path in alone.iterdir())
    assert len(names) == 14 and names == sorted(path.name for path in together.iterdir())
    assert all((alone / name).read_bytes() == (together / name).read_bytes() for name in names)


FAILING = """
import os, sys
from soundomni.cli import generate
from soundomni.cli.main import main

write = generate._write

def full(request, *arguments, **options):
    if request.prompt == "white noise" and request.seed == 2:
        raise OSError(28, "No space left on device")
    return write(request, *arguments, **options)

generate._write = full
sys.exit(0 if main(sys.argv[1:]) == 2 else 3)
"""


def test_clips_keep_their_lines_if_a_process_fails(tmp_path: Path) -> None:
    """Those of its own batch, of its earlier batches and of the other process."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: [two clicks, white noise, a rising chirp]\nseconds: 0.3\nseed: [1, 2]\nsteps: 1\n")
    program = tmp_path / "program.py"
    program.write_text(FAILING)
    out = tmp_path / "out"
    run_in_two_processes(program, "generate", "--model", "nano", "--grid", str(grid), "--batch", "2", "--no-pictures", "--out", str(out))
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(path.name for path in out.glob("*.wav"))
    assert [(line["prompt"], line["seed"]) for line in lines if line["prompt"] == "white noise"] == [("white noise", 1)]
    assert len(lines) == 5


STOPPING = """
import contextlib, io, os, pathlib, signal, sys
from soundomni.cli import generate
from soundomni.cli.main import main

make, mine = generate.generate_files, os.environ["RANK"] == "1"
*arguments, how, told = sys.argv[1:]

def stopping(*arguments, **options):
    if mine and how == "killed":
        os._exit(0)
    if mine and how == "failed":
        raise MemoryError("no memory left")
    yield from make(*arguments, **options)
    if mine:
        os.kill(os.getpid(), signal.SIGTERM)

generate.generate_files = stopping
errors = io.StringIO()
with contextlib.redirect_stderr(errors):
    status = main(arguments)
if mine and how == "terminated":
    sys.exit(0 if status == 130 else 20 + status)
assert mine or told in errors.getvalue(), errors.getvalue()
threads = [name.read_text() for name in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads
sys.exit(0 if status == (1 if mine else 2) else 10 + status)
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("killed", "another process has stopped"),
        ("failed", "process with RANK 1 has failed"),
        ("terminated", "another process has stopped"),
    ],
)
def test_a_process_that_ends_early_is_one_line_for_the_others(how: str, told: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(STOPPING)
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text("prompt: [two clicks, white noise]\nseconds: 0.3\nsteps: 1\n")
    command = ["generate", "--model", "nano", "--grid", str(grid), "--batch", "1", "--no-pictures", "--out", str(out), how, told]
    run_in_two_processes(program, *command)
    clips = 2 if how == "terminated" else 1
    assert len((out / "prompts.jsonl").read_text().splitlines()) == len(list(out.glob("*.wav"))) == clips
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("variables", "several"),
    [({"WORLD_SIZE": "2"}, False), ({"WORLD_SIZE": "two"}, False), ({}, False), ({"RANK": "0", "WORLD_SIZE": "two"}, None)],
)
def test_only_what_torchrun_sets_makes_one_of_several(
    variables: dict[str, str], several: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match="WORLD_SIZE is") if several is None else nullcontext():
        assert is_one_of_several() is several


def test_an_error_that_one_process_has_is_printed_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its disk may lack a model that others have."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "empty").mkdir()
    command = ["generate", "--model", str(tmp_path / "empty"), "--prompt", "x", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "(RANK 1)" in capsys.readouterr().err


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says which one is missing, before it loads the model."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    assert own_device("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device("cuda") == "cuda:1" and own_device("cuda:0") == "cuda:0"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(SpecError, match="there is no device 'cuda:1' here"):
        own_device("cuda")
