"""What a spec says that names a model to start from: the model's own spec, as the lowest layer.

`model.start` need only be followed by what is new. The layer has the sections model, sampler and guidance of the model's spec.yaml, and
the size of its tokenizer. A run keeps it in its directory, so that it goes on when the model is no longer there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soundomni.core import yaml_text
from soundomni.core.errors import CheckpointError
from soundomni.core.model_directory import SPEC_FILE, check_portable, find_model, portable
from soundomni.core.spec import load_spec, spec_to_dict
from soundomni.core.tokenizer import TextTokenizer

KEPT_FILE = "start.yaml"
"""The layer, in a run directory."""


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
    if kept is not None and kept["model"]["start"] == name:
        return kept
    directory = find_model(name)
    spec = load_spec([directory / SPEC_FILE], start="ignore")
    check_portable(spec)
    layer = spec_to_dict(portable(spec))
    layer["model"]["start"] = name
    layer["model"]["tokenizer"]["vocab_size"] = TextTokenizer.load(directory).vocab_size
    return {section: layer[section] for section in ("model", "sampler", "guidance")}


def read_kept(run_dir: Path) -> dict[str, Any] | None:
    """Returns the layer that a run keeps, or None where it keeps none. Raises CheckpointError when it is damaged."""
    file = run_dir / KEPT_FILE
    if not file.is_file():
        return None
    try:
        layer = yaml_text.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(layer, dict) or not isinstance(layer.get("model"), dict) or "start" not in layer["model"]:
        raise CheckpointError(f"'{file}' is not what a run keeps of its model.start: it has no model.start; remove it")
    return layer


def write_kept(run_dir: Path, layer: Mapping[str, Any]) -> None:
    """Keeps the layer in a run directory. Raises OSError."""
    (run_dir / KEPT_FILE).write_text(yaml_text.render(dict(layer)), encoding="utf-8")
