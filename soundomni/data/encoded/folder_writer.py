"""Writing a folder of encoded clips: part after part, each whole or not at all, so that an interruption loses one part.

Which clips a part has follows from what is known about them without decoding, so any number of processes write the same
files.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.errors import DataError
from soundomni.core.files.paths import place
from soundomni.core.interfaces import Codec, Item, Skip
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import plain
from soundomni.data.encoded.encoder import ClipEncoder, Encoded
from soundomni.data.encoded.layout import Header


class FolderWriter(ABC):
    """Writes the clips of a dataset into a folder, in parts that are numbered.

    Args:
        folder: the folder; it exists when `begin` is called.
        encoder: encodes the clips.
        num_items: how many clips of the dataset are encoded, its first ones.
        codec, fingerprint: the codec's slot with all arguments, and its digest.
        part_bytes: largest part, in bytes of values; a clip that is larger gets one by itself.
    """

    def __init__(self, *, folder: Path, encoder: ClipEncoder, num_items: int, codec: Slot, fingerprint: str, part_bytes: int) -> None:
        self.folder = folder
        self.encoder = encoder
        items = [encoder.item(index) for index in range(num_items)]
        self.parts = plan_parts([encoder.num_bytes(item) for item in items], part_bytes)
        self.header = Header(
            codec=plain(codec),
            spec=encoder.codec.spec,
            fingerprint=fingerprint,
            dtype=encoder.dtype,
            num_shards=len(self.parts),
            num_items=num_items,
            listing=_listing(items),
            max_seconds=encoder.max_seconds,
            shard_bytes=part_bytes,
        )

    def begin(self, *, resume: bool) -> None:
        """Write the header of a new folder. With `resume`, take the folder of an interrupted encoding.

        Raise DataError if the folder is not empty, or was made from other clips, by another codec or in another way.
        """
        found = self.found() if resume else None
        if found is None and any(self.folder.iterdir()):
            advice = "Give a new or empty directory" + ("" if resume else ", or --resume to continue an interrupted encoding")
            raise DataError(f"{place(self.folder)} is not empty. {advice}")
        if found is None:
            self.open()
        elif replace(found, complete=False) != self.header:
            raise DataError(f"{place(self.folder)} cannot be continued: {_difference(found, self.header)}. Give a new directory")

    @abstractmethod
    def found(self) -> Header | None:
        """Return the header that the folder has, None if it has none. Raise DataError if it is damaged."""

    @abstractmethod
    def open(self) -> None:
        """Write what is known before any clip is encoded."""

    @abstractmethod
    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not written."""

    @abstractmethod
    def write(self, number: int, told: Callable[[Encoded | Skip], None]) -> None:
        """Encode and write a part; `told` gets each of its clips."""

    @abstractmethod
    def finish(self) -> None:
        """Mark the folder as complete."""

    def num_clips(self, number: int) -> int:
        """Return the number of clips of a part."""
        return len(self.parts[number])


def measured_by(codec: Codec) -> dict[str, Tensor]:
    """Return what a codec measures on data: its buffers, if its class has a `fit`."""
    if type(codec).fit is Codec.fit:
        return {}
    state = codec.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name, _ in codec.named_buffers() if name in state}


def plan_parts(sizes: Sequence[int], limit: int) -> list[range]:
    """Return the indices of the clips of each part: consecutive ones, at most `limit` bytes together."""
    parts: list[range] = []
    first = taken = 0
    for index, size in enumerate(sizes):
        if index > first and taken + size > limit:
            parts.append(range(first, index))
            first, taken = index, 0
        taken += size
    return [*parts, range(first, len(sizes))] if sizes else []


def line_of(item: Item, first: int, frames: int) -> dict[str, Any]:
    """Return a clip's line in the index: what is known about it, and where its frames are."""
    return {
        "key": item.key,
        "num_samples": item.num_samples,
        "sample_rate": item.sample_rate,
        "seconds": round(item.num_samples / item.sample_rate, 6),
        "captions": list(item.captions),
        "questions": [list(pair) for pair in item.questions],
        "attributes": dict(_data_of(item.attributes)),
        "first": first,
        "frames": frames,
    }


def _data_of(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that JSON can hold."""
    for name, value in attributes.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            continue
        yield name, value


def _listing(items: Sequence[Item]) -> str:
    """Return a digest of what is known about clips."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(line_of(item, 0, 0)).encode())
    return digest.hexdigest()


def _difference(found: Header, wanted: Header) -> str:
    """Return what an interrupted encoding did in another way."""
    names = {"fingerprint": "the codec", "listing": "the clips", "dtype": "--dtype", "max_seconds": "--max-seconds"}
    names["shard_bytes"] = "--shard-mb"
    for name, what in names.items():
        if getattr(found, name) != getattr(wanted, name):
            return f"{what} differed when it began"
    return "it was begun with other settings"
