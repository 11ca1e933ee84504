"""What the environment says about processes is checked before anything waits for another process: one line each, never a hang."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_spec import tiny_spec

from soundomni.cli.main import main
from soundomni.core.errors import SpecError
from soundomni.core.spec.load import dump_spec
from soundomni.core.spec.schema import ParallelSpec
from soundomni.train.launch import LAUNCHERS, Launch, read_launch
from soundomni.train.parallel import open_world

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

WRONG = [
    ({"RANK": "0"}, "RANK is set, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not. Start the processes with torchrun"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "RANK is set, but MASTER_ADDR is not"),
    (WHOLE | {"MASTER_PORT": ""}, "RANK is set, but MASTER_PORT is not"),
    (WHOLE | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'; expected a whole number of at least 0"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'; expected a whole number of at least 0"),
    (WHOLE | {"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'; expected"),
    (WHOLE | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2; expected 0 to 1, because WORLD_SIZE is 2"),
    (WHOLE | {"RANK": "2"}, "RANK is 2; expected 0 to 1, because WORLD_SIZE is 2"),
    (WHOLE | {"RANK": "1.0"}, "RANK is '1.0'; expected a whole number"),
    (WHOLE | {"RANK": "-1"}, "RANK is '-1'; expected"),
    (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a whole number of at least 1"),
    (WHOLE | {"WORLD_SIZE": "-3"}, "WORLD_SIZE is '-3'; expected"),
    (WHOLE | {"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'; expected"),
    (WHOLE | {"WORLD_SIZE": "9" * 5000}, "expected a whole number of at least 1"),
    ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, but RANK is not set"),
    (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; expected a whole number of at least 1"),
    (WHOLE | {"MASTER_PORT": "70000"}, "MASTER_PORT is 70000; expected 1 to 65535"),
    ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS is 2, but RANK is not set, so each of these processes would train the same run. Let srun"),
    ({"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE is 8, but RANK is not set"),
]


@pytest.mark.parametrize(("environment", "message"), WRONG)
def test_an_environment_that_describes_no_group_is_refused_in_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as caught, open_world(ParallelSpec(), environment=environment):
        pass
    line = str(caught.value)
    assert message in line and "torchrun" in line and "\n" not in line
    assert caught.value.__notes__, "each process reports its own mistake"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": ""}, None),
        (WHOLE, Launch(0, 2)),
        (WHOLE | {"SLURM_NTASKS": "4", "RANK": "1"}, Launch(1, 2)),
        ({name: value for name, value in WHOLE.items() if name != "LOCAL_RANK"}, Launch(0, 2)),
    ],
)
def test_what_torchrun_or_nothing_sets_is_read(environment: dict[str, str], expected: Launch | None) -> None:
    assert read_launch(environment) == expected


def test_more_local_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(SpecError, match=r"LOCAL_RANK is 1, but this machine has 1 GPUs. Start one process per GPU"),
        open_world(ParallelSpec(), environment=WHOLE | {"LOCAL_RANK": "1"}),
    ):
        pass


@pytest.mark.parametrize(
    "environment", [{"RANK": "3"}, {"LOCAL_RANK": "x"}, WHOLE | {"RANK": "5"}, {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}]
)
def test_the_command_says_so_on_every_rank_and_touches_nothing(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text(dump_spec(tiny_spec(tmp_path / "run")))
    for name in (*WHOLE, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--config", str(tmp_path / "spec.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("soundomni: error: ") and told.count("\n") == 1 and "torchrun" in told
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    code = (
        "import json, socket, sys\n"
        "from soundomni.core.errors import SpecError\n"
        "from soundomni.core.spec.schema import ParallelSpec\n"
        "from soundomni.train.parallel import open_world\n"
        "taken = socket.create_server(('127.0.0.1', 0))\n"
        f"environment = {WHOLE!r} | {{'MASTER_PORT': str(taken.getsockname()[1])}}\n"
        "import os; os.environ.update(environment)\n"
        "try:\n"
        "    with open_world(ParallelSpec(), environment=environment): pass\n"
        "except SpecError as error: print(json.dumps(str(error)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    line = json.loads(done.stdout)
    assert line.startswith("the processes cannot meet at MASTER_ADDR and MASTER_PORT, 127.0.0.1:") and "\n" not in line


def test_a_closed_group_has_no_threads_left_although_its_mesh_is_still_there() -> None:
    """Caches of DTensor keep the mesh. A thread that runs on as the interpreter ends can abort the process."""
    code = (
        "import os, pathlib, socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as probe: port = str(probe.getsockname()[1])\n"
        f"os.environ.update({WHOLE!r} | {{'WORLD_SIZE': '1', 'MASTER_PORT': port, 'CUDA_VISIBLE_DEVICES': ''}})\n"
        "from soundomni.core.spec.schema import ParallelSpec\n"
        "from soundomni.train.parallel import open_world\n"
        "def threads(): return [name.read_text() for name in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "with open_world(ParallelSpec()) as world:\n"
        "    world.gather(1)\n"
        "    running = threads()\n"
        "assert world.mesh is not None and (not running or any('gloo' in name for name in running)), running\n"
        "assert not any('gloo' in name for name in threads()), threads()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
