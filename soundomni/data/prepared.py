"""A dataset whose clips are prepared as `clips` of its entry says, whenever they are read.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.writing.preparing import finish, known_part, prepare, prepared_length
from soundomni.data.audio import fit_announced

_DRAW = zlib.crc32(b"clips")
"""Makes the place of a random cut independent of everything else that a sample's seed decides."""


class Prepared(Dataset):
    """The clips of a dataset, prepared, in the same order. Lengths are known without reading anything.

    Args:
        whole: the clips as they are.
        clips: how they are prepared.
        draw: the random place at which clips are cut, from 0, the first one, to below 1.

    Raise SpecError for a dataset of encoded clips.
    """

    def __init__(self, whole: Dataset, clips: ClipSpec, *, draw: float = 0.0) -> None:
        if whole.encoding is not None:
            raise SpecError("the clips are encoded and can no longer be prepared. Use a dataset of audio, or set clips to null")
        self.whole = whole
        self.clips = clips
        self._draw = draw

    def drawn(self, seed: int) -> Prepared:
        """Return the same clips, cut at the random place that the seed of a sample decides."""
        return self if self.clips.cut != "random" else Prepared(self.whole, self.clips, draw=np.random.default_rng([seed, _DRAW]).random())

    def __len__(self) -> int:
        return len(self.whole)

    def item(self, index: int) -> Item:
        """Return the item with the length of the prepared clip."""
        item = self.whole.item(index)
        return replace(item, num_samples=prepared_length(item.num_samples, item.sample_rate, self.clips))

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return the prepared clip, float32 `[C, S]`, and its rate. Raise UnreadableAudioError.

        Only the part that is used is decoded, unless the whole clip has to be heard to find it.
        """
        item = self.whole.item(index)
        part = known_part(item.num_samples, item.sample_rate, self.clips, draw=self._draw)
        if part is not None and part.end - part.first < item.num_samples:
            count = part.end - part.first
            waveform, rate = self.whole.load_part(index, first=part.first, num_samples=count)
            return finish(fit_announced(waveform, count, rate, name=item.key), rate, self.clips, is_cut=part.is_cut), rate
        waveform, rate = self.whole.load(index)
        return prepare(fit_announced(waveform, item.num_samples, rate, name=item.key), rate, self.clips, draw=self._draw), rate

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return self.whole.skipped

    @property
    def generated_from(self) -> str | None:
        return self.whole.generated_from


def unprepared(dataset: Dataset) -> Dataset:
    """Return the dataset with its clips as they are."""
    return dataset.whole if isinstance(dataset, Prepared) else dataset
