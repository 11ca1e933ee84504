"""The directory of a run: what it holds, who it belongs to, and whether a spec may go on with it.

| name | what it is |
|---|---|
| spec.yaml | the resolved spec |
| lock.json | plugin distributions and their versions |
| tokenizer.json | text tokens |
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
from soundomni.core.spec import changed_keys, dump_spec, spec_to_dict
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.train.checkpoint import find_latest, read_state
from soundomni.train.metrics import FILE_NAME as METRICS_FILE
from soundomni.train.parallel import World

SPEC_FILE, LOCK_FILE, CHECKPOINTS, SAMPLES, CODEC_FILE = "spec.yaml", "lock.json", "checkpoints", "samples", "codec.safetensors"

Existing = Literal["resume", "refuse", "overwrite"]
"""What to do when the run directory holds a run: go on with it, stop, or remove it first."""

MAY_CHANGE = (
    "sampler",
    "guidance",
    "data.workers",
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
"""Keys that do not change what is learnt, and may differ when a run is resumed."""

logger = logging.getLogger(__name__)


def open_run(directory: Path, spec: Spec, world: World, *, existing: Existing = "resume") -> Path | None:
    """Makes the directory of a resolved spec ready and returns the checkpoint to go on from, or None for a fresh start.

    Raises:
        SpecError: `existing` is none of its choices.
        CheckpointError: there is a run and it may not be touched, none of its checkpoints is intact, it was made from another spec,
            or the directory cannot be written.
    """
    if existing not in get_args(Existing):
        raise SpecError(
            f"existing must be resume, refuse or overwrite, '{existing}' was given.{did_you_mean(existing, get_args(Existing))}"
        )
    world.on_main(lambda: _clear(directory, existing))
    latest = find_latest(directory / CHECKPOINTS, world)
    if latest is not None:
        check_unchanged(read_state(latest)["spec"], spec, latest)
        logger.info("resuming from '%s'", latest)
    world.on_main(lambda: _write(directory, spec))
    return latest


def check_unchanged(saved: Mapping[str, Any], spec: Spec, checkpoint: Path) -> None:
    """Raises CheckpointError, listing the keys, when a spec differs from the saved one in what is learnt."""
    changed = changed_keys(saved, spec_to_dict(spec), may_change=MAY_CHANGE)
    if changed:
        raise CheckpointError(
            f"'{checkpoint}' was made from another spec, so the run cannot go on: {'; '.join(changed)}; "
            "undo these changes, choose another train.run_dir, or overwrite the run"
        )


def _clear(directory: Path, existing: Existing) -> None:
    if not (directory / LOCK_FILE).exists():
        if (directory / SPEC_FILE).exists():
            raise CheckpointError(f"'{directory}' holds a {SPEC_FILE} that is not of a run; choose another train.run_dir")
        return
    if existing == "refuse":
        raise CheckpointError(f"'{directory}' already holds a run; resume it, overwrite it, or choose another train.run_dir")
    if existing == "overwrite":
        for name in (CHECKPOINTS, SAMPLES):
            shutil.rmtree(directory / name, ignore_errors=True)
        for name in (SPEC_FILE, LOCK_FILE, TOKENIZER_FILE, METRICS_FILE, CODEC_FILE):
            (directory / name).unlink(missing_ok=True)


def _write(directory: Path, spec: Spec) -> None:
    try:
        (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (directory / LOCK_FILE).write_text(json.dumps(registry.lock(spec), indent=2) + "\n", encoding="utf-8")
        (directory / SPEC_FILE).write_text(dump_spec(spec), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"the run directory '{directory}' cannot be written: {error.strerror}; set train.run_dir") from error
