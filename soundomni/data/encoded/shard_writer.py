"""Writing encoded clips as shards of bounded size, SoundOmni's own layout.

Shape letters: N frames of a shard, D latent dimensions, K codebooks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from safetensors.torch import save as save_torch
from torch import Tensor

from soundomni.core.files.whole_files import write_whole
from soundomni.core.interfaces import Skip
from soundomni.core.spec.schema import Slot
from soundomni.data.encoded.encoder import ClipEncoder, Encoded
from soundomni.data.encoded.folder_writer import FolderWriter, line_of
from soundomni.data.encoded.layout import HEADER_FILE, MEASURED_FILE, VALUES, Header, read_header, shard_name, write_header

SHARD_BYTES = 100_000_000


class ShardWriter(FolderWriter):
    """Writes shards.

    Args:
        folder, encoder, num_items, codec, fingerprint: as in FolderWriter.
        measured: what the codec measured on the data.
        shard_bytes: largest shard.
    """

    def __init__(
        self,
        *,
        folder: Path,
        encoder: ClipEncoder,
        num_items: int,
        codec: Slot,
        fingerprint: str,
        measured: Mapping[str, Tensor],
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        super().__init__(folder=folder, encoder=encoder, num_items=num_items, codec=codec, fingerprint=fingerprint, part_bytes=shard_bytes)
        self._measured = measured

    def found(self) -> Header | None:
        return read_header(self.folder) if (self.folder / HEADER_FILE).exists() else None

    def open(self) -> None:
        if self._measured:
            write_whole(self.folder / MEASURED_FILE, save_torch(dict(self._measured)), durable=True)
        write_header(self.folder, self.header)

    def missing(self) -> list[int]:
        return [number for number in range(len(self.parts)) if not (self.folder / f"{shard_name(number)}.jsonl").exists()]

    def write(self, number: int, told: Callable[[Encoded | Skip], None]) -> None:
        """Write a shard, its lines last: with them, it is there."""
        rows: list[np.ndarray] = []
        lines: list[str] = []
        first = 0
        for clip in self.encoder.encode(self.parts[number]):
            told(clip)
            if isinstance(clip, Skip):
                kind = {} if clip.kind == "unreadable" else {"kind": clip.kind}
                lines.append(json.dumps({"key": clip.key, "skipped": clip.reason, **kind}))
                continue
            lines.append(json.dumps(line_of(clip.item, first, len(clip.rows))))
            rows.append(clip.rows)
            first += len(clip.rows)
        values = np.concatenate(rows) if rows else np.zeros((0, self.header.spec.token_dim), self.header.dtype)
        name = self.folder / shard_name(number)
        write_whole(name.with_suffix(".safetensors"), save({VALUES: values}), durable=True)
        write_whole(name.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines), durable=True)

    def finish(self) -> None:
        write_header(self.folder, replace(self.header, complete=True))
