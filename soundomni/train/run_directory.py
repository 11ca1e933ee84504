"""The directory of a run: what it holds, who it belongs to, and whether a spec may go on with it.

| name | what it is |
|---|---|
| spec.yaml | the resolved spec |
| lock.json | plugin distributions and their versions |
| tokenizer.json | text tokens |
| start.yaml | of the model that the run started from, if it did: what its spec says, where its weights come from, and their commit |
| metrics.jsonl | one line per logged step |
| checkpoints/ | see checkpoint.py |
| samples/ | what validation makes |
| codec.safetensors | the finished weights where a codec alone was trained: what its `weights` argument takes |
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from soundomni.core import registry
from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.schema import Spec
from soundomni.core.small_files import read_json
from soundomni.core.spec import changed_keys, dump_spec, spec_to_dict
from soundomni.core.start import CHECKPOINTS, KEPT_FILE, has_checkpoint
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.train.checkpoint import find_latest, read_state
from soundomni.train.metrics import FILE_NAME as METRICS_FILE
from soundomni.train.parallel import World
from soundomni.train.schedule import learning_rate
from soundomni.train.terminal import tell

SPEC_FILE, LOCK_FILE, SAMPLES, CODEC_FILE = "spec.yaml", "lock.json", "samples", "codec.safetensors"

Existing = Literal["resume", "refuse", "overwrite"]
"""What to do when the run directory holds a run: go on with it, stop, or remove it first."""

MAY_CHANGE = (
    "sampler",
    "guidance",
    "data.workers",
    "data.skip_limit",
    "train.run_dir",
    "train.steps",
    "train.log_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.validation",
    "train.trackers",
    "train.threads",
    "train.parallel",
    "train.activation_checkpointing",
)
"""Keys that may differ when a run is resumed: they do not change what is learnt, but for `train.steps` (see check_steps)."""

logger = logging.getLogger(__name__)


def goes_on(directory: Path, existing: Existing) -> bool:
    """Says whether a run with `existing` goes on from a checkpoint, and so needs nothing that it started from."""
    return existing == "resume" and has_checkpoint(directory)


def open_run(directory: Path, spec: Spec, world: World, *, existing: Existing = "resume") -> Path | None:
    """Makes the directory of a resolved spec ready and returns the checkpoint to go on from, or None for a fresh start.

    Raises:
        SpecError: `existing` is none of its choices.
        CheckpointError: there is a run and it may not be touched, none of its checkpoints is intact, it was made from another spec,
            or the directory cannot be written.

    Says on stderr which step a run goes on from, and warns where that will not be as before: see `check_steps` and `lock.json`.
    """
    if existing not in get_args(Existing):
        raise SpecError(
            f"existing must be resume, refuse or overwrite, '{existing}' was given.{did_you_mean(existing, get_args(Existing))}"
        )
    world.on_main(lambda: _clear(directory, existing))
    latest = find_latest(directory / CHECKPOINTS, world)
    if latest is not None:
        saved = read_state(latest)
        step = saved["progress"]["step"]
        check_unchanged(saved["spec"], spec, latest)
        check_steps(saved["spec"]["train"]["steps"], spec, step)
        if world.is_main:
            tell(f"resuming from step {step} of checkpoint '{latest}'")
            _compare_versions(directory, spec)
    world.on_main(lambda: _write(directory, spec, anew=latest is None))
    return latest


def check_unchanged(saved: Mapping[str, Any], spec: Spec, checkpoint: Path) -> None:
    """Raises CheckpointError, listing the keys, when a spec differs from the saved one in what is learnt."""
    changed = changed_keys(saved, spec_to_dict(spec), may_change=MAY_CHANGE)
    if changed:
        raise CheckpointError(
            f"'{checkpoint}' was made from another spec, so the run cannot go on: {'; '.join(changed)}; "
            "undo these changes, choose another train.run_dir, or start over with --existing overwrite"
        )


def check_steps(saved_steps: int, spec: Spec, step: int) -> None:
    """Judges a change of `train.steps` at a resumed step, which moves a cosine schedule and thus changes what is learnt.

    More steps are allowed, with a warning that names both learning rates; a run without steps left is not affected.

    Raises:
        CheckpointError: fewer steps.
    """
    train = spec.train
    if train is None or train.schedule.kind != "cosine" or train.steps == saved_steps or train.steps <= step:
        return
    before, now = (
        learning_rate(step, schedule=train.schedule, peak=train.optimizer.lr, total_steps=steps) for steps in (saved_steps, train.steps)
    )
    change = f"train.steps: {saved_steps} -> {train.steps} moves the cosine schedule: the learning rate after step {step} is {now:.4g}"
    if train.steps < saved_steps:
        raise CheckpointError(f"{change}, not {before:.4g}; keep {saved_steps} steps or more, or start over with --existing overwrite")
    logger.warning("%s, it was to be %.4g", change, before)


def _clear(directory: Path, existing: Existing) -> None:
    if not (directory / LOCK_FILE).exists():
        if (directory / SPEC_FILE).exists():
            raise CheckpointError(f"'{directory}' holds a {SPEC_FILE} that is not of a run; choose another train.run_dir")
        return
    if existing == "refuse":
        raise CheckpointError(f"'{directory}' already holds a run; choose --existing resume, --existing overwrite or another train.run_dir")
    if existing == "overwrite":
        for name in (CHECKPOINTS, SAMPLES):
            shutil.rmtree(directory / name, ignore_errors=True)
        for name in (SPEC_FILE, LOCK_FILE, TOKENIZER_FILE, KEPT_FILE, METRICS_FILE, CODEC_FILE):
            (directory / name).unlink(missing_ok=True)


def _compare_versions(directory: Path, spec: Spec) -> None:
    """Warns of each plugin distribution whose version is not the one that the run used last."""
    try:
        before = {entry["distribution"]: entry["version"] for entry in read_json(directory / LOCK_FILE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("'%s' cannot be read, so plugin versions are not compared: %s", directory / LOCK_FILE, error)
        return
    for entry in registry.lock(spec):
        name, version = entry["distribution"], entry["version"]
        if before.get(name, version) != version:
            logger.warning("the run used %s %s so far and goes on with %s: results may differ", name, before[name], version)


def _write(directory: Path, spec: Spec, *, anew: bool) -> None:
    try:
        (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        if anew:  # an attempt that ended before its first checkpoint may have started from another model
            (directory / KEPT_FILE).unlink(missing_ok=True)
        (directory / LOCK_FILE).write_text(json.dumps(registry.lock(spec), indent=2) + "\n", encoding="utf-8")
        (directory / SPEC_FILE).write_text(dump_spec(spec), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"the run directory '{directory}' cannot be written: {error.strerror}; set train.run_dir") from error
