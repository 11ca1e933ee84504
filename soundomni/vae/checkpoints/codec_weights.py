"""Weight files of single codecs: only safetensors, so that nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, some
from soundomni.core.files.paths import local_path, place
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.pretrained.foreign_weights import WeightFile
from soundomni.core.pretrained.weights import check_finite

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def load_strict(module: nn.Module, path: str | Path) -> None:
    """Load a .safetensors file whose tensors must have exactly the names and shapes of the module's own.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another module; the message says which tensors
            differ.

    A leading `~` means the home directory.
    """
    if not local_path(path).exists():
        raise CheckpointError(f"no weights at {place(path)}: expected a .safetensors file")
    with readable(Path(path)):
        file = open_tensors(local_path(path))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    check_fit(module, shapes, path)
    given = {name: file.get_tensor(name) for name in shapes}
    for name, tensor in given.items():
        check_finite(name, tensor, path)
    module.load_state_dict(given)


def read_float32(weights: WeightFile, name: str) -> Tensor:
    """Return a copy of a tensor of someone else's file as float32.

    Raise CheckpointError if it is not floating point of at most 32 bits, or holds a number that is not finite.
    """
    tensor = weights[name]
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(f"'{weights.path}': '{name}' is {tensor.dtype}; expected one of {', '.join(map(str, _FLOATS))}")
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"'{weights.path}': '{name}' has numbers that are not finite, as if its training had diverged")
    return tensor.to(torch.float32, copy=True).contiguous()


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
