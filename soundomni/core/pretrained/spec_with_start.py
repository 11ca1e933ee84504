"""`model.start`: the starting model's own spec becomes the lowest layer.

Importing this module is light; the model is only looked for if a spec names one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from soundomni.core.files.paths import at_home
from soundomni.core.spec.load import join_layers, read_layers
from soundomni.core.spec.schema import Spec

StartFrom = Literal["kept", "directory", "if-here"]
"""Where the layer of `model.start` comes from.

- "kept": if the run in train.run_dir is resumed, what that run keeps of the model; otherwise the model directory.
- "directory": always the model directory.
- "if-here": like "kept"; but if there is no such model here and the layers name a backbone themselves, nowhere, which
  stderr says.
"""


def load_spec_with_start(
    configs: Sequence[Path | str | Mapping[str, Any]],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    trust_class_paths: bool = False,
    validate_plugins: bool = True,
    start: StartFrom = "kept",
) -> Spec:
    """Read a spec from layers, on top of the spec of the model that `model.start` names, if it names one.

    Args:
        configs, overrides, trust_class_paths, validate_plugins: see `load_spec`.
        start: where the layer of `model.start` comes from.

    Raise SpecError and PluginError like `load_spec`, and CheckpointError if `model.start` does not name a model.
    """
    layers = read_layers(configs, overrides)
    base: dict[str, Any] = {}
    if (name := layers.last_text("model", "start")) is not None:
        from soundomni.core.pretrained.start import start_layer

        run_dir = layers.last_text("train", "run_dir") if start != "directory" else None
        may_be_absent = start == "if-here" and layers.last("model", "backbone") is not None
        base = start_layer(at_home(name), at_home(run_dir) if run_dir is not None else None, may_be_absent=may_be_absent)
    return join_layers(layers, base=base, trust_class_paths=trust_class_paths, validate_plugins=validate_plugins)
