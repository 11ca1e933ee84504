"""A run directory has one owner: others are refused, what a dead one left is taken over, and a directory that goes is noticed."""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from test_run import measured
from tiny_spec import tiny_spec
from torch import nn

from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.interfaces import Tracker
from soundomni.core.spec.schema import Slot, Spec
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.ema import EMA
from soundomni.train.export import load_run
from soundomni.train.run import run_training
from soundomni.train.run_directory.opening import Existing
from soundomni.train.run_directory.owner import FILE_NAME, Claim, Owner


def claim(**changes: object) -> Claim:
    here = {"host": socket.gethostname(), "pid": os.getpid(), "boot": "", "started": ""}
    return Claim(**{**here, **changes})  # type: ignore[arg-type]


def leave(directory: Path, left: Claim) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE_NAME).write_text(json.dumps(asdict(left)))


def present() -> dict[str, object]:
    """Of this process."""
    stat = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()
    return {"boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "started": stat[19]}


def test_a_second_owner_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "run"
    with Owner(directory) as owner:
        assert owner.is_held() and owner.find() == directory
        with pytest.raises(CheckpointError) as caught:
            Owner(directory)
        message = str(caught.value)
        assert f"process {os.getpid()} on host {socket.gethostname()} trains in it" in message and "\n" not in message
        assert message.endswith(f"remove '{directory / FILE_NAME}'")
    assert not directory.exists(), "nothing was written in it"
    with Owner(directory):
        (directory / "kept").write_text("")
    assert [path.name for path in directory.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "left",
    [
        claim(pid=2**22 + 1, boot="another"),
        claim(boot="before this machine was started again"),
        claim(**{**present(), "started": "1"}),
        claim(**{**present(), "pid": 2**22 + 1}),
    ],
    ids=["long ago", "rebooted", "the id was given to another process", "killed"],
)
def test_what_a_dead_process_of_this_machine_left_is_taken_over_at_once(tmp_path: Path, left: Claim) -> None:
    leave(tmp_path, left)
    with Owner(tmp_path, watch_seconds=3600):
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", '{"pid": 5}', "\0" * 99])
def test_a_file_that_says_nothing_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with Owner(tmp_path) as owner:
        assert owner.is_held()


def test_the_file_of_another_host_is_watched(tmp_path: Path) -> None:
    other = claim(host="elsewhere", boot="its own")
    leave(tmp_path, other)
    with Owner(tmp_path, watch_seconds=0.2) as owner:
        assert owner.is_held(), "it was silent"
    leave(tmp_path, other)
    beats = threading.Timer(0.3, leave, (tmp_path, claim(host="elsewhere", boot="its own", beat=1)))
    beats.start()
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} on host elsewhere trains in it"):
        Owner(tmp_path, watch_seconds=30)
    beats.join()
    assert (tmp_path / FILE_NAME).exists(), "what another process holds stays"


def test_a_killed_process_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        Owner(tmp_path)
        os.write(writer, b"1")
        time.sleep(99)
        os._exit(0)
    assert os.read(reader, 1) == b"1"
    with pytest.raises(CheckpointError, match=f"process {child} on host"):
        Owner(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with Owner(tmp_path) as owner:
        assert owner.is_held()


def test_of_many_that_start_at_once_one_wins(tmp_path: Path) -> None:
    """Whoever ends removes the file, so that others may have opened one that is gone."""
    barrier, held, most, refused = threading.Barrier(8), [0], [0], [0]

    def start() -> None:
        barrier.wait()
        for _ in range(20):
            try:
                with Owner(tmp_path / "run"):
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                    held[0] -= 1
            except CheckpointError:
                refused[0] += 1

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and refused[0] > 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_file_says_who_owns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fails(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)
    with Owner(tmp_path) as owner:
        with pytest.raises(CheckpointError, match="trains in it"):
            Owner(tmp_path)
        assert owner.is_held()


def test_where_locks_are_granted_to_everybody_the_file_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)
    with Owner(tmp_path, refresh_seconds=0.05) as owner:
        rival = claim(host="elsewhere", boot="its own")
        leave(tmp_path, rival)
        owner._thread.join(10)
        assert owner.rival == rival and not owner.is_held()


def test_a_run_that_is_owned_is_neither_continued_nor_removed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "train.steps=1"))
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with Owner(run_dir):
        for existing in get_args(Existing):
            with pytest.raises(CheckpointError, match=rf"'{run_dir}' is in use: process {os.getpid()} on host"):
                run_training(tiny_spec(run_dir, "train.steps=2"), existing=existing)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_run_that_fails_gives_its_directory_up(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="train.loss_weights"):
        run_training(tiny_spec(tmp_path / "run", "train.loss_weights={velocty: 2.0}"))
    assert not (tmp_path / "run").exists()
    missing = f"data.datasets={{toys: null, mine: {{source: {{class_path: audio-folder, init_args: {{path: '{tmp_path}/no'}}}}}}}}"
    with pytest.raises(Exception, match="no folder"):
        run_training(tiny_spec(tmp_path / "run", missing))
    assert not (tmp_path / "run" / FILE_NAME).exists()
    assert run_training(tiny_spec(tmp_path / "run", "train.steps=1")).finished


def delete(folder: Path) -> None:
    """Deletes a folder in which a checkpoint may be being written."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


class Meddler(Tracker):
    """Does something to the run directory after its third step was logged."""

    def __init__(self, *, run_dir: Path, spec: Spec, how: str = "") -> None:
        self._run_dir, self._how = run_dir, how

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step != 3:
            return
        moved = self._run_dir.with_name("moved")
        if self._how == "move":
            self._run_dir.rename(moved)
        elif self._how == "delete":
            delete(self._run_dir)
        elif self._how == "replace":
            self._run_dir.rename(moved)
            shutil.copytree(moved, self._run_dir)
        elif self._how == "unlock":
            (self._run_dir / FILE_NAME).unlink()
        elif self._how == "take":
            delete(self._run_dir)
            self._run_dir.mkdir()
            taken.append(Owner(self._run_dir))


taken: list[Owner] = []


def meddled(run_dir: Path, how: str) -> None:
    spec = tiny_spec(run_dir, "train.save_every=2", "train.steps=9")
    assert spec.train is not None
    tracker = Slot("test_owner.Meddler", {"how": how})
    run_training(replace(spec, train=replace(spec.train, trackers=[tracker])), trust_class_paths=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_training(tiny_spec(run_dir, "train.steps=9", "train.save_every=0"))
    return run_dir


def same_weights(one: Path, other: Path) -> bool:
    files = [path / "checkpoints" / "step-00000009" / "rank-00000.safetensors" for path in (one, other)]
    return files[0].read_bytes() == files[1].read_bytes()


def test_a_directory_that_is_deleted_is_made_again_and_ends_the_run(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(CheckpointError, match=rf"stopped after step 3 and saved: '{run_dir}' was deleted during .*; use the same command"):
        meddled(run_dir, "delete")
    assert load_run(run_dir, trust_class_paths=True)[1] == 3, "what was saved exports"
    run_training(tiny_spec(run_dir, "train.steps=9"))
    assert same_weights(run_dir, whole)


@pytest.mark.parametrize("how", ["move", "replace"])
def test_a_directory_that_is_moved_is_saved_in_and_ends_the_run(how: str, whole: Path, tmp_path: Path) -> None:
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    with pytest.raises(CheckpointError, match=rf"was moved to '{moved}' during the run; resume with --train.run_dir={moved}"):
        meddled(run_dir, how)
    assert run_dir.exists() == (how == "replace")
    assert not (moved / FILE_NAME).exists() and load_run(moved, trust_class_paths=True)[1] == 3
    run_training(tiny_spec(moved, "train.steps=9"))
    assert same_weights(moved, whole)
    assert [line["step"] for line in measured(moved)] == list(range(1, 10))


@pytest.mark.parametrize("how", ["delete", "move"])
def test_a_directory_that_goes_while_the_last_checkpoint_is_written_is_saved_in_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, write = tmp_path / "run", Checkpointer._write_files

    def late(self: Checkpointer, *args: Any) -> Any:
        if (tmp_path / "gone").exists():
            return write(self, *args)
        (tmp_path / "gone").touch()
        run_dir.rename(tmp_path / "moved") if how == "move" else shutil.rmtree(run_dir)
        return write(self, *args)

    monkeypatch.setattr(Checkpointer, "_write_files", late)
    with pytest.raises(CheckpointError, match=f"stopped after step 1 and saved: '{run_dir}' was {how}d"):
        run_training(tiny_spec(run_dir, "train.steps=1"))
    assert load_run(run_dir if how == "delete" else tmp_path / "moved")[1] == 1


def test_a_directory_that_moves_within_a_step_keeps_the_line_of_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = EMA.update

    def late(ema: EMA, module: nn.Module, **given: Any) -> None:
        if not (tmp_path / "moved").exists():
            (tmp_path / "run").rename(tmp_path / "moved")
        update(ema, module, **given)

    monkeypatch.setattr(EMA, "update", late)
    with pytest.raises(CheckpointError, match="stopped after step 1 and saved"):
        run_training(tiny_spec(tmp_path / "run"))
    assert [line["step"] for line in measured(tmp_path / "moved")] == [1]


def test_a_directory_that_is_deleted_in_part_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def partly(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink() if path.is_file() else None

    monkeypatch.setattr("test_owner.delete", partly)
    with pytest.raises(CheckpointError, match="was deleted during the run; use the same command to resume"):
        meddled(tmp_path / "run", "delete")
    assert load_run(tmp_path / "run", trust_class_paths=True)[1] == 3
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))] == ["step-00000002", "step-00000003"]


def test_a_lock_that_is_removed_is_made_again(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "soundomni"):
        meddled(tmp_path / "run", "unlock")
    assert "owner.json' was removed during the run, and has been written again" in caplog.text
    assert same_weights(tmp_path / "run", whole)


def test_a_directory_that_another_process_took_is_not_written(tmp_path: Path) -> None:
    try:
        with pytest.raises(CheckpointError, match="was deleted during the run, and cannot be created again: .* is in use"):
            meddled(tmp_path / "run", "take")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE_NAME]
    finally:
        taken.pop().release()


def test_srun_without_torchrun_leaves_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SpecError, match=r"SLURM_NTASKS is 2, but RANK is not set.*torchrun"):
        run_training(tiny_spec(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert find_latest(tmp_path / "run") is None


@pytest.mark.parametrize("text", ["[]", "notes of mine", '{"name": "Ada"}', "3"])
def test_what_somebody_else_wrote_is_not_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="was not written by a run; move it elsewhere, or choose another train.run_dir"):
        Owner(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == text


@pytest.mark.parametrize("target", ["precious.txt", "missing.txt"])
def test_a_link_in_its_place_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE_NAME).symlink_to(tmp_path / target)
    with pytest.raises(CheckpointError, match="is a link, which a run does not make; remove it"):
        Owner(tmp_path / "run")
    assert (tmp_path / "precious.txt").read_text() == "mine" and not (tmp_path / "missing.txt").exists()


def test_what_is_in_place_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "taken" / FILE_NAME).mkdir(parents=True)
    for name, what in (("file", "it is a file"), ("link", "it is a link to '.*gone', which is not there"), ("taken", "is a directory")):
        with pytest.raises(CheckpointError, match=f"{name}' cannot be written: .*{what}; set train.run_dir"):
            Owner(tmp_path / name)
