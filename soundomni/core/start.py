"""What a spec says that names a model to start from: the model's own spec, as the lowest layer.

`model.start` need only be followed by what is new. The layer has the sections model, sampler and guidance of the model's spec.yaml, and
the size of its tokenizer. A run keeps it in its directory, with where the weights come from, so that it goes on, and is exported with their
licence, when the model is no longer there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soundomni.core import yaml_text
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.model_directory import SPEC_FILE, Origin, check_portable, find_model, portable, read_origin
from soundomni.core.spec import load_spec, spec_to_dict
from soundomni.core.tokenizer import TextTokenizer

KEPT_FILE = "start.yaml"
"""The layer and the origin of the weights, in a run directory."""
SECTIONS = ("model", "sampler", "guidance")
"""Of the layer."""


@dataclass(frozen=True)
class StartModel:
    """What there is to know of a model to start from, beside its weights.

    Args:
        layer: of a spec, plain data.
        origin: where its own weights come from.
    """

    layer: Mapping[str, Any]
    origin: Origin


def start_layer(name: str, run_dir: str | Path | None = None) -> dict[str, Any]:
    """Returns the layer of a spec that `model.start: name` stands for, as plain data.

    Args:
        name: of a model; see find_model.
        run_dir: of a run that may have kept the layer already; None to read the model in any case.

    Raises:
        CheckpointError: there is no such model, or the kept file is damaged.
        SpecError, PluginError: the model's spec is wrong, or names something that is not a registered plugin.
    """
    kept = None if run_dir is None else read_kept(Path(run_dir))
    found = kept if kept is not None and kept.layer["model"]["start"] == name else read_start(name, find_model(name))
    return dict(found.layer)


def read_start(name: str, directory: Path) -> StartModel:
    """Reads what a model directory that a spec calls `name` says. Raises as `start_layer`."""
    spec = load_spec([directory / SPEC_FILE], start="ignore")
    check_portable(spec)
    layer = {section: tree for section, tree in spec_to_dict(portable(spec)).items() if section in SECTIONS}
    layer["model"]["start"] = name
    layer["model"]["tokenizer"]["vocab_size"] = TextTokenizer.load(directory).vocab_size
    return StartModel(layer, read_origin(directory))


def read_kept(run_dir: Path) -> StartModel | None:
    """Returns what a run keeps of its start, or None where it keeps nothing. Raises CheckpointError when that is damaged."""
    file = run_dir / KEPT_FILE
    if not file.is_file():
        return None
    try:
        tree = yaml_text.parse(file.read_text(encoding="utf-8"), str(file))
        layer, origin = tree["spec"], Origin(**tree["origin"])
        fits = isinstance(layer["model"]["start"], str) and set(layer) == set(SECTIONS)
    except (OSError, UnicodeDecodeError, SpecError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not fits:
        raise CheckpointError(f"'{file}' is not what a run keeps of its model.start: expected a spec with {', '.join(SECTIONS)}")
    return StartModel(layer, origin)


def write_kept(run_dir: Path, start: StartModel) -> None:
    """Keeps it in a run directory. Raises OSError."""
    tree = {"spec": dict(start.layer), "origin": asdict(start.origin)}
    (run_dir / KEPT_FILE).write_text(yaml_text.render(tree), encoding="utf-8")
