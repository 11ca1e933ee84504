"""Weight files of single codecs: only safetensors, so that nothing is ever unpickled."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn

from soundomni.core.errors import CheckpointError, some
from soundomni.core.files.paths import local_path, place
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.pretrained.weights import check_dtype, check_finite

_NOTHING: Mapping[str, str] = MappingProxyType({})


def load_strict(module: nn.Module, path: str | Path, *, renamed: Mapping[str, str] = _NOTHING) -> None:
    """Load a .safetensors file whose tensors must have exactly the names and shapes of the module's own.

    Args:
        module: receives the tensors.
        path: the file; a leading `~` means the home directory.
        renamed: other spellings of names, see `known_name`.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another module; the message says which tensors
            differ.
    """
    if not local_path(path).exists():
        raise CheckpointError(f"no weights at {place(path)}: expected a .safetensors file")
    with readable(Path(path)):
        file = open_tensors(local_path(path))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    sources = place_names(shapes, module.state_dict(), renamed, path)
    check_fit(module, {ours: shapes[theirs] for ours, theirs in sources.items()}, path)
    with readable(Path(path)):
        given = {ours: file.get_tensor(theirs) for ours, theirs in sources.items()}
    own = module.state_dict()
    for name, tensor in given.items():
        check_dtype(name, tensor, path, like=own[name])
        check_finite(name, tensor, path)
    module.load_state_dict(given)


def known_name(name: str, known: Collection[str], renamed: Mapping[str, str]) -> str:
    """Return what a tensor of a file is called in a network.

    Args:
        name: its name in the file; it is kept if the network knows it.
        known: names of the network's tensors.
        renamed: pattern in a name → what replaces it; only the first pattern that is found counts.
    """
    pattern = None if name in known else next((pattern for pattern in renamed if re.search(pattern, name)), None)
    return name if pattern is None else re.sub(pattern, renamed[pattern], name)


def place_names(names: Iterable[str], known: Collection[str], renamed: Mapping[str, str], path: str | Path) -> dict[str, str]:
    """Return tensor of the network → tensor of the file, see `known_name`. Raise CheckpointError if two are one."""
    sources: dict[str, str] = {}
    for theirs in names:
        ours = known_name(theirs, known, renamed)
        if ours in sources:
            raise CheckpointError(f"'{path}' holds the parameter '{ours}' twice: as '{sources[ours]}' and as '{theirs}'")
        sources[ours] = theirs
    return sources


def check_fit(module: nn.Module, given: Mapping[str, tuple[int, ...]], path: str | Path) -> None:
    """Raise CheckpointError unless `given`, tensor → shape, are exactly the names and shapes of the module's own tensors."""
    expected = module.state_dict()
    shared = sorted(expected.keys() & given.keys())
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(given[name])} instead of {list(expected[name].shape)}" for name in shared if given[name] != expected[name].shape
        ],
    }
    told = [f"{len(names)} {what} ({some(names)})" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"'{path}' does not fit this {type(module).__name__}: of its tensors, {'; '.join(told)}")
