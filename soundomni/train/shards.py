"""Tensors on disk, in the same shards as in memory: safetensors and JSON, never pickle.

Each rank writes `rank-00000.safetensors` with its slices along dimension 0, and `rank-00000.json` with the whole shape
and the first row of each. A reader takes the slices that it needs from the files that have them, so any number of ranks
can read what any other number wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from soundomni.core.errors import CheckpointError, did_you_mean, shown
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.pretrained.renamed_tensors import current_names
from soundomni.core.pretrained.weights import Differing

MOST_INDEX_BYTES = 1 << 26
"""Largest index of a rank, in bytes: it also stores what waits in the loader and in the packer."""


@dataclass(frozen=True)
class Slice:
    """This rank's part of a tensor: `values` are rows `start` to `start + len(values)` of a tensor of shape `shape`.

    `is_owner` is true on exactly one of the ranks that have these rows. A 0-dim tensor is whole, with start 0.
    """

    values: Tensor
    shape: tuple[int, ...]
    start: int
    is_owner: bool


def local_slice(tensor: Tensor, *, rank: int) -> Slice:
    """Return this rank's slice of a DTensor sharded along dimension 0, as FSDP2 does, or a whole plain tensor.

    Raises:
        ValueError: the DTensor is placed in another way.
    """
    if not isinstance(tensor, DTensor):
        return Slice(tensor.detach(), tuple(tensor.shape), 0, rank == 0)
    mesh, coordinate = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "this rank is not part of the mesh"
    start, is_owner, sharded = 0, True, False
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            is_owner = is_owner and coordinate[dimension] == 0
        elif type(placement) is Shard and placement.dim == 0 and not sharded:
            chunk = -(-tensor.shape[0] // mesh.size(dimension))  # rows per rank, as torch.chunk deals them
            start, sharded = min(chunk * coordinate[dimension], tensor.shape[0]), True
        else:
            raise ValueError(f"cannot save a tensor placed as {tensor.placements}: expected at most one Shard(0)")
    local: Tensor = tensor.to_local()
    return Slice(local.detach(), tuple(tensor.shape), start, is_owner)


def stage(tensors: Mapping[str, Tensor], *, rank: int) -> dict[str, Slice]:
    """Copy what this rank has to write into host memory, so training can continue while it is written."""
    staged = {}
    for name, tensor in tensors.items():
        part = local_slice(tensor, rank=rank)
        if part.is_owner and (part.values.numel() or part.shape[0] == 0):
            values = part.values.to("cpu", copy=True).contiguous()
            staged[name] = Slice(values, part.shape, part.start, True)
    return staged


def write_rank(directory: Path, rank: int, staged: Mapping[str, Slice], extra: Mapping[str, Any]) -> list[Path]:
    """Write one rank's slices, and their index with `extra` (plain JSON); return the files.

    Raise OSError or SafetensorError on failure.
    """
    tensors, index = _paths(directory, rank)
    save_file({name: part.values for name, part in staged.items()}, tensors)
    places = {name: {"shape": part.shape, "start": part.start} for name, part in staged.items()}
    index.write_text(json.dumps({"tensors": places, **extra}), encoding="utf-8")
    return [tensors, index]


class ShardReader:
    """Reads whole tensors, or any rank's slice of them, from the files of `num_ranks` ranks.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def __init__(self, directory: Path, num_ranks: int) -> None:
        self.directory = directory
        self._indices = [self._read_index(rank) for rank in range(num_ranks)]
        self._holders: dict[str, list[tuple[int, int]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        current = current_names(dict.fromkeys(name for index in self._indices for name in index["tensors"]))
        self._stored = {name: stored for stored, name in current.items()}
        for rank, index in enumerate(self._indices):
            for stored, place in index["tensors"].items():
                name = current[stored]
                if not _is_place(place):
                    raise CheckpointError(
                        f"'{_paths(directory, rank)[1]}' says {shown(place)} about '{name}'; expected its shape and start"
                    )
                self._holders.setdefault(name, []).append((place["start"], rank))
                self._shapes[name] = tuple(place["shape"])

    def _read_index(self, rank: int) -> dict[str, Any]:
        path = _paths(self.directory, rank)[1]
        index = read_object(path, most_bytes=MOST_INDEX_BYTES)
        if not isinstance(index.get("tensors"), dict):
            raise CheckpointError(f"'{path}' is not the index of a rank; expected a JSON object with tensors")
        return index

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the whole shape of a tensor."""
        return self._shapes[name]

    def check(self) -> None:
        """Check every index against the header of its file. Raise CheckpointError if rows are missing or differ."""
        rows = dict.fromkeys(self._shapes, 0)
        for rank, index in enumerate(self._indices):
            path = _paths(self.directory, rank)[0]
            with readable(path), open_tensors(path) as file:
                for name in [name for name, stored in self._stored.items() if stored in index["tensors"]]:
                    held, shape = tuple(file.get_slice(self._stored[name]).get_shape()), self._shapes[name]
                    if held[1:] != shape[1:] or len(held) != len(shape):
                        raise CheckpointError(f"'{path}': '{name}' has the shape {held}; its index says {shape}")
                    rows[name] += held[0] if held else 0
        for name, shape in self._shapes.items():
            if shape and rows[name] < shape[0]:
                raise CheckpointError(f"'{self.directory}': {shape[0] - rows[name]} rows of '{name}' are missing")

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor. Raise CheckpointError on failure."""
        path = _paths(self.directory, self._holders[name][0][1])[0]
        with readable(path), open_tensors(path) as file:
            stored = self._stored[name]
            dtype: torch.dtype = (file.get_slice(stored)[:0] if self._shapes[name] else file.get_tensor(stored)).dtype
        return dtype

    def extra(self, rank: int) -> dict[str, Any]:
        """Return what that rank wrote in its index in addition to tensors."""
        return {key: value for key, value in self._indices[rank].items() if key != "tensors"}

    @torch.no_grad()
    def read_into(self, name: str, target: Tensor) -> None:
        """Fill this rank's slice of `target`, a plain tensor or a DTensor, in place.

        Raises:
            CheckpointError: there is no such tensor, it has another shape or dtype, or rows are missing.
        """
        if name not in self._shapes:
            raise CheckpointError(f"'{self.directory}' has no tensor '{name}'.{did_you_mean(name, self._shapes)}")
        wanted = local_slice(target, rank=0)
        if self._shapes[name] != wanted.shape:
            raise CheckpointError(f"'{self.directory}': '{name}' has shape {self._shapes[name]}, the model expects {wanted.shape}")
        first, last = wanted.start, wanted.start + _rows(wanted.values)
        filled = 0
        for start, rank in self._holders[name]:
            filled += self._copy_rows(name, rank, start, wanted.values, first, last)
        if filled < last - first:
            raise CheckpointError(f"'{self.directory}': {last - first - filled} rows of '{name}' are missing")

    def _copy_rows(self, name: str, rank: int, start: int, target: Tensor, first: int, last: int) -> int:
        """Copy those of the rows `first` to `last` that are in a rank's file; return their number."""
        path = _paths(self.directory, rank)[0]
        with readable(path), open_tensors(path) as file:
            stored = self._stored[name]
            held = file.get_slice(stored).get_shape()
            if tuple(held[1:]) != tuple(target.shape[1:]) or len(held) != target.ndim:
                raise CheckpointError(f"'{path}': '{name}' has the shape {tuple(held)}; its index says {self._shapes[name]}")
            if target.ndim == 0:
                target.copy_(_same_type(file.get_tensor(stored), target, name, path))
                return 1
            piece = file.get_slice(stored)
            low, high = max(first, start), min(last, start + piece.get_shape()[0])
            if low >= high:
                return 0
            target[low - first : high - first].copy_(_same_type(piece[low - start : high - start], target, name, path))
            return int(high - low)


def expect_same_names(wanted: Iterable[str], found: Iterable[str], directory: Path) -> None:
    """Raise CheckpointError, which names the first difference, unless both have the same names."""
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        raise CheckpointError(f"'{directory}' belongs to another model: {Differing(missing, unexpected, [])}")


def _paths(directory: Path, rank: int) -> tuple[Path, Path]:
    return directory / f"rank-{rank:05d}.safetensors", directory / f"rank-{rank:05d}.json"


def _is_place(place: object) -> bool:
    """Return whether the entry of a tensor in an index is a shape and a first row."""
    shape, start = (place.get("shape"), place.get("start")) if isinstance(place, dict) else (None, None)
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in (*shape, start))


def _rows(tensor: Tensor) -> int:
    return 1 if tensor.ndim == 0 else len(tensor)


def _same_type(found: Tensor, target: Tensor, name: str, path: Path) -> Tensor:
    if found.dtype != target.dtype:
        raise CheckpointError(f"'{path}': '{name}' is {found.dtype}, the model expects {target.dtype}")
    return found
