"""Encoded clips in SoundOmni's own layout, read part by part.

Shape letters: N frames of a shard, D latent dimensions, K codebooks, T frames of a clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from soundomni.core.errors import CheckpointError, DataError, UnreadableAudioError, message_of, shown
from soundomni.core.files.paths import place
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.files.small_files import open_regular
from soundomni.core.interfaces import Encoding, Item, Skip
from soundomni.core.waveform import resampled_length
from soundomni.data.encoded.layout import MEASURED_FILE, VALUES, Header, read_header, shard_name
from soundomni.data.tables import json_rows
from soundomni.data.text_files import kind_of

_DTYPES = {"float32": "F32", "float16": "F16", "int16": "I16", "int32": "I32"}
_FIELDS: Mapping[str, type] = {
    "key": str,
    "num_samples": int,
    "sample_rate": int,
    "captions": list,
    "questions": list,
    "attributes": dict,
    "first": int,
    "frames": int,
}
"""Keys of a line, and the type of each. Other keys, such as seconds, are for people who read the file."""


@dataclass(frozen=True)
class _Place:
    """Where the frames of a clip are: its shard, the byte at which they begin, and their number."""

    file: Path
    first_byte: int
    frames: int


class Shards:
    """A folder of encoded clips. Its files are examined once, and stay closed between reads.

    Args:
        folder: the folder.

    Raise DataError if a file is missing, damaged or incomplete, or says something else than another one.
    """

    def __init__(self, folder: Path) -> None:
        header = read_header(folder)
        if not header.complete:
            raise DataError(f"the clips in {place(folder)} are not all encoded. Run `soundomni encode` again with --resume")
        self.encoding = Encoding(spec=header.spec, codec=header.name, fingerprint=header.fingerprint, measured=read_measured(folder))
        self.items: tuple[Item, ...] = ()
        self.skipped: tuple[Skip, ...] = ()
        self._places: dict[int, _Place] = {}
        self._dtype = np.dtype(header.dtype).newbyteorder("<")
        items: list[Item] = []
        skipped: list[Skip] = []
        for number in range(header.num_shards):
            for found in read_shard(folder, number, header):
                if isinstance(found, Skip):
                    skipped.append(found)
                    continue
                item, where = found
                self._places[len(items)] = where
                items.append(item)
        _check_keys(folder, items)
        self.items, self.skipped = tuple(items), tuple(skipped)

    def read(self, index: int, first: int, num_frames: int) -> np.ndarray:
        """Return frames of a clip, `[T, D]` or `[T, K]` as stored. Raise UnreadableAudioError."""
        where, width = self._places[index], self.encoding.spec.token_dim
        begin = where.first_byte + first * width * self._dtype.itemsize
        try:
            with os.fdopen(open_regular(where.file), "rb") as opened:
                rows = np.fromfile(opened, self._dtype, num_frames * width, offset=begin)
            return rows.reshape(num_frames, width)
        except (OSError, ValueError) as error:
            raise UnreadableAudioError(f"cannot read '{self.items[index].key}' in '{where.file}': {message_of(error)}") from error


def read_shard(folder: Path, number: int, header: Header) -> Iterator[tuple[Item, _Place] | Skip]:
    """Yield the clips of a shard, and those that could not be encoded. Raise DataError if it is damaged."""
    name = shard_name(number)
    file = folder / f"{name}.safetensors"
    extent = _examined(file, header)
    for line, values in json_rows(folder / f"{name}.jsonl"):
        try:
            yield _skip(values) if "skipped" in values else (_item(values), _place(values, file, extent, header))
        except ValueError as error:
            raise DataError(f"'{folder / name}.jsonl', row {line}: {error}") from error


def read_measured(folder: Path) -> dict[str, Tensor]:
    """Return what the codec measured; empty if the folder has no such file. Raise DataError."""
    file = folder / MEASURED_FILE
    if not file.exists():
        return {}
    try:
        with readable(file), open_tensors(file) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a mapping
    except CheckpointError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True)
class _Extent:
    """The rows of a shard: the byte at which the first one begins, and N."""

    first_byte: int
    rows: int


def _examined(file: Path, header: Header) -> _Extent:
    """Return where the rows of a shard are. Raise DataError unless it holds the tensor that the header announces."""
    try:
        with os.fdopen(open_regular(file), "rb") as raw:
            first_byte = 8 + int.from_bytes(raw.read(8), "little")  # a safetensors file begins with the length of its own header
        with open_tensors(file) as opened:
            names = list(opened.keys())
            values = opened.get_slice(VALUES) if names == [VALUES] else None
            shape, dtype = (values.get_shape(), values.get_dtype()) if values is not None else (names, "")
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"it is damaged or incomplete: {message_of(error)}"
        raise DataError(f"cannot read {place(file)}: {reason}. Encode the clips again") from error
    wanted = _DTYPES[header.dtype]
    if len(shape) != 2 or shape[1] != header.spec.token_dim or dtype != wanted:
        expected = f"one tensor '{VALUES}', {wanted} [N, {header.spec.token_dim}]"
        raise DataError(f"{place(file)} holds {dtype} {shape}; expected {expected}, as its header says")
    return _Extent(first_byte, int(shape[0]))


def _item(values: Mapping[str, Any]) -> Item:
    for name, kind in _FIELDS.items():
        if type(values.get(name)) is not kind:
            raise ValueError(f"'{name}' is {kind_of(values.get(name))}; expected {kind_of(kind())}")
    if not values["key"] or values["num_samples"] < 1 or values["sample_rate"] < 1:
        raise ValueError("expected a key, and at least 1 for num_samples and sample_rate")
    if not all(isinstance(caption, str) for caption in values["captions"]):
        raise ValueError("'captions' has something other than text in it")
    pairs = values["questions"]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs):
        raise ValueError("'questions' is not a list of [question, answer]")
    return Item(
        key=values["key"],
        num_samples=values["num_samples"],
        sample_rate=values["sample_rate"],
        captions=tuple(values["captions"]),
        questions=tuple((question, answer) for question, answer in pairs),
        attributes=values["attributes"],
    )


def _place(values: Mapping[str, Any], file: Path, extent: _Extent, header: Header) -> _Place:
    first, frames, spec = values["first"], values["frames"], header.spec
    wanted = spec.num_frames(resampled_length(values["num_samples"], values["sample_rate"], spec.sample_rate))
    if frames != wanted:
        raise ValueError(f"it has {frames} frames; expected {wanted} for its {values['num_samples']} samples")
    if not 0 <= first <= extent.rows - frames:
        raise ValueError(f"its frames {first} to {first + frames} lie outside of the {extent.rows} of '{file.name}'")
    return _Place(file, extent.first_byte + first * spec.token_dim * np.dtype(header.dtype).itemsize, frames)


def _skip(values: Mapping[str, Any]) -> Skip:
    key, reason = values.get("key"), values["skipped"]
    if not isinstance(key, str) or not isinstance(reason, str):
        raise ValueError("expected texts for 'key' and 'skipped'")
    told = " ".join(reason.split()) or "it could not be encoded"
    kind = values.get("kind", "unreadable")
    if kind not in ("unreadable", "unsuitable"):
        raise ValueError(f"the kind of a skipped clip is {shown(kind)}; expected unreadable or unsuitable")
    return Skip(key, told) if kind == "unreadable" else Skip(key, told, "unsuitable", "left out by a filter")


def _check_keys(folder: Path, items: list[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise DataError(f"the clips in {place(folder)} have the key '{item.key}' twice; expected each once")
        seen.add(item.key)
