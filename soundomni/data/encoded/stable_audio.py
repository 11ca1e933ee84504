"""Latents in the layout that stable-audio-tools reads as its pre-encoded dataset: NAME.npy and NAME.json for each clip.

Shape letters: D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError, message_of
from soundomni.core.files.paths import place
from soundomni.core.files.small_files import read_json
from soundomni.core.interfaces import Encoding, Item, Skip
from soundomni.core.representation import RepresentationSpec
from soundomni.data.captions import Notes, read_sidecar
from soundomni.data.encoded.layout import Header, header_of

DETAILS_FILE, OURS = "details.json", "soundomni"
"""File next to the clips, and the key in it under which SoundOmni keeps its own header."""
MASK = "padding_mask"
_FLOATS = ("float32", "float16", "float64")
_LARGEST_DIM = 1 << 16


class Pairs:
    """A folder of pairs, in the order of their names; keys are POSIX paths without the suffix.

    Args:
        folder: the folder, searched with its subfolders.
        sample_rate, downsampling_ratio, channels: those of the codec, unless the folder has SoundOmni's header.

    Raise DataError if latents have different dimensions, or the header does not fit.
    """

    def __init__(self, folder: Path, *, sample_rate: int, downsampling_ratio: int, channels: int) -> None:
        self._folder = folder
        header = read_details(folder / DETAILS_FILE)
        found: dict[str, tuple[Notes, tuple[int, int]]] = {}
        skipped: list[Skip] = []
        for file in sorted(folder.rglob("*.npy")):
            key = file.relative_to(folder).with_suffix("").as_posix()
            try:
                found[key] = _examined(file)
            except (OSError, ValueError) as error:
                skipped.append(Skip(key, message_of(error)))
        dims = {dim: key for key, (_, (dim, _)) in reversed(found.items())}
        if len(dims) > 1:
            named = " and ".join(f"'{key}' has {dim}" for dim, key in dims.items())
            raise DataError(f"the latents in {place(folder)} have different dimensions: {named}. Keep those of one codec")
        if header is None:
            spec = RepresentationSpec(
                kind="continuous",
                sample_rate=sample_rate,
                channels=channels,
                downsampling_ratio=downsampling_ratio,
                latent_dim=next(iter(dims), 1),
            )
            self.encoding = Encoding(spec=spec, codec="an unknown codec")
        else:
            self.encoding = Encoding(spec=header.spec, codec=header.name, fingerprint=header.fingerprint)
        if dims and self.encoding.spec.latent_dim not in dims:
            raise DataError(f"the latents in {place(folder)} have {next(iter(dims))} dimensions; its {DETAILS_FILE} says otherwise")
        spec = self.encoding.spec
        items = {key: _item(key, notes, frames, spec) for key, (notes, (_, frames)) in found.items()}
        short = [key for key, item in items.items() if spec.num_frames(item.num_samples) > found[key][1][1]]
        skipped += [Skip(key, f"it has fewer frames than the {spec.extra_frames} extra frames of its codec") for key in short]
        self.items = tuple(item for key, item in items.items() if key not in short)
        self.skipped = tuple(skipped)

    def read(self, index: int, first: int, num_frames: int) -> np.ndarray:
        """Return frames of a clip, `[T, D]`. Raise UnreadableAudioError."""
        file = self._folder / f"{self.items[index].key}.npy"
        try:
            return np.array(_mapped(file)[:, first : first + num_frames].T)
        except (OSError, ValueError) as error:
            raise UnreadableAudioError(f"cannot read '{file}': {message_of(error)}") from error


def read_details(file: Path) -> Header | None:
    """Return SoundOmni's header in details.json; None if there is none. Raise DataError if it is damaged."""
    try:
        tree = read_json(file) if file.is_file() else None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {place(file)}: {message_of(error)}") from error
    return header_of(tree[OURS], str(file)) if isinstance(tree, Mapping) and OURS in tree else None


def _mapped(file: Path) -> np.ndarray:
    """Return the array of a file without reading it. Raise ValueError unless it is `[D, T]` of floating-point numbers."""
    array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.name not in _FLOATS or not 0 < array.shape[0] <= _LARGEST_DIM:
        found = f"{array.dtype.name} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise ValueError(f"it holds {found}; expected latents [D, T] of floating-point numbers")
    return array


def _examined(file: Path) -> tuple[Notes, tuple[int, int]]:
    """Return what is known about a clip, and its (D, T) without padding. Raise OSError or ValueError."""
    dim, padded = _mapped(file).shape
    notes = read_sidecar(file.with_suffix(".json"))
    attributes = dict(notes.attributes)
    mask = attributes.pop(MASK, [1] * padded)
    if not isinstance(mask, list | tuple) or any(value not in (0, 1) for value in mask):
        raise ValueError(f"its {MASK} is not a list of 0 and 1")
    frames = min(padded, len(mask) - mask[::-1].index(1)) if 1 in mask else 0
    if frames < 1:
        raise ValueError("it has no frame that is not padding")
    return replace(notes, attributes=attributes), (dim, frames)


def _item(key: str, notes: Notes, frames: int, spec: RepresentationSpec) -> Item:
    return Item(
        key=key,
        num_samples=max(1, spec.num_samples(frames)),
        sample_rate=spec.sample_rate,
        captions=notes.captions,
        questions=notes.questions,
        attributes=notes.attributes,
    )


def sidecar(item: Item, frames: int, padded: int) -> dict[str, Any]:
    """Return the contents of NAME.json for a clip of `frames` frames in `padded` ones."""
    return {
        "prompt": item.captions[0] if item.captions else "",
        **({"captions": list(item.captions)} if len(item.captions) > 1 else {}),
        "relpath": item.key,
        "seconds_start": 0,
        "seconds_total": item.num_samples / item.sample_rate,
        MASK: [1] * frames + [0] * (padded - frames),
    }
