"""The clips that a model is measured on, read when needed: memory only holds some of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset
    from soundomni.core.waveform import Audio

KEPT_BYTES = 2**28
"""Bytes of recent clips that stay in memory: each task reads all clips again, but small sets are only read once."""


class Clips(Sequence["Audio"]):
    """Clips of a dataset by place.

    Args:
        dataset: what the clips are read from.
        indices: dataset index of the clip at each place.
        kept_bytes: most bytes of waveforms that stay in memory.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], *, kept_bytes: int = KEPT_BYTES) -> None:
        self._dataset = dataset
        self._indices = indices
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[int, Audio] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Audio: ...
    @overload
    def __getitem__(self, place: slice) -> list[Audio]: ...
    def __getitem__(self, place: int | slice) -> Audio | list[Audio]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        return self._clip(self._indices[place])

    def __iter__(self) -> Iterator[Audio]:
        return map(self._clip, self._indices)

    def at(self, places: Sequence[int]) -> Clips:
        """Return the clips at some places; clips in memory stay there."""
        clips = Clips(self._dataset, [self._indices[place] for place in places], kept_bytes=self._kept_bytes)
        clips._kept, clips._bytes = self._kept, self._bytes
        return clips

    def _clip(self, index: int) -> Audio:
        from soundomni.core.waveform import Audio

        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        clip = Audio(*self._dataset.load(index))
        self._kept[index] = clip
        self._bytes += clip.waveform.nbytes
        while self._bytes > self._kept_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.waveform.nbytes
        return clip
