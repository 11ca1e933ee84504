"""What a spec says that names a model to start from: the model's own spec, as the lowest layer.

`model.start` need only be followed by what is new. The layer has the sections model, sampler and guidance of the model's spec.yaml, and
the size of its tokenizer. A run keeps it in its directory, with where the weights come from, so that it goes on, and is exported with their
license, when the model is no longer there. Weights are not needed to read it, and never fetched for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.files.small_files import read_text
from soundomni.core.pretrained.directory import (
    SPEC_FILE,
    Origin,
    check_portable,
    find_model,
    hub_name,
    is_absent,
    origin_of,
    portable,
    read_origin,
    shipped_models,
)
from soundomni.core.pretrained.hub import tell_once
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import load_spec, spec_to_dict
from soundomni.core.spec.provenance import lasting_names, settle_names
from soundomni.core.tokenizer import TextTokenizer

KEPT_FILE = "start.yaml"
"""The layer, the origin of the weights and their commit, in a run directory."""
CHECKPOINTS, STEP = "checkpoints", "step-"
"""The folder of a run with its checkpoints, and what their names begin with."""
SECTIONS = ("model", "sampler", "guidance")
"""Of the layer."""


@dataclass(frozen=True)
class StartModel:
    """What there is to know of a model to start from, beside its weights.

    Args:
        layer: of a spec, plain data.
        origin: where its own weights come from.
        commit: of the Hub; None for a model that is not from there.
    """

    layer: Mapping[str, Any]
    origin: Origin
    commit: str | None = None


def start_layer(name: str, run_dir: str | Path | None = None, *, may_be_absent: bool = False) -> dict[str, Any]:
    """Return the layer of a spec that `model.start: name` stands for, as plain data.

    Args:
        name: of a model; see find_model.
        run_dir: of a run that may go on, and then has kept the layer; None to read the model in any case.
        may_be_absent: give an empty layer, and say so on stderr, where nothing of this name is here.

    Raises:
        CheckpointError: there is no such model, or the kept file is damaged.
        SpecError, PluginError: the model's spec is wrong, or names something that is not a registered plugin.
    """
    kept = read_kept(Path(run_dir)) if run_dir is not None and has_checkpoint(Path(run_dir)) else None
    if kept is not None and kept.layer["model"]["start"] == name:
        return dict(kept.layer)
    if may_be_absent and is_absent(name):
        tell_once(f"model.start: '{name}' is not here; the spec is taken by itself")
        return {}
    return dict(read_start(name, _find(name)).layer)


def _find(name: str) -> Path:
    """Find what says what a model is. Raise CheckpointError, with how one is made where nothing here has a name like that."""
    try:
        return find_model(name, weights=False)
    except CheckpointError as error:
        if not is_absent(name) or did_you_mean(name, shipped_models()):
            raise
        make = f"`soundomni import qwen2-audio SRC --config SPEC --out {name}`"
        raise CheckpointError(f"model.start: {str(error).rstrip('.')}; {make} makes one, and so does `soundomni export`") from error


def has_checkpoint(run_dir: Path) -> bool:
    """Say whether a run has a checkpoint to go on from, be it intact or not."""
    return any(path.is_dir() and is_step(path.name) for path in (run_dir / CHECKPOINTS).glob(f"{STEP}*"))


def is_step(name: str) -> bool:
    """Say whether a folder of this name is of a step: its number is in the digits that a run writes, not in those of other scripts."""
    number = name.removeprefix(STEP)
    return name.startswith(STEP) and number.isascii() and number.isdigit()


def read_start(name: str, directory: Path) -> StartModel:
    """Read what a model directory that a spec calls `name` says. Raises as `start_layer`."""
    spec = load_spec([directory / SPEC_FILE], base={})
    check_portable(spec)
    layer = {section: tree for section, tree in spec_to_dict(portable(spec)).items() if section in SECTIONS}
    layer["model"]["start"] = name
    layer["model"]["tokenizer"]["vocab_size"] = TextTokenizer.load(directory).vocab_size
    return StartModel(layer, read_origin(directory), directory.name if hub_name(name) is not None else None)


def read_kept(run_dir: Path) -> StartModel | None:
    """Return what a run keeps of its start, or None where it keeps nothing. Raise CheckpointError if that is damaged."""
    file = run_dir / KEPT_FILE
    if not os.path.lexists(file):
        return None
    try:
        tree = yaml_text.parse(read_text(file), str(file))
        layer, origin, commit = settle_names(tree["spec"], {}), origin_of(tree["origin"], file), tree.get("commit")
        fits = isinstance(layer["model"]["start"], str) and set(layer) == set(SECTIONS) and isinstance(commit, str | None)
    except (OSError, UnicodeDecodeError, SpecError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not fits:
        raise CheckpointError(f"'{file}' is not what a run keeps of its model.start: expected a spec with {', '.join(SECTIONS)}")
    return StartModel(layer, origin, commit)


def kept_text(start: StartModel) -> str:
    """Return what a run directory keeps of a model that the run starts from, for KEPT_FILE."""
    return yaml_text.render({"spec": lasting_names(start.layer), "origin": asdict(start.origin), "commit": start.commit})
