"""Weight files of single codecs: safetensors only, nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from soundomni.core.errors import CheckpointError, some
from soundomni.core.paths import local_path, place


def load_strict(module: nn.Module, path: str | Path) -> None:
    """Loads a .safetensors file whose tensors must have just the names and shapes of the module's own.

    Raises:
        CheckpointError: the file is missing, damaged, or of another module; says which tensors differ.

    A leading `~` is the home directory.
    """
    file = local_path(path)
    if not file.is_file():
        raise CheckpointError(f"no weights at {place(path)}: expected a .safetensors file")
    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read as safetensors: {error}") from error
    expected = module.state_dict()
    shared = sorted(expected.keys() & given.keys())
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(given[name].shape)} instead of {list(expected[name].shape)}"
            for name in shared
            if given[name].shape != expected[name].shape
        ],
    }
    told = [f"{len(names)} {what} ({some(names)})" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"'{path}' does not fit this {type(module).__name__}: of its tensors, {'; '.join(told)}")
    module.load_state_dict(given)
