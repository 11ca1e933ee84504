"""`model.start`: the starting model's own spec becomes the lowest layer.

A spec with `model.start` only lists what is new. The layer has the sections model, sampler and guidance of the model's
spec.yaml, and the size of its tokenizer. A run keeps the layer in its directory, with the origin of the weights, so
that it can go on, and be exported with their license, when the model is gone. Reading the layer does not need the
weights and never fetches them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError, SpecError, describe, did_you_mean
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.files.shipped import shipped_models
from soundomni.core.files.small_files import read_text
from soundomni.core.pretrained.directory import (
    Origin,
    check_portable,
    find_model,
    hub_name,
    is_absent,
    origin_of,
    portable,
    read_origin,
)
from soundomni.core.pretrained.hub import tell_once
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import load_spec, spec_to_dict
from soundomni.core.spec.provenance import lasting_names, settle_names
from soundomni.core.tokenizer import TextTokenizer

KEPT_FILE = "start.yaml"
"""File in a run directory with the layer, the origin of the weights and their commit."""
CHECKPOINTS, STEP = "checkpoints", "step-"
"""The folder with a run's checkpoints, and the start of their names."""
SECTIONS = ("model", "sampler", "guidance")
"""Sections of the layer."""


@dataclass(frozen=True)
class StartModel:
    """What is known about a model to start from, apart from its weights.

    Args:
        layer: layer of a spec, as plain data.
        origin: where its own weights come from.
        commit: commit on the Hub; None for a model that is not from there.
    """

    layer: Mapping[str, Any]
    origin: Origin
    commit: str | None = None


def start_layer(name: str, run_dir: str | Path | None = None, *, may_be_absent: bool = False) -> dict[str, Any]:
    """Return the spec layer that `model.start: name` stands for, as plain data.

    Args:
        name: name of a model; see find_model.
        run_dir: directory of a run that may go on and has kept the layer; None always reads the model.
        may_be_absent: return an empty layer, and say so on stderr, if nothing of this name is here.

    Raises:
        CheckpointError: there is no such model, or the kept file is damaged.
        SpecError, PluginError: the model's spec is wrong, or names something that is not a registered plugin.
    """
    kept = read_kept(Path(run_dir)) if run_dir is not None and has_checkpoint(Path(run_dir)) else None
    if kept is not None and kept.layer["model"]["start"] == name:
        return dict(kept.layer)
    if may_be_absent and is_absent(name):
        tell_once(f"model.start: '{name}' does not exist here, so the spec is used without it")
        return {}
    return dict(read_start(name, _find(name)).layer)


def _find(name: str) -> Path:
    """Find the files that describe a model.

    Raise CheckpointError, which says how to make one if nothing here has a similar name.
    """
    try:
        return find_model(name, weights=False)
    except CheckpointError as error:
        if not is_absent(name) or did_you_mean(name, shipped_models()):
            raise
        make = f"`soundomni import qwen2-audio SRC --config SPEC --out {name}`"
        raise CheckpointError(f"model.start: {str(error).rstrip('.')}. Make one with {make} or `soundomni export`") from error


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run has a checkpoint to resume from, intact or not."""
    return any(path.is_dir() and is_step(path.name) for path in (run_dir / CHECKPOINTS).glob(f"{STEP}*"))


def is_step(name: str) -> bool:
    """Return whether a folder of this name belongs to a step: its number is in ASCII digits, as a run writes them."""
    number = name.removeprefix(STEP)
    return name.startswith(STEP) and number.isascii() and number.isdigit()


def read_start(name: str, directory: Path) -> StartModel:
    """Read the model directory that a spec calls `name`. Raise the same errors as `start_layer`."""
    spec = load_spec([directory / SPEC_FILE], base={})
    check_portable(spec)
    layer = {section: tree for section, tree in spec_to_dict(portable(spec)).items() if section in SECTIONS}
    layer["model"]["start"] = name
    layer["model"]["tokenizer"]["vocab_size"] = TextTokenizer.load(directory).vocab_size
    return StartModel(layer, read_origin(directory), directory.name if hub_name(name) is not None else None)


def read_kept(run_dir: Path) -> StartModel | None:
    """Return what a run keeps of its start, or None if it keeps nothing. Raise CheckpointError if that is damaged."""
    file = run_dir / KEPT_FILE
    if not os.path.lexists(file):
        return None
    try:
        tree = yaml_text.parse(read_text(file), str(file))
        layer, origin, commit = settle_names(tree["spec"], {}), origin_of(tree["origin"], file), tree.get("commit")
        fits = isinstance(layer["model"]["start"], str) and {"model"} <= set(layer) <= set(SECTIONS) and isinstance(commit, str | None)
    except (OSError, UnicodeDecodeError, SpecError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {describe(error)}") from error
    if not fits:
        raise CheckpointError(f"'{file}' is not what a run keeps of its model.start; expected a spec with {', '.join(SECTIONS)}")
    return StartModel(layer, origin, commit)


def kept_text(start: StartModel) -> str:
    """Return the text of KEPT_FILE: what a run directory keeps of the model that the run starts from."""
    return yaml_text.render({"spec": lasting_names(start.layer), "origin": asdict(start.origin), "commit": start.commit})
