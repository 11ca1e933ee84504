"""Opens the directory of a run: only for its owner, and never over other people's files.

See files.py for its contents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from soundomni.core.errors import CheckpointError, SoundOmniError, SpecError, amount, did_you_mean
from soundomni.core.files.names import LOCK_FILE, SPEC_FILE
from soundomni.core.files.small_files import read_json
from soundomni.core.pretrained.start import CHECKPOINTS, KEPT_FILE, has_checkpoint
from soundomni.core.spec import registry
from soundomni.core.spec.load import dump_spec, load_spec
from soundomni.core.spec.provenance import read_record, record, settle_names
from soundomni.core.spec.schema import Spec
from soundomni.core.spec.values import convert, field_types
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.data.digest import Listing
from soundomni.train.checkpoint import find_latest, find_step, list_checkpoints, point_at, read_state, step_name, step_of
from soundomni.train.loop import Progress
from soundomni.train.metrics_log import FILE_NAME as METRICS_FILE
from soundomni.train.metrics_log import RUN
from soundomni.train.parallel import World
from soundomni.train.reporting import tracker_files
from soundomni.train.run_directory.files import (
    NOTED,
    SAMPLES,
    TENSORBOARD,
    WANDB_FILE,
    is_run,
    new_run_id,
    read_run_id,
    refuse_foreign,
    refuse_other_runs,
    remove,
    written,
)
from soundomni.train.run_directory.inventory import RUN_FILE, Inventory, free_name, set_aside
from soundomni.train.run_directory.owner import Owner
from soundomni.train.run_directory.spec_changes import check_steps, check_unchanged
from soundomni.train.terminal import tell

Existing = Literal["resume", "refuse", "overwrite"]
"""What to do if the run directory holds a run: resume it, refuse, or remove it first."""

_LATER = ("measured", "best")
"""Entries of the progress: what checkpoints of earlier versions do not have."""
_NEEDED: dict[str, Any] = {
    **{f"progress.{item.name}": field_types(Progress)[item.name] for item in fields(Progress) if item.name not in _LATER},
    "progress.data.mixture.seed": int,
    "progress.data.mixture.sizes": dict[str, int],
    "progress.data.mixture.draws": int,
    "progress.data.mixture.cursors": dict[str, int],
    "progress.data.pool": list[tuple[str, int]],
    "ema_updates": int,
    "tokenizer": str,
    "spec.train.steps": int,
}
"""Keys that the state of a checkpoint must have for a run to go on, and their types."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """A run that may begin or go on.

    Args:
        run: id of the run.
        latest: the checkpoint to resume from; None for a fresh start.
        changed: keys of the spec that differ from the checkpoint's, as allowed by --allow-change.
        goes_back: whether there may be checkpoints of later steps, see `RunDirectory.go_back`.
    """

    run: str
    latest: Path | None
    changed: tuple[str, ...] = ()
    goes_back: bool = False


class RunDirectory:
    """A run directory while this process trains in it; rank 0 has one.

    Args:
        directory: directory of the run; created if it is missing.

    Raises:
        CheckpointError: another process trains in it, or it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inventory = Inventory(directory)
        self.problem: str | None = None
        """What happened to the directory, if it has moved or no longer belongs to this process."""
        self._owner = Owner(directory)
        self._was_lost = False
        self._place = directory
        self._kept: dict[str, str] = {}

    def close(self) -> None:
        """Give up the directory."""
        self._owner.release()

    def prepare(self, existing: Existing, *, trust_class_paths: bool = False) -> str:
        """Prepare the directory as `existing` asks, and return the id of the run.

        Raises:
            CheckpointError: there is a run and it may not be touched, or there is something that this program has not
                written.
        """
        directory, checkpoints = self.directory, self.directory / CHECKPOINTS
        if checkpoints.is_symlink() and not checkpoints.exists():
            raise CheckpointError(
                f"'{checkpoints}' links to '{checkpoints.readlink()}', which does not exist; mount it, or remove the link"
            )
        if not is_run(directory):
            refuse_foreign(directory)
        elif existing == "refuse":
            raise CheckpointError(
                f"'{directory}' already holds a run; choose --existing resume, --existing overwrite or another train.run_dir"
            )
        elif existing == "overwrite":
            found = written(directory)
            remove([*(path for path in _tracker_files(directory, trust_class_paths) if path not in found), *found])
            self.inventory = Inventory(directory)
        run = read_run_id(directory)
        if run is not None:
            refuse_other_runs(directory, run)
        try:
            return self._begin_anew() if not has_checkpoint(directory) else self._identify(run or new_run_id())
        except OSError as error:
            raise _not_writable(directory, error) from error

    def write_spec(self, spec: Spec) -> None:
        """Write the spec and the versions of its plugins. Raise CheckpointError."""
        try:
            (self.directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(self.directory, error) from error
        self.write(LOCK_FILE, json.dumps(record(spec), indent=2) + "\n")
        self.write(SPEC_FILE, dump_spec(spec))

    def write(self, name: str, text: str) -> None:
        """Write a file of the run; a file of that name that the run did not write is set aside.

        Raise CheckpointError.
        """
        try:
            self._set_aside_changed(self.directory / name)
            self.inventory.write(name, text)
        except OSError as error:
            raise _not_writable(self.directory, error) from error

    def adopt(self, part: Path, name: str) -> None:
        """Give a file that was just written its name in the directory; another file of that name is set aside.

        Raise CheckpointError.
        """
        path = self.directory / name
        try:
            self._set_aside_changed(path)
            part.replace(path)
            self.inventory.record([path])
        except OSError as error:
            raise _not_writable(self.directory, error) from error

    def go_back(self, step: int) -> None:
        """Move the checkpoints of later steps into a folder of their own, as the run resumes from `step`. Raises CheckpointError."""
        later = [path for path in list_checkpoints(self.directory / CHECKPOINTS) if step_of(path) > step]
        if not later:
            return
        try:
            aside = free_name(self.directory / CHECKPOINTS)
            aside.mkdir()
            for path in later:  # the newest first: interrupted at any point, the run goes on from what is left
                path.rename(aside / path.name)
            point_at(self.directory / CHECKPOINTS, step_name(step))
        except OSError as error:
            raise _not_writable(self.directory, error) from error
        tell(f"{amount(len(later), 'checkpoint')} of later steps moved to '{aside}'")

    def record(self, files: Collection[Path]) -> None:
        """Record files that a run has written. Raise OSError."""
        self.inventory.record(files)

    def remember(self) -> None:
        """Keep what a run needs to go on besides a checkpoint, to write it again if the directory is deleted."""
        names = [name for name in (RUN_FILE, SPEC_FILE, LOCK_FILE, TOKENIZER_FILE, KEPT_FILE) if (self.directory / name).exists()]
        self._kept = {name: (self.directory / name).read_text(encoding="utf-8") for name in names}

    def is_lost(self) -> bool:
        """Return whether the run has to stop because its directory was moved or deleted, or another process took it."""
        if not self._was_lost and not self._owner.is_held():
            self._was_lost = self._find_again()
        return self._was_lost

    def secure(self) -> Path:
        """Return the directory to save in: its current place or, if it was deleted, a new one with what the run needs
        to go on.

        Raises:
            CheckpointError: another process has taken it.
        """
        if not self.is_lost() or self.problem is not None:
            return self._place
        rival, place = self._owner.rival, self._owner.find()
        if rival is not None:
            raise CheckpointError(f"'{self.directory}' was taken by process {rival.pid} on host {rival.host}; this run ends without saving")
        if place is None:
            self._make_again()
            self.problem = f"'{self.directory}' was deleted during the run; use the same command to resume"
        else:
            self._place = place
            self.problem = f"'{self.directory}' was moved to '{place}' during the run; resume with --train.run_dir={place}"
        return self._place

    def _make_again(self) -> None:
        self._owner.release()
        try:
            self._owner = Owner(self.directory)
            if read_run_id(self.directory) != json.loads(self._kept[RUN_FILE])[RUN]:  # otherwise files that could not be deleted remain
                if is_run(self.directory):
                    raise CheckpointError("another run was started there")
                refuse_foreign(self.directory)
            self.inventory = Inventory(self.directory)
            for name, text in self._kept.items():
                self.write(name, text)
        except CheckpointError as error:
            raise CheckpointError(f"'{self.directory}' was deleted during the run, and cannot be created again: {error}") from error

    def _find_again(self) -> bool:
        """Take the directory again if only owner.json was removed; return whether anything else happened."""
        if self._owner.rival is not None or self._owner.find() is not None or self._kept.get(RUN_FILE) != _text(self.directory / RUN_FILE):
            return True
        self._owner.release()
        try:
            self._owner = Owner(self.directory)
        except CheckpointError:  # `secure` meets the error again, and every rank learns of it there
            return True
        logger.warning("'%s' was removed during the run, and has been written again", self._owner.path)
        return False

    def _set_aside_changed(self, path: Path) -> None:
        if path.exists() and not self.inventory.is_ours(path):
            tell(f"'{path}' was edited after the run wrote it; the edited file is kept as '{set_aside(path).name}'")

    def _begin_anew(self) -> str:
        """Set aside what an earlier run without checkpoints left, and record the id of a new one."""
        names = [name for name in (METRICS_FILE, SAMPLES, TENSORBOARD, WANDB_FILE) if (self.directory / name).exists()]
        self._note_older()
        if is_run(self.directory):
            kept = {name: set_aside(self.directory / name).name for name in names}
            told = f"; its earlier log and samples are kept as {', '.join(kept.values())}" if kept else ""
            tell(f"'{self.directory}' has a run without checkpoints: it starts over from step 0{told}")
        self._set_aside_changed(self.directory / KEPT_FILE)
        (self.directory / KEPT_FILE).unlink(missing_ok=True)  # the earlier attempt may have started from another model
        run = new_run_id()
        self.inventory.write(RUN_FILE, json.dumps({RUN: run}) + "\n")
        return run

    def _identify(self, run: str) -> str:
        """Record the id of a run that is resumed."""
        self._note_older()
        if not (self.directory / RUN_FILE).exists():
            self.inventory.write(RUN_FILE, json.dumps({RUN: run}) + "\n")
        return run

    def _note_older(self) -> None:
        """Record the files of a run made before there was an inventory."""
        if is_run(self.directory) and not (self.directory / RUN_FILE).exists():
            self.inventory.record([path for name in NOTED if (path := self.directory / name).exists()])


def goes_on(directory: Path, existing: Existing) -> bool:
    """Return whether a run with `existing` resumes from a checkpoint, so that it does not need what it started from."""
    return existing == "resume" and has_checkpoint(directory)


def own_run_directory(directory: Path, world: World, *, existing: Existing) -> RunDirectory | None:
    """Take a run directory for all ranks. Return it on rank 0, and None elsewhere.

    Raises:
        SpecError: `existing` is not one of its choices.
        CheckpointError: on every rank, see RunDirectory.
    """
    if existing not in get_args(Existing):
        raise SpecError(f"existing is '{existing}'; expected resume, refuse or overwrite.{did_you_mean(existing, get_args(Existing))}")
    return world.on_main(lambda: RunDirectory(directory))


def held(home: RunDirectory | None) -> RunDirectory:
    """Return the run directory on rank 0, the only one that has it."""
    assert home is not None, "rank 0 owns the run directory"
    return home


def open_run(
    home: RunDirectory | None,
    spec: Spec,
    world: World,
    *,
    existing: Existing = "resume",
    from_step: int | None = None,
    allowed: Collection[str] = (),
    trust_class_paths: bool = False,
) -> OpenRun:
    """Prepare the directory of a resolved spec, and find the checkpoint to resume from. Every rank must call this.

    Say on stderr from which step a run resumes, and warn if it will differ from before: see `check_steps` and
    `lock.json`.

    Args:
        home: on rank 0, the directory that this process owns.
        spec: spec of the run.
        world: its ranks.
        existing: what to do if there is a run.
        from_step: resume from the checkpoint of this step instead of the newest one; see `RunDirectory.go_back`.
        allowed: keys that may change, see `check_unchanged`.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        CheckpointError: there is a run that may not be touched, none of its checkpoints, or not the one of `from_step`, is
            intact, it was made from another spec, or the directory cannot be written.
    """
    directory = Path(spec.train.run_dir) if spec.train is not None else Path()
    checkpoints = directory / CHECKPOINTS
    if from_step is not None:  # before anything changes: a directory without checkpoints would start over
        world.on_main(lambda: find_step(checkpoints, from_step))
    run = str(world.gather(world.on_main(lambda: held(home).prepare(existing, trust_class_paths=trust_class_paths)))[0])
    latest = find_latest(checkpoints, world, run=run) if from_step is None else find_step(checkpoints, from_step, world, run=run)
    changed: list[str] = []
    if latest is not None:
        saved = _read_complete(latest)
        step = saved["progress"]["step"]
        before = settle_names(saved["spec"], read_record(directory / LOCK_FILE))
        changed = check_unchanged(before, spec, latest, allowed=allowed, trust_class_paths=trust_class_paths)
        check_steps(saved["spec"]["train"]["steps"], spec, step)
        if world.is_main:
            tell(f"resuming from step {step} of checkpoint '{latest}'")
            _compare_versions(directory, spec)
    world.on_main(lambda: held(home).write_spec(spec))
    return OpenRun(run, latest, tuple(changed), goes_back=from_step is not None)


def _tracker_files(directory: Path, trust_class_paths: bool) -> list[Path]:
    try:
        train = load_spec([directory / SPEC_FILE], base={}, validate_plugins=False).train
    except SoundOmniError as error:
        logger.warning("files of trackers stay in '%s': %s", directory, error)
        return []
    return tracker_files(directory, train.trackers, trust_class_paths=trust_class_paths) if train is not None else []


def _read_complete(checkpoint: Path) -> dict[str, Any]:
    """Return the state in a checkpoint.

    Raise CheckpointError if anything that a run needs to go on is missing or malformed.
    """
    state = read_state(checkpoint)
    try:
        for key, annotation in _NEEDED.items():
            convert(_inner(state, key), annotation, key)
        for name in _LATER:
            if name in state["progress"]:
                convert(state["progress"][name], field_types(Progress)[name], f"progress.{name}")
        if state.get("data") is not None:
            for listing in convert(state["data"], dict[str, dict[str, Any]], "data").values():
                Listing.from_json(listing)
    except (KeyError, ValueError, SpecError) as error:
        problem = f"it has no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"'{checkpoint}' does not say which step its run has reached or which spec it has, so the run cannot resume from it: "
            f"{problem}; remove it to resume from the previous checkpoint"
        ) from error
    return state


def _inner(tree: Any, key: str) -> Any:
    """Return the value at a dotted key. Raise KeyError, which names the key."""
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            raise KeyError(key)
        tree = tree[name]
    return tree


def _compare_versions(directory: Path, spec: Spec) -> None:
    """Warn about each plugin distribution whose version differs from the one that the run used last."""
    try:
        before = {entry["distribution"]: entry["version"] for entry in read_json(directory / LOCK_FILE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("'%s' cannot be read, so plugin versions are not compared: %s", directory / LOCK_FILE, error)
        return
    for entry in registry.lock(spec):
        name, version = entry["distribution"], entry["version"]
        if before.get(name, version) != version:
            logger.warning("the run used %s %s so far and continues with %s: results may differ", name, before[name], version)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _named(directory: Path, error: OSError) -> str:
    """Return why something could not be written, with its name unless it is the directory."""
    name = str(error.filename2 or error.filename or directory)
    return f"{error.strerror or error}" + (f": '{Path(name).name}'" if name != str(directory) else "")


def _not_writable(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"the run directory '{directory}' cannot be written: {_named(directory, error)}; set train.run_dir")
