"""Conformance of datasets.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from soundomni.core.errors import UnreadableAudioError
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.core.waveform import resampled_length
from soundomni.testing.suite import ConformanceSuite, seeded


class DatasetSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Dataset`.

    `make` may use what a pytest fixture of the subclass has put on `self`, such as a folder of files.

    Attributes:
        max_items: number of items to look at.
        max_loads: number of them to read.
    """

    kind: ClassVar[str] = "dataset"
    max_items: ClassVar[int] = 200
    max_loads: ClassVar[int] = 5

    @abstractmethod
    def make(self) -> Dataset:
        """Return the dataset, with at least one item whose audio can be read."""

    def built(self, seed: int = 0) -> Dataset:
        """Return `make()`."""
        dataset: Dataset = seeded(self.make, seed)
        return dataset

    def test_length(self) -> None:
        """There is an item, and the length does not change."""
        dataset = self.built()
        length = len(dataset)
        self.require(length >= 1, "length", f"the dataset has {length} items; expected at least 1")
        self.require(len(dataset) == length, "length", f"the length was {length} and then {len(dataset)}; expected the same")

    def test_items(self) -> None:
        """Items are complete: a key, a length, a rate, and texts."""
        for index, item in enumerate(self._items(self.built())):
            self.require(isinstance(item, Item), "items", f"item {index} is a {type(item).__name__}; expected an Item")
            self.require(isinstance(item.key, str) and item.key != "", "items", f"the key of item {index} is {item.key!r}; expected a text")
            for name in ("num_samples", "sample_rate"):
                found = getattr(item, name)
                self.require(isinstance(found, int) and found > 0, "items", f"{name} of item {index} is {found!r}; expected an int from 1")
            texts = isinstance(item.captions, tuple) and all(isinstance(caption, str) for caption in item.captions)
            self.require(texts, "items", f"captions of item {index} are {item.captions!r}; expected a tuple of texts")
            pairs = isinstance(item.questions, tuple) and all(
                isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in item.questions
            )
            self.require(pairs, "items", f"questions of item {index} are {item.questions!r}; expected a tuple of (question, answer)")
            mapping = isinstance(item.attributes, Mapping) and all(isinstance(name, str) for name in item.attributes)
            self.require(mapping, "items", f"attributes of item {index} are {item.attributes!r}; expected a mapping from names")

    def test_keys(self) -> None:
        """Every key names one item."""
        seen: dict[str, int] = {}
        for index, item in enumerate(self._items(self.built())):
            before = seen.setdefault(item.key, index)
            self.require(before == index, "keys", f"items {before} and {index} are both '{item.key}'; expected unique keys")

    def test_stable(self) -> None:
        """An item is always the same, also in another instance, as on another rank."""
        dataset = self.built(1)
        first = self._items(dataset)
        for name, again in (("asked for again", self._items(dataset)), ("in another instance", self._items(self.built(2)))):
            self.require(len(again) == len(first), "stable", f"there are {len(again)} items {name}; expected {len(first)}")
            for index, (found, expected) in enumerate(zip(again, first, strict=True)):
                self.require(_facts(found) == _facts(expected), "stable", f"item {index} differs when {name}: {found}; expected {expected}")

    def test_cheap(self) -> None:
        """`item` decodes nothing: it does not call `load`."""
        dataset = self.built()
        loaded: list[int] = []
        load = dataset.load

        def count(index: int) -> tuple[np.ndarray, int]:
            loaded.append(index)
            return load(index)

        vars(dataset)["load"] = count
        self._items(dataset)
        self.require(not loaded, "cheap", f"item loaded the clips {loaded}; expected it to decode nothing")

    def test_load(self) -> None:
        """A clip is float32 `[C, S]` within [-1, 1], with the length and rate of its item; without audio, UnreadableAudioError."""
        dataset = self.built()
        if dataset.encoding is not None:
            self._without_audio(dataset)
            return
        for index in range(min(len(dataset), self.max_loads)):
            item, (waveform, rate) = dataset.item(index), dataset.load(index)
            array = isinstance(waveform, np.ndarray) and waveform.dtype == np.float32 and waveform.ndim == 2 and len(waveform) > 0
            found = f"{getattr(waveform, 'dtype', type(waveform).__name__)} {getattr(waveform, 'shape', '')}"
            self.require(array, "load", f"load({index}) gave {found}; expected a numpy array, float32 [C, S]")
            message = f"load({index}) gave {waveform.shape[1]} samples at {rate} Hz; its item says {item.num_samples} at {item.sample_rate}"
            self.require((waveform.shape[1], rate) == (item.num_samples, item.sample_rate), "load", message)
            peak = float(np.abs(waveform).max())
            self.require(peak <= 1.0, "load", f"load({index}) gave samples up to {peak:.4g}; expected finite ones within [-1, 1]")

    def test_part(self) -> None:
        """A part of a clip is that part of the result of `load`."""
        dataset = self.built()
        for index in range(min(len(dataset), self.max_loads) if dataset.encoding is None else 0):
            whole, rate = dataset.load(index)
            first, count = whole.shape[1] // 3, max(1, whole.shape[1] // 3)
            part, part_rate = dataset.load_part(index, first=first, num_samples=count)
            same = part_rate == rate and np.array_equal(part, whole[:, first : first + count])
            message = (
                f"load_part({index}) gave {part.shape[1]} samples at {part_rate} Hz; expected samples {first} to {first + count} of load"
            )
            self.require(same, "part", message)

    def test_encoded(self) -> None:
        """An encoded clip has the type, dimensions and frames of its encoding; a part of it is that part of the clip."""
        dataset = self.built()
        encoding = dataset.encoding
        for index in range(min(len(dataset), self.max_loads) if encoding is not None else 0):
            assert encoding is not None, "there is no clip otherwise"
            item, spec, values = dataset.item(index), encoding.spec, dataset.load_encoded(index)
            frames = spec.num_frames(resampled_length(item.num_samples, item.sample_rate, spec.sample_rate))
            dtype = np.float32 if spec.kind == "continuous" else np.int64
            right = values.dtype == dtype and values.shape == (spec.token_dim, frames)
            expected = f"{np.dtype(dtype)} {[spec.token_dim, frames]}"
            self.require(
                right, "encoded", f"load_encoded({index}) gave {values.dtype} {list(values.shape)}; expected {expected}, as its item says"
            )
            first, count = frames // 3, max(1, frames // 3)
            part = dataset.load_encoded(index, first=first, num_frames=count)
            same = np.array_equal(part, values[:, first : first + count])
            self.require(same, "encoded", f"load_encoded({index}) from frame {first} on differs from these frames of the clip")

    def test_beyond(self) -> None:
        """An index beyond the last item raises IndexError."""
        dataset = self.built()
        for name in ("item", "load"):
            try:
                found = getattr(dataset, name)(len(dataset))
            except IndexError:
                continue
            self.require(
                False, "beyond", f"{name}({len(dataset)}) of {len(dataset)} items gave {type(found).__name__}; expected IndexError"
            )

    def test_skipped(self) -> None:
        """`skipped` is a tuple of Skip, each with a reason in one line."""
        skipped = self.built().skipped
        good = isinstance(skipped, tuple) and all(isinstance(skip, Skip) for skip in skipped)
        self.require(good, "skipped", f"skipped is {skipped!r}; expected a tuple of Skip")
        for skip in skipped:
            one_line = skip.reason != "" and "\n" not in skip.reason
            self.require(one_line, "skipped", f"the reason of '{skip.key}' is {skip.reason!r}; expected one line")

    def _without_audio(self, dataset: Dataset) -> None:
        try:
            dataset.load(0)
        except UnreadableAudioError:
            return
        self.require(False, "load", "load(0) gave audio, although the clips are encoded; expected UnreadableAudioError")

    def _items(self, dataset: Dataset) -> list[Item]:
        return [dataset.item(index) for index in range(min(len(dataset), self.max_items))]


def _facts(item: Item) -> tuple[Any, ...]:
    """Return the facts that planning and writing depend on; attributes may hold objects that cannot be compared."""
    return (item.key, item.num_samples, item.sample_rate, item.captions, item.questions)
