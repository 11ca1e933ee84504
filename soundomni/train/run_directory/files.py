"""Contents of a run directory: names, the run's id, and which files the run wrote, as a new run may only remove those.

| name | what it is |
|---|---|
| run.json | id of the run, which its checkpoints and the lines of metrics.jsonl also carry |
| owner.json | host and process of the run that is training here; removed when it ends |
| spec.yaml | the resolved spec |
| lock.json | plugin distributions, their versions and the slots that they fill |
| tokenizer.json | text tokens |
| start.yaml | the model that the run started from, if any: its spec, where its weights come from, and their commit |
| metrics.jsonl | one line per logged step |
| checkpoints/ | see checkpoint.py |
| trace.json | what `--profile` recorded, for chrome://tracing or Perfetto |
| samples/ | what validation makes |
| codec.safetensors | finished weights, if only a codec was trained: a file for its `weights` argument |
| inventory.jsonl | path and SHA-256 of each of these files, so that nothing else is removed |
| metrics-1.jsonl, samples-1/, … | files of earlier runs whose checkpoints were gone |
| checkpoints-1/, … | checkpoints of later steps than the one that `--from-step` went back to |
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError, shown, some
from soundomni.core.files.names import LOCK_FILE, SPEC_FILE
from soundomni.core.files.small_files import read_json
from soundomni.core.pretrained.start import CHECKPOINTS, KEPT_FILE
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.train.checkpoint import (
    FILE_NAMES,
    MANIFEST_FILE,
    POINTER_FILE,
    REMOVED,
    STATE_FILE,
    UNFINISHED,
    is_step_name,
    list_checkpoints,
    read_state,
    remove_checkpoint,
    run_of,
)
from soundomni.train.metrics_log import FILE_NAME as METRICS_FILE
from soundomni.train.metrics_log import RUN, read_metrics
from soundomni.train.run_directory.inventory import FILE_NAME as INVENTORY_FILE
from soundomni.train.run_directory.inventory import RUN_FILE, Inventory, digest, is_plain_file

SAMPLES, CODEC_FILE = "samples", "codec.safetensors"
TRACE_FILE = "trace.json"
TENSORBOARD, WANDB_FILE = "tensorboard", "wandb-id"
"""Files that SoundOmni's trackers leave; they would make one log of two runs."""
NOTED = (SPEC_FILE, LOCK_FILE, TOKENIZER_FILE, KEPT_FILE, CODEC_FILE, TRACE_FILE)
"""Files that belong to the run as long as they have the content that the inventory names."""

_SAMPLE = re.compile(r"(\d{2}-[a-z0-9-]+\.(wav|png)|prompts\.jsonl|descriptions\.jsonl)")
_EVENTS = "events.out.tfevents."


def new_run_id() -> str:
    """Return an id that no other run has."""
    return uuid.uuid4().hex[:16]


def read_run_id(directory: Path) -> str | None:
    """Return the id of the run in a directory: that in `run.json`, or else that of its newest checkpoint.

    Return None for a run made before there were ids, or if there is no run. Raise CheckpointError if `run.json` cannot
    be read.
    """
    file = directory / RUN_FILE
    if not file.exists():
        return next((run_of(path) for path in list_checkpoints(directory / CHECKPOINTS)), None)
    try:
        tree = read_json(file)
        run = tree.get(RUN) if isinstance(tree, dict) else None
        if not isinstance(run, str):
            raise ValueError(f'it holds {shown(tree)}; expected the id of the run, {{"{RUN}": "…"}}')
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {error}; remove it if the checkpoints next to it all belong to one run") from error
    return run


def is_run(directory: Path) -> bool:
    """Return whether a run was begun in a directory, or checkpoints of a run were put there."""
    complete = (all((path / name).is_file() for name in (MANIFEST_FILE, STATE_FILE)) for path in list_checkpoints(directory / CHECKPOINTS))
    return (directory / RUN_FILE).exists() or _is_lock(directory / LOCK_FILE) or any(complete)


def refuse_foreign(directory: Path) -> None:
    """Raise CheckpointError, which names them, if a directory without a run has files that a run would replace."""
    files = (*NOTED, METRICS_FILE, INVENTORY_FILE, WANDB_FILE, f"{CHECKPOINTS}/{POINTER_FILE}")
    names = [name for name in files if _exists(directory / name)]
    if names == [INVENTORY_FILE] and Inventory(directory).is_of_run_that_never_began():
        names = []
    for folder in (CHECKPOINTS, SAMPLES):
        names += [f"{folder}/{path.name}" for path in _list(directory / folder) if is_step_name(path.name)]
    # A run would write into the same log, and could not tell later which part of it is its own.
    names += [f"{TENSORBOARD}/{path.name}" for path in _list(directory / TENSORBOARD) if path.name.startswith(_EVENTS)]
    if names:
        raise CheckpointError(
            f"'{directory}' has {some(names)}, which does not belong to a run; move it elsewhere, or set another train.run_dir"
        )


def refuse_other_runs(directory: Path, run: str) -> None:
    """Raise CheckpointError, which names it, if a checkpoint belongs to another run."""
    for path in list_checkpoints(directory / CHECKPOINTS):
        if run_of(path) not in (None, run):
            raise CheckpointError(
                f"'{path}' belongs to run {run_of(path)}, but '{directory}' belongs to run {run}; move it elsewhere, or set "
                "another train.run_dir"
            )


def written(directory: Path) -> list[Path]:
    """Return everything that the run in a directory wrote, in the order to remove it: at any interruption, the rest is
    the same run, or none.

    Raises:
        CheckpointError: something else is where a new run would write, and the message names it; or something cannot be
            read.
    """
    try:
        files = _Written(directory)
        found = [*files.checkpoints(), *files.samples(), *files.trackers(), *files.top()]
    except OSError as error:
        raise CheckpointError(f"'{error.filename}' cannot be read: {error.strerror}; nothing was removed") from error
    if files.foreign:
        raise CheckpointError(
            f"'{directory}' has {some(files.foreign)}, which the run did not write, so nothing was removed; move it elsewhere, "
            "or set another train.run_dir"
        )
    return found


def remove(paths: list[Path]) -> None:
    """Remove files, checkpoints, and folders that are empty by then. Raise CheckpointError."""
    for path in paths:
        try:
            if path.parent.name == CHECKPOINTS and path.is_dir():
                remove_checkpoint(path)
            else:
                path.rmdir() if path.is_dir() else path.unlink()
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be removed: {error.strerror}; choose another train.run_dir") from error


class _Written:
    """A search of a run directory; things that the run has not written end up in `foreign`."""

    def __init__(self, directory: Path) -> None:
        self.foreign: list[str] = []
        self._directory = directory
        self._run = read_run_id(directory)
        self._inventory = Inventory(directory)

    def checkpoints(self) -> Iterator[Path]:
        """Yield checkpoints, the oldest first: as long as the newest exists, nothing has started over."""
        folder = self._directory / CHECKPOINTS
        unfinished: list[Path] = []
        steps: list[Path] = []
        for path in _list(folder):
            name = path.name
            if path.is_dir() and not path.is_symlink() and is_step_name(name.removeprefix(UNFINISHED).removeprefix(REMOVED)):
                (steps if is_step_name(name) else unfinished).append(path)
            elif name in (POINTER_FILE, f"{POINTER_FILE}.part") and is_plain_file(path):
                unfinished.append(path)
            else:
                self._refuse(path)
        for path in (*unfinished, *sorted(steps)):
            yield from self._checkpoint(path) if path.is_dir() else (path,)

    def samples(self) -> Iterator[Path]:
        """Yield folders of steps and their recorded files; in a folder without records, as after a kill, files named by
        validation."""
        for folder in _list(self._directory / SAMPLES):
            if not (folder.is_dir() and not folder.is_symlink() and is_step_name(folder.name)):
                self._refuse(folder)
                continue
            noted = self._inventory.knows_any_in(folder)
            for path in _list(folder):
                if self._inventory.is_ours(path) if noted else (is_plain_file(path) and _SAMPLE.fullmatch(path.name)):
                    yield path
                else:
                    self._refuse(path)
            yield folder

    def trackers(self) -> Iterator[Path]:
        """Yield files with names that no other program uses; other files in these folders stay."""
        for path in _list(self._directory / TENSORBOARD):
            if path.name.startswith(_EVENTS) and is_plain_file(path):
                yield path
        if is_plain_file(self._directory / WANDB_FILE):
            yield self._directory / WANDB_FILE

    def top(self) -> Iterator[Path]:
        """Yield the files in the run directory itself; the one that makes it a run comes last."""
        for name in NOTED:
            path = self._directory / name
            if not _exists(path):
                continue
            if self._inventory.is_ours(path) if self._has_inventory else self._is_older(path):
                yield path
            else:
                self._refuse(path)
        log = self._directory / METRICS_FILE
        if _exists(log):
            if is_plain_file(log) and all(entry.get(RUN) in (None, self._run) for entry in read_metrics(log)) and _is_log(log):
                yield log
            else:
                self._refuse(log)
        yield from (path for name in (INVENTORY_FILE, RUN_FILE) if _exists(path := self._directory / name))

    @property
    def _has_inventory(self) -> bool:
        return (self._directory / RUN_FILE).exists()

    def _is_older(self, path: Path) -> bool:
        """Return whether a file is from a run made before there was an inventory, by its name, or the tokenizer's by
        its content."""
        checkpoints = list_checkpoints(self._directory / CHECKPOINTS)
        if path.name == TOKENIZER_FILE and checkpoints and (checkpoints[0] / STATE_FILE).exists():
            return is_plain_file(path) and read_state(checkpoints[0]).get("tokenizer") == digest(path)
        return is_plain_file(path)

    def _checkpoint(self, folder: Path) -> Iterator[Path]:
        if run_of(folder) not in (None, self._run):
            self._refuse(folder)
            return
        foreign = [path for path in _list(folder) if not (is_plain_file(path) and FILE_NAMES.fullmatch(path.name))]
        for path in foreign:
            self._refuse(path)
        if not foreign:
            yield folder

    def _refuse(self, path: Path) -> None:
        self.foreign.append(path.relative_to(self._directory).as_posix())


def _is_lock(path: Path) -> bool:
    """Return whether a file is the plugin lock of a run."""
    try:
        entries: Any = read_json(path)
        return isinstance(entries, list) and all({"distribution", "version"} <= set(entry) for entry in entries)
    except (OSError, ValueError, TypeError):
        return False


def _is_log(path: Path) -> bool:
    return path.stat().st_size == 0 or next(iter(read_metrics(path)), None) is not None


def _list(folder: Path) -> list[Path]:
    """Return the contents of a folder, sorted; nothing if there is no such folder.

    Raise OSError if it cannot be read.
    """
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
