"""The dataset of clips that a codec encoded before the run.

Shape letters: C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError
from soundomni.core.files.paths import local_path, place
from soundomni.core.interfaces import Dataset, Encoding, Item, Skip
from soundomni.core.representation import RepresentationSpec
from soundomni.core.waveform import resampled_length
from soundomni.data.encoded.layout import HEADER_FILE
from soundomni.data.encoded.shards import Shards
from soundomni.data.encoded.stable_audio import Pairs


class Layout(Protocol):
    """A folder of encoded clips in one of the layouts that this dataset reads."""

    encoding: Encoding
    items: tuple[Item, ...]
    skipped: tuple[Skip, ...]

    def read(self, index: int, first: int, num_frames: int) -> np.ndarray:
        """Return frames of a clip, `[T, D]` or `[T, K]`. Raise UnreadableAudioError."""
        ...


class EncodedClips(Dataset):
    """Clips that `soundomni encode` wrote, or latents in Stable Audio's pre-encoded layout, in their order in the
    folder.

    Training reads their latents or codes, and does not run the codec. A run compares the codec with the one that made
    them, by a fingerprint, before its first step. There is no waveform, so tasks that hear a clip cannot use them.

    In Stable Audio's layout, each clip is a pair of files, NAME.npy with `[D, T]` and NAME.json; the last 1 in its
    `padding_mask` ends the clip. If another program wrote them, the codec is unknown, and no run can compare it.

    Args:
        path: the folder; a leading `~` means the home directory.
        sample_rate: sample rate in Hz of the unknown codec of a folder in Stable Audio's layout.
        downsampling_ratio: samples per frame of that codec.
        channels: audio channels of that codec.

    Nothing is ever unpickled. A damaged pair in Stable Audio's layout is left out and listed in `skipped`.

    Raise DataError if there is no such folder, or if a file of it is missing, damaged, or does not fit the others.
    """

    def __init__(self, *, path: str, sample_rate: int = 44100, downsampling_ratio: int = 2048, channels: int = 2) -> None:
        folder = local_path(path)
        if not folder.is_dir():
            raise DataError(f"there is no folder {place(path)}; expected one that `soundomni encode` wrote")
        self._layout: Layout
        if (folder / HEADER_FILE).is_file():
            self._layout = Shards(folder)
        else:
            self._layout = Pairs(folder, sample_rate=sample_rate, downsampling_ratio=downsampling_ratio, channels=channels)
        if not self._layout.items:
            raise DataError(f"the folder {place(path)} has no encoded clip{_first(self._layout.skipped)}")

    def __len__(self) -> int:
        return len(self._layout.items)

    def item(self, index: int) -> Item:
        return self._layout.items[index]

    @property
    def encoding(self) -> Encoding:
        """The codec that made the clips."""
        return self._layout.encoding

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return self._layout.skipped

    def num_frames(self, index: int) -> int:
        """Return T of a clip."""
        item, spec = self.item(index), self.encoding.spec
        return spec.num_frames(resampled_length(item.num_samples, item.sample_rate, spec.sample_rate))

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Raise UnreadableAudioError: there is no audio."""
        raise UnreadableAudioError(f"cannot read '{self.item(index).key}': it is encoded, and has no audio. Use the dataset of audio")

    def load_encoded(self, index: int, *, first: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Return frames of a clip, float32 `[D, T]` or int64 `[K, T]`.

        Raise UnreadableAudioError if it cannot be read, or has values that are not finite or not in their codebook.
        """
        item, spec, total = self.item(index), self.encoding.spec, self.num_frames(index)
        count = total - first if num_frames is None else num_frames
        if first < 0 or count < 1 or first + count > total:
            raise UnreadableAudioError(f"cannot read '{item.key}': it has {total} frames, {first} to {first + count} were requested")
        rows = self._layout.read(index, first, count)
        _check_values(rows, (count, spec.token_dim), spec, item.key)
        return np.ascontiguousarray(rows.T, dtype=np.float32 if spec.kind == "continuous" else np.int64)


def _check_values(rows: np.ndarray, shape: tuple[int, int], spec: RepresentationSpec, key: str) -> None:
    """Raise UnreadableAudioError unless rows `[T, D]` are finite latents, or codes of the codebooks."""
    if rows.shape != shape:
        raise UnreadableAudioError(f"cannot read '{key}': it has the shape {list(rows.shape)}; expected {list(shape)}")
    if spec.kind == "continuous":
        if not np.isfinite(rows).all():
            raise UnreadableAudioError(f"cannot read '{key}': it has values that are not finite")
    elif (rows < 0).any() or (rows >= np.asarray(spec.codebook_sizes)).any():
        raise UnreadableAudioError(f"cannot read '{key}': it has codes that are not in the codebooks of {list(spec.codebook_sizes)}")


def _first(skipped: tuple[Skip, ...]) -> str:
    return f"; the first, '{skipped[0].key}': {skipped[0].reason}" if skipped else ""
