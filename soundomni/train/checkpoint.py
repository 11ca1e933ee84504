"""Checkpoints that are either complete or absent.

    checkpoints/
      latest                     name of the newest complete checkpoint, for people and tools
      step-00001000/
        manifest.json            SHA-256 and size of every other file
        state.json               progress and identity of the run
        rank-00000.safetensors   tensors, see shards.py
        rank-00000.json

A checkpoint is written under another name, flushed to disk, given its manifest and then renamed. A thread writes it
from a copy in host memory. On several nodes, the directory must be on a file system that all of them see.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch.distributed as dist
from torch import Tensor

from soundomni.core.errors import CheckpointError, shown
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.small_files import read_json
from soundomni.core.files.whole_files import write_whole
from soundomni.core.pretrained.start import STEP, is_step
from soundomni.train.parallel import World
from soundomni.train.run_directory.inventory import digest
from soundomni.train.shards import MOST_INDEX_BYTES, Slice, stage, write_rank

STATE_FILE, MANIFEST_FILE, POINTER_FILE = "state.json", "manifest.json", "latest"
UNFINISHED, REMOVED = ".writing-", ".removed-"
"""Prefixes of the names of checkpoints that are being written or removed."""
FILE_NAMES = re.compile(r"manifest\.json|state\.json|rank-\d{5,}\.(safetensors|json)")
"""Names of the files in a checkpoint."""
MOST_RANKS = 1_000_000

logger = logging.getLogger(__name__)


class Checkpointer:
    """Writes the checkpoints of a run, one at a time, in the background.

    Args:
        directory: created if it is missing.
        world: its ranks write together.
        keep: number of newest complete checkpoints to keep, at least 1.
        keep_every: also keep the checkpoints of steps that are multiples of this; 0 for none.
        run: id of the run; checkpoints of other runs are neither replaced nor removed. None for a run without an id.

    Attributes:
        spared: a step whose checkpoint is also kept; None for none.
    """

    spared: int | None = None

    def __init__(self, directory: Path, world: World, *, keep: int, keep_every: int = 0, run: str | None = None) -> None:
        self.directory = directory
        self._run = run
        self._world = world
        self._keep = max(1, keep)
        self._keep_every = keep_every
        self._group = dist.new_group(backend="gloo") if world.mesh is not None else None
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        if world.is_main:
            for leftover in [*directory.glob(f"{UNFINISHED}{STEP}*"), *directory.glob(f"{REMOVED}{STEP}*")]:
                shutil.rmtree(leftover, ignore_errors=True)
        self._gather(None)  # no rank writes before the leftovers are gone

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        *,
        rank_state: Mapping[str, Any],
        state: Mapping[str, Any],
        best: int | None = None,
    ) -> None:
        """Copy the tensors and start to write them as the checkpoint of `step`, after the previous one is complete.

        Args:
            tensors: those of this rank; of sharded ones, its slices.
            rank_state: plain JSON data of this rank.
            state: plain JSON data of the run; rank 0's is written.
            best: a step whose checkpoint is also kept.

        Raises:
            CheckpointError: a rank could not write the previous checkpoint.
        """
        self.wait()
        # the writer reports the error, and does not create the parents, which may have been moved
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
        staged = stage(tensors, rank=self._world.rank)
        arguments = (step, staged, json.loads(json.dumps(dict(rank_state))), json.loads(json.dumps(dict(state))), best)
        self._thread = threading.Thread(target=self._write, args=arguments, name=f"checkpoint-{step}")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete. Raise CheckpointError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self, step: int, staged: Mapping[str, Slice], rank_state: Mapping[str, Any], state: Mapping[str, Any], best: int | None
    ) -> None:
        unfinished = self.directory / f"{UNFINISHED}{step_name(step)}"
        try:
            written = self._write_files(unfinished, staged, rank_state, state)
            self._agree(written.get("error"))
            problem = None
            files = {name: entry for rank_files in self._gather(written["files"]) for name, entry in rank_files.items()}
            if self._world.is_main:
                problem = self._publish(unfinished, step, files, best)
            self._agree(problem)
        except CheckpointError as error:
            if self._world.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
            self._error = error
        except Exception as error:  # a thread has no caller: any error surfaces at the next save
            self._error = CheckpointError(f"the checkpoint of step {step} could not be written: {error}")

    def _write_files(
        self, directory: Path, staged: Mapping[str, Slice], rank_state: Mapping[str, Any], state: Mapping[str, Any]
    ) -> dict[str, Any]:
        try:
            directory.mkdir(exist_ok=True)
            files = write_rank(directory, self._world.rank, staged, rank_state)
            if self._world.is_main:
                files.append(directory / STATE_FILE)
                files[-1].write_text(json.dumps({**state, "num_ranks": self._world.size}, indent=2), encoding="utf-8")
            return {"files": {path.name: _flush(path) for path in files}}
        except Exception as error:  # the other ranks are waiting to hear of any error
            return {"error": f"the checkpoint in '{self.directory}' could not be written: {error}"}

    def _publish(self, unfinished: Path, step: int, files: Mapping[str, Any], best: int | None) -> str | None:
        """Make the checkpoint visible and remove old ones; return what went wrong, if anything."""
        final = self.directory / step_name(step)
        try:
            manifest = unfinished / MANIFEST_FILE
            manifest.write_text(json.dumps({"format": 1, "files": files}, indent=2), encoding="utf-8")
            _flush(manifest)
            _flush_directory(unfinished)
            if not self._is_own(final):
                return f"the checkpoint '{final}' belongs to run {run_of(final)}, not to this one. Move it elsewhere"
            if final.exists():  # left by a damaged attempt, or by an earlier run of the same steps
                remove_checkpoint(final)
            unfinished.rename(final)
            _flush_directory(self.directory)
            point_at(self.directory, final.name)
            self._prune(step, best)
        except OSError as error:
            return f"the checkpoint '{final}' could not be completed: {error}"
        return None

    def _prune(self, step: int, best: int | None) -> None:
        done = [path for path in list_checkpoints(self.directory) if step_of(path) <= step and self._is_own(path)]
        for path in done[self._keep :]:
            if step_of(path) not in (best, self.spared) and not (self._keep_every and step_of(path) % self._keep_every == 0):
                remove_checkpoint(path)

    def _is_own(self, path: Path) -> bool:
        return self._run is None or run_of(path) in (None, self._run)

    def _agree(self, problem: str | None) -> None:
        problems = [found for found in self._gather(problem) if found is not None]
        if problems:
            raise CheckpointError(problems[0])

    def _gather(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._world.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def step_name(step: int) -> str:
    """Return the name of the directory of a step's checkpoint."""
    return f"{STEP}{step:08d}"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's directory."""
    return int(path.name.removeprefix(STEP))


def is_step_name(name: str) -> bool:
    """Return whether a directory of this name is a checkpoint, or what validation made at a step."""
    return is_step(name)


def run_of(path: Path) -> str | None:
    """Return the id of the run that a checkpoint belongs to; None if it names none, or cannot be read."""
    try:
        run = read_json(path / STATE_FILE, most_bytes=MOST_INDEX_BYTES).get("run")
    except (OSError, ValueError, AttributeError):
        return None
    return run if isinstance(run, str) else None


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in `directory`, newest first, whether or not they are intact."""
    found = [p for p in directory.glob(f"{STEP}*") if p.is_dir() and is_step_name(p.name)]
    return sorted(found, key=step_of, reverse=True)


def find_step(directory: Path, step: int, world: World | None = None, *, run: str | None = None) -> Path:
    """Return the checkpoint of a step. With a world, every rank must call this, and checks its share of the files.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to a run other than `run`.
    """
    steps = {step_of(found): found for found in reversed(list_checkpoints(directory))}
    if step not in steps:
        known = f"expected {'one of ' if len(steps) > 1 else ''}{', '.join(map(str, steps))}" if steps else "it has no checkpoints at all"
        raise CheckpointError(f"'{directory}' has no checkpoint of step {step}; {known}")
    path = steps[step]
    problem = _problem(path, world, run)
    if problem is not None:
        raise CheckpointError(f"the checkpoint '{path}' {problem}. Choose another step")
    return path


def find_latest(directory: Path, world: World | None = None, *, run: str | None = None) -> Path | None:
    """Return the newest intact checkpoint, or None if there are no checkpoints. A warning names each damaged one.

    With a world, every rank must call this, and checks its share of the files. With a run id, checkpoints of other runs
    are skipped, with a warning for each; those without an id are older than ids, and are accepted.

    Raises:
        CheckpointError: there are checkpoints, but none is intact, or none belongs to the run.
    """
    candidates = list_checkpoints(directory)
    problem: str | None = None
    for path in candidates:
        problem = _problem(path, world, run)
        if problem is None:
            return path
        logger.warning("checkpoint '%s' %s; trying the previous one", path, problem)
    if len(candidates) == 1:
        raise CheckpointError(f"the only checkpoint in '{directory}' {problem}")
    if candidates:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in '{directory}' is intact; the oldest {problem}")
    return None


def _problem(path: Path, world: World | None, run: str | None) -> str | None:
    """Return why a checkpoint cannot be used, the same on every rank, or None."""
    found = damage(path, part=(world.rank, world.size) if world else (0, 1))
    mine = f"is damaged ({found})" if found is not None else None
    if run is not None and run_of(path) not in (None, run):
        mine = f"belongs to run {run_of(path)}, not to run {run}"
    return next((p for p in (world.gather(mine) if world else [mine]) if p is not None), None)


def damage(path: Path, *, part: tuple[int, int] = (0, 1)) -> str | None:
    """Return what is wrong with a checkpoint's files, or None.

    Only files `part[0]`, `part[0] + part[1]`, … of its manifest are checked.
    """
    try:
        files = read_json(path / MANIFEST_FILE)["files"]
        entries = sorted((name, entry["sha256"]) for name, entry in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"its {MANIFEST_FILE} cannot be read: {error}"
    for name in files:
        if PurePath(name).name != name or "\\" in name:
            return f"its {MANIFEST_FILE} lists {shown(name)}, which is not the name of a file next to it"
    if STATE_FILE not in files:
        return f"its {MANIFEST_FILE} does not list {STATE_FILE}"
    for name, expected in entries[part[0] :: part[1]]:
        try:
            if digest(path / name) != expected:
                return f"{name} has changed since it was written: its SHA-256 differs"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def point_at(directory: Path, name: str) -> None:
    """Write the pointer file in one step."""
    write_whole(directory / POINTER_FILE, f"{name}\n", part=f"{POINTER_FILE}.part", durable=True)
    _flush_directory(directory)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, or its remains; it is renamed before the first file goes. Raise OSError on failure."""
    doomed = path
    if is_step_name(path.name):
        doomed = path.with_name(f"{REMOVED}{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's run state. Raise CheckpointError on failure."""
    state = read_object(path / STATE_FILE, most_bytes=MOST_INDEX_BYTES)
    ranks = state.get("num_ranks")
    if type(ranks) is not int or not 1 <= ranks <= MOST_RANKS:
        raise CheckpointError(f"'{path / STATE_FILE}' says that {shown(ranks)} ranks wrote it; expected a whole number of at least 1")
    return state


def _flush(path: Path) -> dict[str, Any]:
    """Flush a file to disk and return its manifest entry, computed from what is read back."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"sha256": digest(path), "bytes": path.stat().st_size}


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
