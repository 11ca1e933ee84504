"""The weights of a model directory: safetensors, in one file or in several with an index, as on the Hugging Face Hub.

| name | what it is |
|---|---|
| model.safetensors | every tensor, if they fit into one file |
| model-00001-of-0000N.safetensors | the tensors of one shard |
| model.safetensors.index.json | which shard holds which tensor |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, SpecError, amount, some
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.files.small_files import read_json
from soundomni.core.inference.inputs import shown
from soundomni.core.pretrained.renamed_tensors import current_names

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
MAX_SHARD_BYTES = 5_000_000_000
"""Largest file that is written, unless a single tensor is larger."""
STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COMPUTING_DTYPES = (torch.float32, torch.bfloat16)

_MAPPED_BYTES = 16_000_000  # a file stays mapped for this many bytes of tensors, and is then closed, which releases their pages


def stored_dtype(value: torch.dtype | str) -> torch.dtype:
    """Return the dtype that a name stands for. Raise SpecError for one that weights cannot be stored as."""
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if isinstance(dtype, torch.dtype) and dtype in STORED_DTYPES:
        return dtype
    raise SpecError(f"dtype is {shown(value)}; expected one of {', '.join(map(str, STORED_DTYPES))}")


def computing_dtype(value: torch.dtype | str) -> torch.dtype:
    """Return the dtype that a name stands for. Raise SpecError for one in which models do not compute."""
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if isinstance(dtype, torch.dtype) and dtype in COMPUTING_DTYPES:
        return dtype
    raise SpecError(f"dtype is {shown(value)}; expected one of {', '.join(map(str, COMPUTING_DTYPES))}")


def write_weights(
    state: Mapping[str, Tensor], directory: Path, *, dtype: torch.dtype | None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write tensors shard by shard, with floating-point tensors as `dtype`, or unchanged if it is None.

    Each tensor is read twice, for its size and for writing, and only those of one shard are held: a mapping may make
    them on demand.

    Raises:
        CheckpointError: a weight is too large for `dtype`.
    """
    sizes = {name: _stored_bytes(tensor, dtype) for name, tensor in state.items()}
    shards = _plan(sizes, max_shard_bytes)
    names = [WEIGHTS_FILE] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, keys in zip(names, shards, strict=True):
        write_tensors({key: _stored(key, state[key], dtype) for key in keys}, directory / file)
    if len(shards) > 1:
        places = {key: file for file, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file that everybody who may read its folder can read: safetensors makes files private to
    their owner."""
    save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(0o600 | file.parent.stat().st_mode & 0o044)


def weight_files(directory: Path) -> list[Path]:
    """Return the files with the weights of a directory, in order.

    Raises:
        CheckpointError: there are none, the index is damaged, or shards are missing.
    """
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    index = directory / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(f"'{directory}' has no weights; expected {WEIGHTS_FILE} or {INDEX_FILE}")
    names = sorted(set(_weight_map(index).values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"'{directory}' lacks {len(missing)} of {len(names)} shards of weights: {some(missing)}")
    return [directory / name for name in names]


def is_weight_file(name: str) -> bool:
    """Return whether a file of this name belongs to the weights of a directory."""
    return name in (WEIGHTS_FILE, INDEX_FILE) or SHARD.fullmatch(name) is not None


def load_weights(
    module: nn.Module,
    directory: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    part: Callable[[Tensor], tuple[Tensor, int]] = lambda tensor: (tensor, 0),
) -> None:
    """Load the weights of a directory into a module whose tensors must have exactly these names and shapes, one tensor
    at a time.

    All names and shapes are compared before anything is written. Memory holds little more than the module and one
    tensor.

    Args:
        module: module to load into.
        directory: folder with the weights.
        wanted: whether the tensor of a name is compared and loaded.
        part: returns the rows of a module's tensor that this process holds, and the index of the first of them.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights belong to another module.
    """
    expected = {name: tensor.detach() for name, tensor in module.state_dict().items() if wanted(name)}
    places = _places(directory)
    differing = differing_names(expected, {name: place.shape for name, place in places.items() if wanted(name)})
    if any(differing):
        raise CheckpointError(f"'{directory}' holds the weights of another model: {differing}")
    for file in weight_files(directory):
        held = {places[name].stored: (name, *part(tensor)) for name, tensor in expected.items() if places[name].file == file}
        rows = {
            stored: None if tensor.shape == places[name].shape else slice(first, first + len(tensor))
            for stored, (name, tensor, first) in held.items()
            if tensor.numel()
        }
        for stored, tensor in _tensors(file, rows):
            name, target, _ = held[stored]
            check_dtype(name, tensor, file, like=target)
            check_finite(name, tensor, file)
            target.copy_(tensor)


def check_dtype(name: str, tensor: Tensor, file: str | Path, *, like: Tensor | None = None) -> None:
    """Raise CheckpointError unless a tensor of a file is one of STORED_DTYPES, or has the dtype of `like` if that is
    not floating point.

    Others, such as float8 and int8, stand for other numbers than they hold.
    """
    known = STORED_DTYPES if like is None or like.is_floating_point() else (like.dtype,)
    if tensor.dtype not in known:
        expected = " or ".join(", ".join(map(_plain, known)).rsplit(", ", 1))
        cure = "" if tensor.is_complex() or len(known) == 1 else ". Use weights that are not quantized"
        raise CheckpointError(f"'{file}': '{name}' is {_plain(tensor.dtype)}; expected {expected}{cure}")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_finite(name: str, tensor: Tensor, file: str | Path) -> None:
    """Raise CheckpointError if a floating-point tensor holds NaN or infinity, which would spread to everything the
    model computes."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))  # 30 times as fast as checking each number
    if not bool(total.isfinite()) and not bool(tensor.isfinite().all()):
        raise CheckpointError(f"'{file}': '{name}' holds NaN or infinity; ask whoever made the file for an intact one")


def weight_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return name → shape for the tensors of a directory. Raise CheckpointError if a file is missing or damaged."""
    return {name: place.shape for name, place in _places(directory).items()}


class Differing(NamedTuple):
    """Differences between the tensors of two models: names that are missing, unexpected, or have another shape."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def __str__(self) -> str:
        names = [*self.missing, *self.unexpected, *self.reshaped]
        first = f" (first: {names[0]})" if names else ""
        counts = {"missing": len(self.missing), "unexpected": len(self.unexpected), "of another shape": len(self.reshaped)}
        return ", ".join(f"{amount(count, 'tensor')} {how}" for how, count in counts.items() if count) + first


def differing_names(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Differing:
    """Compare the tensors that a module expects with the shapes that were found."""
    missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    return Differing(missing, unexpected, sorted(name for name in expected.keys() & shapes.keys() if expected[name].shape != shapes[name]))


class _Place(NamedTuple):
    """Where a tensor is: its file, the name that it has there, and its shape."""

    file: Path
    stored: str
    shape: tuple[int, ...]


def _places(directory: Path) -> dict[str, _Place]:
    """Return the place of each tensor of a directory, by its present name."""
    places: dict[str, _Place] = {}
    for file in weight_files(directory):
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118  safe_open is not a mapping
                if name in places:
                    raise CheckpointError(f"'{name}' is in both '{places[name].file}' and '{file}'")
                places[name] = _Place(file, name, tuple(opened.get_slice(name).get_shape()))
    return {current: places[stored] for stored, current in current_names(places).items()}


def _tensors(file: Path, rows: Mapping[str, slice | None]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by name, whole or some rows, each valid until the next one; only a small part of the file is mapped
    at a time."""
    names = list(rows)
    start = 0
    while start < len(names):
        taken = 0
        with _opened(file) as opened:
            while start < len(names) and taken < _MAPPED_BYTES:
                name = names[start]
                wanted = rows[name]
                with readable(file):
                    tensor = opened.get_tensor(name) if wanted is None else opened.get_slice(name)[wanted]
                taken += tensor.nbytes
                yield name, tensor
                del tensor
                start += 1


def _opened(file: Path) -> Any:
    with readable(file):
        return open_tensors(file)


def _weight_map(index: Path) -> dict[str, str]:
    """Return which shard holds which tensor. A shard lies next to its index and has a shard's name."""
    try:
        places: dict[str, str] = read_json(index)["weight_map"]
        fits = isinstance(places, dict) and places and all(isinstance(name, str) and SHARD.fullmatch(name) for name in places.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{index}' is not an index of weights: {type(error).__name__}: {error}") from error
    if not fits:
        raise CheckpointError(f"'{index}' is not an index of weights; weight_map must name files such as model-00001-of-00002.safetensors")
    return places


def _plan(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Return the names of the tensors of each shard, in the order of the state."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, taken in sizes.items():
        if shards[-1] and size + taken > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += taken
    return shards


def _stored_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size())


def _stored(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor on the CPU, in `dtype` if it is a floating-point tensor."""
    given = value.detach()
    stored = given.to("cpu", dtype if dtype is not None and given.is_floating_point() else given.dtype).contiguous()
    if not bool(stored.isfinite().all()) and bool(given.isfinite().all()):
        largest = float(given.abs().max())
        raise CheckpointError(f"'{name}' has values up to {largest:.3g}, too large for {dtype}; store float32 or bfloat16")
    return stored
