"""A dataset without the clips that filters leave out, with the other items as the filters describe them.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from soundomni.core.errors import DataError, PluginError, RejectedAudioError, SpecError, one_line, shown
from soundomni.core.interfaces import Dataset, Encoding, Filter, Item, Skip


class Filtered(Dataset):
    """The clips of a dataset that every filter keeps, in the same order.

    Reading a clip that a filter then rejects raises RejectedAudioError.

    Args:
        dataset: all clips.
        filters: name → filter, in the order in which they are asked; each gets the item that the one before it
            returned.

    Raise DataError if no clip is left, SpecError for a filter of encoded clips that wants to hear them, and PluginError for one that
    returns anything but an item or a reason, an item of another clip, or texts of a wrong type.
    """

    def __init__(self, dataset: Dataset, filters: Mapping[str, Filter]) -> None:
        self._dataset = dataset
        self._filters = dict(filters)
        if dataset.encoding is not None:
            _check_encoded(filters)
        self._describing = {name: one for name, one in filters.items() if type(one).describe is not Filter.describe}
        self._skipped: list[Skip] = []
        self._items: list[Item] | None = None
        self._indices: Sequence[int] = range(len(dataset))
        if self._describing:
            found = ((index, self._described(dataset.item(index))) for index in self._indices)
            kept = {index: item for index, item in found if item is not None}
            self._items, self._indices = list(kept.values()), list(kept)
        if not self._indices and self._skipped:
            first = self._skipped[0]
            raise DataError(f"the filters leave out all {len(self._skipped):,} clips; the first, '{first.key}': {first.reason}")

    def __len__(self) -> int:
        return len(self._indices)

    def item(self, index: int) -> Item:
        return self._dataset.item(index) if self._items is None else self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return float32 `[C, S]` and the file's rate. Raise UnreadableAudioError, or RejectedAudioError."""
        return self._heard(index, *self._dataset.load(self._indices[index]))

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns; filters only hear this part. Raise UnreadableAudioError, or RejectedAudioError."""
        return self._heard(index, *self._dataset.load_part(self._indices[index], first=first, num_samples=num_samples))

    @property
    def encoding(self) -> Encoding | None:
        return self._dataset.encoding

    def load_encoded(self, index: int, *, first: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Return frames of an encoded clip. Raise UnreadableAudioError."""
        return self._dataset.load_encoded(self._indices[index], first=first, num_frames=num_frames)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return (*self._dataset.skipped, *self._skipped)

    @property
    def generated_from(self) -> str | None:
        """That of the dataset if the filters only hear clips; None if they describe items, which lists them all."""
        return self._dataset.generated_from if self._items is None else None

    def _described(self, item: Item) -> Item | None:
        """Return an item as the filters describe it, or None if one leaves it out, which is noted."""
        for name, one in self._describing.items():
            found = one.describe(item)
            if isinstance(found, str):
                self._skipped.append(Skip(item.key, one_line(found) or "it gives no reason", "unsuitable", _group(name)))
                return None
            if not isinstance(found, Item) or _clip(found) != _clip(item):
                given = f"an item of another clip, '{found.key}'" if isinstance(found, Item) else shown(found)
                raise PluginError(f"filter '{name}' returned {given} for '{item.key}'; expected an item of this clip, or a reason")
            _check_texts(name, item, found)
            item = found
        return item

    def _heard(self, index: int, waveform: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
        item = self.item(index)
        for name, one in self._filters.items():
            reason = one.reject(item, waveform, rate)
            if reason is not None:
                raise RejectedAudioError(f"filter '{name}' leaves it out: {one_line(str(reason))}")
        return waveform, rate


def _clip(item: Item) -> tuple[str, int, int]:
    return item.key, item.num_samples, item.sample_rate


def _check_texts(name: str, before: Item, after: Item) -> None:
    """Raise PluginError if a filter wrote texts of a wrong type."""
    if after.captions is not before.captions and not _are_texts(after.captions):
        given = shown(after.captions)
        raise PluginError(f"filter '{name}' returned the captions {given} for '{before.key}'; expected a tuple of texts")
    if after.questions is before.questions:
        return
    if not isinstance(after.questions, tuple) or not all(_are_texts(pair) and len(pair) == 2 for pair in after.questions):
        given = shown(after.questions)
        raise PluginError(f"filter '{name}' returned the questions {given} for '{before.key}'; expected a tuple of (question, answer)")


def _are_texts(values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def _group(name: str) -> str:
    return f"left out by filter '{name}'"


def _check_encoded(filters: Mapping[str, Filter]) -> None:
    for name, one in filters.items():
        if type(one).reject is not Filter.reject:
            raise SpecError(f"filter '{name}' hears clips, but its dataset is encoded. Use a dataset of audio, or remove the filter")
