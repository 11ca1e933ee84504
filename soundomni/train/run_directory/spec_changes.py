"""Whether a run may be resumed with a spec: which keys differ from those of its checkpoint, and which of them may."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from soundomni.core.errors import CheckpointError, PluginError, SpecError, did_you_mean
from soundomni.core.spec import registry
from soundomni.core.spec.load import changed_keys, comparable, spec_of, spec_to_dict
from soundomni.core.spec.renamed import current_names
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.shorthand import written_key
from soundomni.core.spec.slots import map_slots
from soundomni.train.learning_rate import learning_rate

MAY_CHANGE = (
    "sampler",
    "guidance",
    "model.modalities.NAME.sampler",
    "model.modalities.NAME.guidance",
    "data.workers",
    "data.skip_limit",
    "train.run_dir",
    "train.steps",
    "train.log_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.validation",
    "train.trackers",
    "train.threads",
    "train.parallel",
    "train.random_codec",
    "train.activation_checkpointing",
)
"""Keys that may differ when a run is resumed: they do not change what is learned, except for `train.steps` (see
check_steps). NAME stands for the name of any modality."""

TAUGHT = ("sampler", "model.modalities.NAME.sampler")
"""Those of these keys that may not differ in a run with `train.teacher`, because the model learns its sampler's
steps."""

ON_REQUEST = (
    "data",
    "model.start",
    "codec.codec.init_args.weights",
    "model.codec.init_args.weights",
    "model.modalities.NAME.codec.init_args.weights",
    "model.tokenizer.path",
    "train.batches_per_step",
    "train.compile",
    "train.ema_decay",
    "train.loss_starts",
    "train.loss_weights",
    "train.optimizer",
    "train.phases",
    "train.precision",
    "train.schedule",
    "train.seed",
)
"""Keys that --allow-change may name: rates, paths and data.

They change future learning, not what has been learned already.
"""
NEVER = ("train.optimizer.rule",)
"""Keys among these that determine the contents of a checkpoint."""
ABSENT = "absent"
"""The text of `changed_keys` for a key that one of two specs does not have."""

logger = logging.getLogger(__name__)


def check_allowed(keys: Collection[str], spec: Spec) -> None:
    """Raise SpecError for a key of --allow-change that no spec has."""
    known = _dotted(spec_to_dict(spec))
    for key in keys:
        place = written_key(key, spec.model).partition(".init_args.")[0]  # the plugin may have lost the argument since
        if place not in known and not any(is_below(one, [key]) for one in (*known, *ON_REQUEST)):
            raise SpecError(f"--allow-change is '{key}'; expected a key of the spec, or the start of one.{did_you_mean(key, known)}")


def check_unchanged(
    saved: Mapping[str, Any], spec: Spec, checkpoint: object, *, allowed: Collection[str] = (), trust_class_paths: bool = False
) -> list[str]:
    """Return the changed keys that `allowed` names.

    A key that the saved spec lacks, because a later version of a plugin or of SoundOmni added it, only counts as
    changed if it is not set to its default.

    Args:
        saved: the run's saved spec, as plain data.
        spec: the resolved spec to resume with.
        checkpoint: named in the error.
        allowed: dotted keys that may change, including everything below them.
        trust_class_paths: whether the saved spec may name classes by import path.

    Raises:
        CheckpointError: other keys that affect learning differ; the message lists them, and the option that allows
            each.
    """
    before, after = _both(saved, spec, trust_class_paths=trust_class_paths)
    lines = {line.partition(": ")[0]: line for line in changed_keys(before, after)}
    fixed = TAUGHT if spec.train is not None and spec.train.teacher is not None else ()
    may_change = [key for key in MAY_CHANGE if key not in fixed]
    changes = {key: line for key, line in lines.items() if not is_below(_any_modality(key), may_change)}
    on_request = {key for key, line in changes.items() if _may_be_allowed(key, line)}
    named = [*allowed, *(written_key(key, spec.model) for key in allowed)]
    left = [key for key in changes if key not in on_request or not is_below(key, named)]
    if not left:
        return list(changes)
    allowable = [key for key in left if key in on_request]
    options = " ".join(f"--allow-change {shlex.quote(key)}" for key in allowable)
    ways = ["undo these changes", *([f"allow them with {options}"] if options else [])]
    if options and len(allowable) < len(left):
        ways[-1] = f"allow those that may change with {options}"
    raise CheckpointError(
        f"'{checkpoint}' was made with a different spec, so the run cannot resume from it: {'; '.join(changes[key] for key in left)}; "
        f"{', '.join(ways)}, choose another train.run_dir, or start over with --existing overwrite"
    )


def _both(saved: Mapping[str, Any], spec: Spec, *, trust_class_paths: bool) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a saved spec and the present one as plain data with the same keys.

    The saved one is under current names, with the current default of each key that it lacks; without them if it cannot be read.
    """
    try:
        saved = current_names(saved)
        return comparable(map_slots(spec_of(saved), partial(_with_default_arguments, trust_class_paths)), spec)
    except SpecError:
        return saved, spec_to_dict(spec)


def check_steps(saved_steps: int, spec: Spec, step: int) -> None:
    """Judge a change of `train.steps` at a resumed step, which may move the schedule and thus change what is learned.

    A change of steps moves a cosine, and a warm-up that is a share of the run.

    More steps are allowed, with a warning that names both learning rates; a run without steps left is not affected.

    Raises:
        CheckpointError: fewer steps.
    """
    train = spec.train
    if train is None or train.steps == saved_steps or train.steps <= step:
        return
    before, now = (
        learning_rate(step, schedule=train.schedule, peak=train.optimizer.lr, total_steps=steps) for steps in (saved_steps, train.steps)
    )
    if before == now:
        return
    change = (
        f"train.steps: {saved_steps} -> {train.steps} moves the {train.schedule.kind} schedule: "
        f"the learning rate after step {step} is {now:.4g}"
    )
    if train.steps < saved_steps:
        raise CheckpointError(
            f"{change} instead of the planned {before:.4g}; set at least {saved_steps} steps, or start over with --existing overwrite"
        )
    logger.warning("%s instead of the planned %.4g", change, before)


def is_below(key: str, places: Collection[str]) -> bool:
    """Return whether a dotted key is one of `places`, or below one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _with_default_arguments(trust_class_paths: bool, key: str, kind: str, slot: Slot) -> Slot:
    """Fill in arguments that a plugin has now; those that it no longer has stay, to be reported as changes."""
    try:
        known = registry.arguments(kind, registry.load(kind, slot.class_path, trust_class_paths=trust_class_paths))
    except PluginError:
        return slot
    defaults = {argument.name: argument.default for argument in known if not argument.required}
    return Slot(slot.class_path, {**defaults, **slot.init_args})


def _any_modality(key: str) -> str:
    """Return a key with NAME in place of the name of a modality."""
    return re.sub(r"^model\.modalities\.[^.]+\.", "model.modalities.NAME.", key)


def _may_be_allowed(key: str, line: str) -> bool:
    if is_below(key, NEVER):
        return False
    came_or_went = f": {ABSENT} -> " in line or line.endswith(f" -> {ABSENT}")
    return is_below(_any_modality(key), ON_REQUEST) or (came_or_went and ".init_args." in key)


def _dotted(tree: Mapping[str, Any], above: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in tree.items():
        keys.append(f"{above}{name}")
        if isinstance(value, Mapping):
            keys += _dotted(value, f"{keys[-1]}.")
    return keys
