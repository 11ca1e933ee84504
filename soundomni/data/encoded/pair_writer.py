"""Writing encoded clips in the layout that stable-audio-tools reads as its pre-encoded dataset.

| name | what it is |
|---|---|
| details.json | SoundOmni's header, under the key `soundomni` |
| 00000/00000012.npy | latents `[D, T]` of clip 12, with zeros as padding |
| 00000/00000012.json | prompt, seconds_start, seconds_total, relpath, and padding_mask: 1 for each frame of the clip, 0 for padding |

Shape letters: D latent dimensions, T frames.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from soundomni.core.errors import SpecError
from soundomni.core.files.whole_files import write_whole
from soundomni.core.interfaces import Skip
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import plain
from soundomni.data.encoded.encoder import ClipEncoder, Encoded
from soundomni.data.encoded.folder_writer import FolderWriter
from soundomni.data.encoded.layout import Header
from soundomni.data.encoded.stable_audio import DETAILS_FILE, OURS, read_details, sidecar

PART_BYTES = 10_000_000
CLIPS_PER_FOLDER = 1000


class PairWriter(FolderWriter):
    """Writes a pair of files for each clip.

    With a limit in seconds, all clips are padded to it, as stable-audio-tools needs for batches of whole clips.

    Args:
        folder, encoder, num_items, codec, fingerprint: as in FolderWriter.

    Raise SpecError for a codec of codes: the layout is for latents.
    """

    def __init__(self, *, folder: Path, encoder: ClipEncoder, num_items: int, codec: Slot, fingerprint: str) -> None:
        spec = encoder.codec.spec
        if spec.kind != "continuous":
            raise SpecError(f"codec '{codec.class_path}' makes codes; the layout stable-audio is for latents. Use --format soundomni")
        super().__init__(folder=folder, encoder=encoder, num_items=num_items, codec=codec, fingerprint=fingerprint, part_bytes=PART_BYTES)
        seconds = encoder.max_seconds
        self._padded = 0 if seconds is None else spec.num_frames(max(1, round(seconds * spec.sample_rate)))

    def found(self) -> Header | None:
        return read_details(self.folder / DETAILS_FILE)

    def open(self) -> None:
        self._write_details(self.header)

    def missing(self) -> list[int]:
        return [number for number, part in enumerate(self.parts) if not all(self._name(i).with_suffix(".json").exists() for i in part)]

    def write(self, number: int, told: Callable[[Encoded | Skip], None]) -> None:
        """Write the pairs of a part, of each pair the .json last: with it, the clip is there."""
        for index, clip in zip(self.parts[number], self.encoder.encode(self.parts[number]), strict=True):
            told(clip)
            if isinstance(clip, Skip):
                continue
            frames, name = len(clip.rows), self._name(index)
            padded = max(frames, self._padded)
            latents = io.BytesIO()
            np.save(latents, np.ascontiguousarray(np.pad(clip.rows, ((0, padded - frames), (0, 0))).T), allow_pickle=False)
            name.parent.mkdir(exist_ok=True)
            write_whole(name.with_suffix(".npy"), latents.getbuffer(), durable=True)
            write_whole(name.with_suffix(".json"), json.dumps(sidecar(clip.item, frames, padded)) + "\n", durable=True)

    def finish(self) -> None:
        self._write_details(replace(self.header, complete=True))

    def _name(self, index: int) -> Path:
        return self.folder / f"{index // CLIPS_PER_FOLDER:05d}" / f"{index:08d}"

    def _write_details(self, header: Header) -> None:
        write_whole(self.folder / DETAILS_FILE, json.dumps({OURS: plain(header)}, indent=2) + "\n", durable=True)
