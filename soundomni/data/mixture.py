"""A mixture of datasets as one infinite, deterministic stream.

The stream is a function of the seed: draw number n picks a dataset by weight, and the c-th draw from a dataset picks
its item, task and sample seed only from (seed, name, c). So (name, c) identifies a draw, and the state is a handful of
integers.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Augmentation, Dataset, Item, Skip
from soundomni.core.spec.clips import check_clips
from soundomni.core.spec.clips import used as used_clips
from soundomni.core.spec.schema import DataSpec, MixtureEntry, Slot
from soundomni.core.writing.tasks import Task, build_tasks
from soundomni.data.balance import repeats
from soundomni.data.data_section import check_use
from soundomni.data.filtered import Filtered
from soundomni.data.held_out import held_out_indices
from soundomni.data.prepared import Prepared
from soundomni.data.reports import check_skip_limit, name_first

Build = Callable[[str, Slot], Any]
"""(kind, slot) → the plugin."""

logger = logging.getLogger("soundomni.data")


class _Purpose(IntEnum):
    """Purposes of random generators; they keep their streams apart."""

    CHOICE = 0
    SUBSET = 1
    ORDER = 2
    DRAW = 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset and how it is used: the fields of MixtureEntry, with filters and clips already applied."""

    dataset: Dataset
    tasks: Mapping[str, float]
    weight: float = 1.0
    num_used: int = -1
    held_out: float = 0.0
    max_seconds: float | None = None
    balance: int = 1
    augmentations: Mapping[str, Augmentation] = field(default_factory=dict)

    @property
    def gives_length(self) -> bool:
        """Whether `clips.seconds` decides how long the clips are."""
        return isinstance(self.dataset, Prepared) and self.dataset.clips.seconds is not None


@dataclass(frozen=True)
class Draw:
    """One item drawn: the `cursor`-th of dataset `source`.

    Args:
        source, cursor: identify the draw.
        epoch, index: how often the dataset has been gone through, and the item's index in it.
        item: what is known about the item.
        task: what to do with it; None if no task of the dataset suits it.
        seed: seed of everything random about the sample.
    """

    source: str
    cursor: int
    epoch: int
    index: int
    item: Item
    task: Task | None
    seed: int

    @property
    def key(self) -> str:
        """Name of the item across datasets."""
        return f"{self.source}:{self.item.key}"


class Mixture:
    """Datasets with weights, tasks and a seed. It has no position; `stream` starts one.

    Args:
        sources: name → dataset and its use.
        tasks: tasks by name; the built-in ones by default.
        seed: seed of the order, the choice of dataset and task, and all sample seeds.
        left_out: datasets that could not be opened and are not mandatory.

    Raise SpecError for an invalid weight, number or task, and DataError if there is nothing to draw from or if a share of
    held-out items leaves none on one side.
    """

    def __init__(
        self, *, sources: Mapping[str, Source], tasks: Mapping[str, Task] | None = None, seed: int = 42, left_out: tuple[Skip, ...] = ()
    ) -> None:
        if seed < 0:
            raise SpecError(f"data.seed is {seed}; expected 0 or more")
        if not sources:
            raise DataError("there is no dataset to draw from" + "".join(f"; '{skip.key}': {skip.reason}" for skip in left_out))
        self.sources = dict(sources)
        self.seed = seed
        self.left_out = left_out
        known = tasks if tasks is not None else build_tasks()
        self.tasks = {name: _tasks_of(name, source, known) for name, source in sources.items()}
        self._held_out = {name: held_out_indices(name, source.dataset, source.held_out) for name, source in sources.items()}
        self._used = {name: self._subset(name) for name in sources}
        self._drawn = {name: self._repeated(name) for name in sources}
        self._names = tuple(name for name, used in self._used.items() if len(used))
        if not self._names:
            raise DataError("every item of the data is held out; set a held_out of data.datasets below 1, or add a dataset to train on")
        weights = np.asarray([sources[name].weight for name in self._names])
        self._cumulative = np.cumsum(weights / weights.sum())
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    @classmethod
    def open(cls, spec: DataSpec, build: Build) -> Mixture:
        """Build the datasets of a spec, with their filters and augmentations, and their clips prepared.

        One that cannot be used raises DataError if it is mandatory, otherwise it is left out.

        See `open_dataset` for when a dataset cannot be used.
        """
        tasks = build_tasks(spec.tasks)
        sources: dict[str, Source] = {}
        left_out: list[Skip] = []
        for name, entry in spec.datasets.items():
            if entry is None:
                continue
            try:
                dataset, augmentations = open_entry(name, entry, build, skip_limit=spec.skip_limit)
            except DataError as error:
                if entry.is_mandatory:
                    raise DataError(f"dataset '{name}': {error}") from error
                logger.warning("dataset '%s' is left out: %s", name, error)
                left_out.append(Skip(name, str(error), "unsuitable"))
                continue
            _report_skipped(name, dataset)
            sources[name] = Source(
                dataset=dataset,
                tasks=entry.tasks,
                weight=entry.weight,
                num_used=entry.num_used,
                held_out=entry.held_out,
                max_seconds=entry.max_seconds,
                balance=entry.balance,
                augmentations=augmentations,
            )
        return cls(sources=sources, tasks=tasks, seed=spec.seed, left_out=tuple(left_out))

    def __len__(self) -> int:
        """Return the number of items in use."""
        return sum(len(used) for used in self._used.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Number of items in use by dataset."""
        return {name: len(used) for name, used in self._used.items()}

    def indices(self, name: str) -> np.ndarray:
        """Return the indices of a dataset's items in use, as integers `[N]`."""
        return self._used[name]

    def held_out(self, name: str) -> np.ndarray:
        """Return the indices of the items of a dataset that are never drawn, as integers `[N]`, in an order that the keys decide."""
        return self._held_out[name]

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Everything that the datasets found unusable while listing, with keys like those of draws."""
        return tuple(replace(skip, key=f"{name}:{skip.key}") for name, source in self.sources.items() for skip in source.dataset.skipped)

    @property
    def num_unlisted(self) -> int:
        """Number of files that were left out because the listing found them unreadable."""
        return sum(len(_unreadable(source.dataset)) for source in self.sources.values())

    def captions(self, limit: int) -> list[str]:
        """Return the texts of the first `limit` items in use of each dataset, for learning a tokenizer."""
        texts: list[str] = []
        for name, used in self._used.items():
            for index in itertools.islice(used.tolist(), limit):
                item = self.sources[name].dataset.item(index)
                texts += [*item.captions, *(text for pair in item.questions for text in pair)]
        return texts

    def draw(self, name: str, cursor: int) -> Draw:
        """Return the `cursor`-th draw from dataset `name`."""
        epoch, place = divmod(cursor, len(self._drawn[name]))
        index = int(self._order(name, epoch)[place])
        item = self.sources[name].dataset.item(index)
        random = self._random(_Purpose.DRAW, name, cursor)
        task_draw, seed = random.random(), int(random.integers(2**52))  # exact in any reader of JSON
        return Draw(name, cursor, epoch, index, item, self.choose_task(name, item, task_draw), seed)

    def choose_task(self, name: str, item: Item, draw: float) -> Task | None:
        """Return a task that suits an item of dataset `name`, by weight, for a draw in [0, 1); None if none suits it."""
        suitable = [(task, weight) for task, weight in self.tasks[name] if weight > 0 and task.lacks(item) is None]
        return _weighted(suitable, draw) if suitable else None

    def choice(self, number: int) -> str:
        """Return the dataset of draw `number`."""
        place = np.searchsorted(self._cumulative, self._random(_Purpose.CHOICE, "", number).random(), side="right")
        return self._names[min(int(place), len(self._names) - 1)]

    def stream(self, state: Mapping[str, Any] | None = None) -> MixtureStream:
        """Start drawing, at the beginning or where `state` left off."""
        return MixtureStream(self, state)

    def _random(self, purpose: _Purpose, name: str, number: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.seed, zlib.crc32(name.encode()), number])

    def _subset(self, name: str) -> np.ndarray:
        source = self.sources[name]
        size = len(source.dataset)
        every = source.num_used < 0
        order = np.arange(size) if every else self._random(_Purpose.SUBSET, name, 0).permutation(size)
        drawn = order[~np.isin(order, self._held_out[name])] if len(self._held_out[name]) else order
        return drawn if every else drawn[: source.num_used]

    def _repeated(self, name: str) -> np.ndarray:
        """Return the indices of a dataset's items in use, integers `[N]`, each as often as an epoch draws it."""
        used, most = self._used[name], self.sources[name].balance
        if most == 1:
            return used
        dataset = self.sources[name].dataset
        return np.repeat(used, repeats([dataset.item(index).captions for index in used.tolist()], most=most))

    def _order(self, name: str, epoch: int) -> np.ndarray:
        if name not in self._orders or self._orders[name][0] != epoch:
            drawn = self._drawn[name]
            self._orders[name] = (epoch, drawn[self._random(_Purpose.ORDER, name, epoch).permutation(len(drawn))])
        return self._orders[name][1]


def open_entry(name: str, entry: MixtureEntry, build: Build, *, skip_limit: float) -> tuple[Dataset, dict[str, Augmentation]]:
    """Build a dataset of a spec as `open_dataset` does, apply its filters, prepare its clips, and build its
    augmentations.

    Also raise DataError if the filters leave out every clip, and SpecError if encoded clips have augmentations or are
    to be prepared.
    """
    clips = used_clips(entry.clips)
    check_clips(clips, f"data.datasets.{name}.clips")
    filters = _built("filter", f"data.datasets.{name}.filters", entry.filters, build)
    augmentations = _built("augmentation", f"data.datasets.{name}.augmentations", entry.augmentations, build)
    dataset = open_dataset(entry.source, build, skip_limit=skip_limit)
    if augmentations and dataset.encoding is not None:
        raise SpecError(
            f"data.datasets.{name}.augmentations has {', '.join(augmentations)}; expected none, because the clips "
            "of this dataset are encoded. Use a dataset of audio, or remove the augmentations"
        )
    dataset = Filtered(dataset, filters) if filters else dataset
    if clips is None:
        return dataset, augmentations
    try:
        return Prepared(dataset, clips), augmentations
    except SpecError as error:
        raise SpecError(f"data.datasets.{name}.clips: {error}") from error


def open_dataset(source: Slot, build: Build, *, skip_limit: float) -> Dataset:
    """Build a dataset, which lists its clips without decoding any.

    Raise DataError if it cannot be opened, is empty, or if the listing found more than the share `skip_limit` of its
    files unreadable, with at least MIN_SEEN files read or unreadable. Missing files and items without a caption do not
    count.
    """
    dataset: Dataset = build("dataset", source)
    if len(dataset) == 0:
        raise DataError("it has no items")
    unreadable = _unreadable(dataset)
    check_skip_limit(len(unreadable), len(unreadable) + len(dataset), limit=skip_limit, skips=unreadable)
    return dataset


class MixtureStream:
    """A position in the stream of a mixture.

    Raise DataError if `state` comes from other data (names, sizes or seed), because it could not go on exactly.
    """

    def __init__(self, mixture: Mixture, state: Mapping[str, Any] | None = None) -> None:
        self.mixture = mixture
        self._draws = 0
        self._cursors = dict.fromkeys(mixture.sources, 0)
        if state is None:
            return
        for what, given, expected in (("seed", mixture.seed, state["seed"]), ("sizes", mixture.sizes, dict(state["sizes"]))):
            if given != expected:
                raise DataError(f"the run cannot be resumed with other data: {what} {given}, but its checkpoint was made with {expected}")
        self._draws = int(state["draws"])
        self._cursors = {name: int(state["cursors"][name]) for name in mixture.sources}

    def next(self) -> Draw:
        """Return the next draw; the stream never ends."""
        name = self.mixture.choice(self._draws)
        draw = self.mixture.draw(name, self._cursors[name])
        self._draws += 1
        self._cursors[name] += 1
        return draw

    @property
    def state(self) -> dict[str, Any]:
        """Position, and the data that it belongs to, in plain numbers for JSON."""
        return {"seed": self.mixture.seed, "sizes": self.mixture.sizes, "draws": self._draws, "cursors": dict(self._cursors)}


def _tasks_of(name: str, source: Source, known: Mapping[str, Task]) -> tuple[tuple[Task, float], ...]:
    """Check how a dataset is used, and return its tasks with their weights."""
    tasks = check_use(name, source, known)
    if len(source.dataset) == 0:
        raise DataError(f"dataset '{name}': it has no items")
    return tuple(tasks)


def _built(kind: str, key: str, slots: Mapping[str, Slot | None], build: Build) -> dict[str, Any]:
    """Build the named plugins of a dataset, except for those that a later layer removed. Raise SpecError, naming the
    key."""
    made: dict[str, Any] = {}
    for name, slot in slots.items():
        try:
            if slot is not None:
                made[name] = build(kind, slot)
        except SpecError as error:
            raise SpecError(f"{key}.{name}: {error}") from error
    return made


def _weighted(tasks: Sequence[tuple[Task, float]], draw: float) -> Task:
    """Return a task by weight, for a draw in [0, 1)."""
    cumulative = np.cumsum([weight for _, weight in tasks])
    place = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
    return tasks[min(place, len(tasks) - 1)][0]


def _report_skipped(name: str, dataset: Dataset) -> None:
    skipped = dataset.skipped
    if skipped:
        logger.warning("dataset '%s': %d of %d items skipped: %s", name, len(skipped), len(skipped) + len(dataset), name_first(skipped))


def _unreadable(dataset: Dataset) -> tuple[Skip, ...]:
    return tuple(skip for skip in dataset.skipped if skip.kind == "unreadable")
