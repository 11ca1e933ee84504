"""Packed batches for one rank, read ahead of time; resumable at any step and on any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Skip
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.schema import DataSpec
from soundomni.data.batch_planner import Planned, Planner
from soundomni.data.data_section import check_loading
from soundomni.data.mixture import Mixture
from soundomni.data.prefetch import ClipReader, PendingSample
from soundomni.data.samples import SampleWriter

_STEPS_AHEAD = 2


@dataclass(frozen=True)
class Step:
    """Input of one optimizer step.

    Args:
        batches: this rank's packed batches; one may be empty if none of its clips could be read.
        state: state of the data after this step, for JSON; the same on all ranks.
        counts: counts of this step, to be added up over steps. `samples`, `tokens`, `budget` (tokens that would have
            fit), `seen` (clips tried), `unreadable` (clips that could not be read) and `rejected` (clips that a filter
            left out after they were read) count this rank's batches, to be added up over ranks too. `unlisted` counts
            files that the listing found unreadable and that are therefore never tried: rank 0 reports them with the
            first step of a fresh run; otherwise it is 0, so it also adds up over ranks. `refused` and `ineligible`
            count samples that planning left out, the same on all ranks.
    """

    batches: tuple[PackedBatch, ...]
    state: dict[str, Any]
    counts: dict[str, float]

    @property
    def fill(self) -> float:
        """Share of this rank's token budget that is used, in [0, 1]."""
        return self.counts["tokens"] / self.counts["budget"]


@dataclass(frozen=True)
class _Scheduled:
    """A planned step whose clips are being read: the batches of this rank, and those of other ranks that were asked for as well."""

    pending: dict[int, list[tuple[Planned, PendingSample]]]
    plans: Sequence[Sequence[Planned]]
    state: dict[str, Any]
    left_out: dict[str, float]


class PackedLoader(Iterator[Step]):
    """An infinite iterator of steps.

    Any number of ranks share the same batches: number i of a step goes to rank i % world_size.

    Args:
        mixture: source of the samples.
        writer: writes clips for the model.
        spec: budget, lookahead and workers.
        rank, world_size: this process among all.
        batches_per_step: packed batches per step over all ranks.
        state: `Step.state` of an earlier loader, to go on exactly after that step.
        told: see Planner.

    Raise SpecError for numbers that do not fit together. Iterating raises DataError if nothing can be used.

    `check_skip_limit` and `check_any_kept` of soundomni/data/reports.py judge from the counts of all ranks whether too many clips are
    unreadable, and whether filters leave out all of them.
    """

    def __init__(
        self,
        *,
        mixture: Mixture,
        writer: SampleWriter,
        spec: DataSpec,
        rank: int = 0,
        world_size: int = 1,
        batches_per_step: int = 1,
        state: Mapping[str, Any] | None = None,
        told: Collection[str] = (),
    ) -> None:
        if batches_per_step < 1 or batches_per_step % world_size:
            raise SpecError(f"train.batches_per_step is {batches_per_step}; expected a multiple of the {world_size} ranks")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        check_loading(spec)
        self._spec = spec
        self._batches_per_step = batches_per_step
        self._mine = range(rank, batches_per_step, world_size)
        self._planner = Planner(mixture=mixture, writer=writer, spec=spec, state=state, told=told)
        self._reader = ClipReader(mixture=mixture, writer=writer, workers=spec.workers)
        self._unlisted = mixture.num_unlisted if rank == 0 and state is None else 0
        self._ahead: deque[_Scheduled] = deque()
        self._closed = False

    def __next__(self) -> Step:
        """Return the next step; the stream never ends. Raise ValueError after `close`."""
        if self._closed:
            raise ValueError("the loader is closed")
        while len(self._ahead) <= _STEPS_AHEAD:
            self._ahead.append(self._schedule())
        scheduled = self._ahead.popleft()
        seen, unreadable, rejected = self._reader.seen, self._reader.unreadable.count, self._reader.rejected.count
        batches = tuple(self._finished(scheduled, number) for number in self._mine)
        counts: dict[str, float] = {
            "samples": sum(len(batch.keys) for batch in batches),
            "tokens": sum(batch.table.num_tokens for batch in batches),
            "budget": len(batches) * self._spec.tokens_per_batch,
            "seen": self._reader.seen - seen,
            "unreadable": self._reader.unreadable.count - unreadable,
            "rejected": self._reader.rejected.count - rejected,
            "unlisted": self._unlisted,
            **scheduled.left_out,
        }
        self._unlisted = 0
        return Step(batches, scheduled.state, counts)

    @property
    def unreadable(self) -> tuple[Skip, ...]:
        """The first 100 clips that this rank could not read so far, in order."""
        return self._reader.unreadable.skips

    @property
    def rejected(self) -> tuple[Skip, ...]:
        """The first 100 clips that filters left out after this rank had read them, in order."""
        return self._reader.rejected.skips

    def preview_batches(self, count: int) -> list[PackedBatch]:
        """Return the next `count` global batches, the same on every rank. The position does not move, and the steps that they belong to
        do not plan or read them again."""
        while len(self._ahead) * self._batches_per_step < count:
            self._ahead.append(self._schedule())
        wanted = [(scheduled, number) for scheduled in self._ahead for number in range(self._batches_per_step)][:count]
        for scheduled, number in wanted:
            if number not in scheduled.pending:
                scheduled.pending[number] = self._reader.start(scheduled.plans[number])
        return [self._finished(scheduled, number) for scheduled, number in wanted]

    def close(self) -> None:
        """End the reading threads. May be called twice."""
        self._closed = True
        self._ahead.clear()
        self._reader.close()

    def __enter__(self) -> PackedLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _schedule(self) -> _Scheduled:
        refused, ineligible = self._planner.refused.count, self._planner.ineligible.count
        plans = [self._planner.next_batch() for _ in range(self._batches_per_step)]
        left_out: dict[str, float] = {
            "refused": self._planner.refused.count - refused,
            "ineligible": self._planner.ineligible.count - ineligible,
        }
        pending = {number: self._reader.start(plans[number]) for number in self._mine}
        return _Scheduled(pending, plans, self._planner.state, left_out)

    def _finished(self, scheduled: _Scheduled, number: int) -> PackedBatch:
        return PackedBatch.from_samples(self._reader.finish(scheduled.pending[number]))
