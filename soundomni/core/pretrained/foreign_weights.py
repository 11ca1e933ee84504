"""Other people's weight files, read without running anything in them.

| path | read by |
|---|---|
| `*.safetensors` | safetensors; tensors are read when asked for |
| `*.pt`, `*.pth`, `*.ckpt`, `*.bin` | `torch.load(weights_only=True)`, mapped into memory where the format allows |
| `*.index.json` | its shards, which lie next to it |
| a directory | its index, or else its only weight file; safetensors before pickles |

Containers within a pickle are flattened: `{"state_dict": {"a.weight": tensor}}` gives the name `state_dict.a.weight`.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError, amount, did_you_mean, message_of, some
from soundomni.core.files.pickle_bounds import check_archive, check_legacy
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.files.small_files import open_regular, read_json
from soundomni.core.pretrained.weights import check_dtype

SAFE_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
INDEX_SUFFIX = ".index.json"
EXPECTED = f"a {SAFE_SUFFIX}, {', '.join(PICKLE_SUFFIXES)} or {INDEX_SUFFIX} file, or a directory with one"

MOST_VALUES = 1_000_000
DEEPEST = 16
"""Limits for the contents of a pickle: containers that hold each other have no end.

Containers with tensors count each time.
"""


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ZIP = b"PK\x03\x04"
_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_GLOBAL = re.compile(r"GLOBAL `?([\w.]+\w)")


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


class WeightFile(Mapping[str, Tensor]):
    """Tensors of a checkpoint by name; each is read onto the CPU when it is asked for.

    Args:
        path: the given file or directory.
        files: the files that were read.
        entries: name → shape and how to read it.
        others: names of entries that are not tensors; a container without any tensor counts as one.
    """

    def __init__(self, path: Path, files: tuple[Path, ...], entries: Mapping[str, _Entry], others: tuple[str, ...] = ()) -> None:
        self.path = path
        self.files = files
        self.others = others
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._entries[name].shape

    def without(self, prefix: str) -> WeightFile:
        """Return the same tensors under names without a prefix, if all of them have it; otherwise return this file."""
        if not self._entries or not all(name.startswith(prefix) for name in self._entries):
            return self
        entries = {name.removeprefix(prefix): entry for name, entry in self._entries.items()}
        return WeightFile(self.path, self.files, entries, self.others)

    def made_of(self, tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], Tensor]]]) -> WeightFile:
        """Return tensors that are made from this file's tensors on demand: name → shape and how to make it."""
        return WeightFile(self.path, self.files, {name: _Entry(shape, load) for name, (shape, load) in tensors.items()})


def join_weights(path: Path, parts: Mapping[str, WeightFile]) -> WeightFile:
    """Return the tensors of several files as one file, called `path` in errors; `files` maps prefixes of names to
    files."""
    entries = {f"{prefix}{name}": part._entries[name] for prefix, part in parts.items() for name in part}
    others = [f"{prefix}{name}" for prefix, part in parts.items() for name in part.others]
    return WeightFile(path, tuple(file for part in parts.values() for file in part.files), entries, tuple(others))


def read_weights(path: str | Path, *, safe: bool = False) -> WeightFile:
    """Open a weight file, a sharded one through its index, or a directory with one.

    Args:
        path: a weight file, an index, or a directory with one.
        safe: only read safetensors. A pickle is refused by its name, also in an index, before any file of weights is opened.

    Raises:
        CheckpointError: it is missing, damaged or not a weight file, lacks a shard, or is a pickle that asks for more
            than tensors.
    """
    given = Path(path)
    if given.is_dir():
        return _read_directory(given, safe=safe)
    if not given.is_file():
        beside = [entry.name for entry in given.parent.iterdir()] if given.parent.is_dir() else []
        raise CheckpointError(f"no weights at '{given}': expected {EXPECTED}.{did_you_mean(given.name, beside)}")
    if given.name.endswith(INDEX_SUFFIX):
        return _read_index(given, safe=safe)
    if safe:
        _check_safe(given, [given.name])
    entries, others = _read_file(given)
    return WeightFile(given, (given,), entries, others)


def digest(file: Path) -> dict[str, Any]:
    """Return SHA-256 and size in bytes of a file, as plain data for a report."""
    with file.open("rb") as opened:
        return {"sha256": hashlib.file_digest(opened, "sha256").hexdigest(), "bytes": file.stat().st_size}


def _read_file(path: Path) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    suffix = path.suffix.lower()
    if suffix not in (SAFE_SUFFIX, *PICKLE_SUFFIXES):
        raise CheckpointError(f"'{path}' is not a weight file: expected {EXPECTED}")
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if start == _POINTER:
        raise CheckpointError(f"'{path}' is a Git LFS pointer, not the weights it stands for; fetch them with `git lfs pull`")
    if suffix == SAFE_SUFFIX:
        return _read_safetensors(path), ()
    return _read_pickle(path, mapped=start.startswith(_ZIP))


def _read_safetensors(path: Path) -> dict[str, _Entry]:
    def loader(name: str) -> Callable[[], Tensor]:
        def load() -> Tensor:
            with readable(path):
                tensor: Tensor = file.get_tensor(name)
            return tensor

        return load

    with readable(path):
        file = open_tensors(path)
        return {name: _Entry(tuple(file.get_slice(name).get_shape()), loader(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _read_pickle(path: Path, *, mapped: bool) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    try:
        (check_archive if mapped else check_legacy)(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and archives; what cannot be read is an error here
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except Exception as error:  # damaged bytes fail anywhere: in the archive, the unpickler, or when a tensor is made
        reason = _first_sentence(error)
        raise CheckpointError(f"'{path}' cannot be read as a torch checkpoint; it is damaged or something else: {reason}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"'{path}' holds a {type(loaded).__name__}; expected tensors by name")
    found = _Flattening(path)
    found.add(loaded, "")
    return {name: _Entry(tuple(tensor.shape), tensor.detach) for name, tensor in found.tensors.items()}, tuple(found.others)


def _refusal(path: Path, message: str) -> str:
    wanted = _GLOBAL.search(message)
    if wanted is None:
        return f"'{path}' is damaged, was not written by torch.save, or holds more than tensors; none of its code was run"
    return f"'{path}' is a pickle with code in it: it asks for '{wanted[1]}', which weights do not need; none of its code was run"


class _Flattening:
    """Contents of nested containers, under dotted names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.others: list[str] = []
        self._visited = 0
        self._without: set[int] = set()
        """Identities of containers without any tensor, which need not be searched again; the file keeps them alive."""

    def add(self, value: Any, name: str, depth: int = 0) -> None:
        """Add the contents of `value`, under names that continue `name`."""
        self._visited += 1
        if depth > DEEPEST or self._visited > MOST_VALUES:
            limits = f"nested deeper than {DEEPEST}, or more than {MOST_VALUES:,} values"
            raise CheckpointError(f"'{self.path}' holds containers {limits}; it is not a weight file")
        if isinstance(value, Tensor):
            self._add_tensor(value, name)
            return
        if id(value) in self._without or not isinstance(value, (dict, list, tuple)):
            self.others += [name] if name else []
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        tensors, others = len(self.tensors), len(self.others)
        for key, item in items:
            self.add(item, f"{name}.{key}" if name else str(key), depth + 1)
        if len(self.tensors) == tensors:
            self.others[others:] = [name] if name else []
            self._without.add(id(value))

    def _add_tensor(self, tensor: Tensor, name: str) -> None:
        if name in self.tensors:
            raise CheckpointError(f"'{self.path}' holds two tensors named '{name}'")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "has no values" if tensor.is_meta else "is a sparse or quantized tensor"
            raise CheckpointError(f"'{self.path}': '{name}' {kind}; expected a dense tensor")
        if math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"'{self.path}': '{name}' has shape {tuple(tensor.shape)}, but the file holds fewer numbers")
        self.tensors[name] = tensor.detach()


def _read_directory(directory: Path, *, safe: bool) -> WeightFile:
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    for suffixes in ((SAFE_SUFFIX,), *(() if safe else (PICKLE_SUFFIXES,))):
        indices = [name for name in names if name.endswith(tuple(f"{suffix}{INDEX_SUFFIX}" for suffix in suffixes))]
        files = [name for name in names if name.endswith(suffixes)]
        found = indices or files
        if not indices and found and all(_SHARD.fullmatch(name) for name in found):
            return _join(directory, [directory / name for name in _all_shards(directory, found)])
        if len(found) > 1:
            raise CheckpointError(f"'{directory}' holds several weight files ({some(found)}); name one of them")
        if found:
            only = read_weights(directory / found[0], safe=safe)
            return WeightFile(directory, only.files, {name: only._entries[name] for name in only}, only.others)
    expected = f"a {SAFE_SUFFIX} file" if safe else EXPECTED
    raise CheckpointError(f"no weights in '{directory}': expected {expected}; it holds {some(names) or 'no file'}")


def _all_shards(directory: Path, found: list[str]) -> list[str]:
    """Return the names of all shards if there are some without an index. Raise CheckpointError if one is missing."""
    kinds = {(match[1], match[3], match[4]) for name in found if (match := _SHARD.fullmatch(name))}
    if len(kinds) > 1:
        raise CheckpointError(f"'{directory}' holds shards of several weight files ({some(found)}); move one set elsewhere")
    stem, count, suffix = kinds.pop()
    names = [f"{stem}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
    _check_shards(directory, names)
    return names


def _read_index(index: Path, *, safe: bool) -> WeightFile:
    try:
        tree = read_json(index)
        table = tree["weight_map"]
        pairs = {str(name): str(file) for name, file in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{index}' is not an index of shards; expected JSON with weight_map, tensor → file") from error
    shards = sorted(set(pairs.values()))
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", "..") or "\\" in shard:
            raise CheckpointError(f"'{index}' names the shard '{shard}'; expected a file next to it")
    if safe:
        _check_safe(index, shards)
    _check_shards(index.parent, shards)
    joined = _join(index, [index.parent / shard for shard in shards])
    absent = [name for name in pairs if name not in joined]
    if absent:
        raise CheckpointError(f"'{index}' lists {amount(len(absent), 'tensor')} that its shards do not hold ({some(absent)})")
    return joined


def read_float32(weights: WeightFile, name: str) -> Tensor:
    """Return a copy of a tensor of someone else's file as float32.

    Raise CheckpointError if it is not floating point of at most 32 bits, or holds a number that is not finite.
    """
    tensor = weights[name]
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(f"'{weights.path}': '{name}' is {tensor.dtype}; expected one of {', '.join(map(str, _FLOATS))}")
    _check_finite(weights, name, tensor)
    return tensor.to(torch.float32, copy=True).contiguous()


def read_floating(weights: WeightFile, name: str) -> Tensor:
    """Return a tensor of someone else's file in its own precision.

    Raise CheckpointError if it is not floating point of 16 to 64 bits, or holds a number that is not finite.
    """
    tensor = weights[name]
    check_dtype(name, tensor, weights.path)
    _check_finite(weights, name, tensor)
    return tensor


def _check_finite(weights: WeightFile, name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"'{weights.path}': '{name}' has numbers that are not finite, as if its training had diverged")


def _check_safe(path: Path, files: list[str]) -> None:
    pickles = [name for name in files if Path(name).suffix.lower() != SAFE_SUFFIX]
    if pickles:
        raise CheckpointError(f"'{path}' keeps weights in {some(pickles)}; expected only {SAFE_SUFFIX} files, which never hold code")


def _check_shards(directory: Path, names: list[str]) -> None:
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"'{directory}' lacks {len(missing)} of {len(names)} shards: {some(missing)}")


def _join(path: Path, shards: list[Path]) -> WeightFile:
    entries: dict[str, _Entry] = {}
    others: list[str] = []
    for shard in shards:
        held, beside = _read_file(shard)
        twice = sorted(entries.keys() & held.keys())
        if twice:
            raise CheckpointError(f"'{shard}' holds tensors that another shard also holds ({some(twice)})")
        entries.update(held)
        others.extend(beside)
    return WeightFile(path, tuple(shards), entries, tuple(others))


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's text: torch's continues with advice on how to run the code in the file."""
    return message_of(error).split(". ")[0].rstrip(".")
