"""Plans packed batches from metadata alone: mixture → writer → packer. Every rank computes the same plan without reading audio."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from soundomni.core.errors import DataError
from soundomni.core.interfaces import Skip
from soundomni.core.schema import DataSpec
from soundomni.data.checks import check_packing
from soundomni.data.mixture import Draw, Mixture
from soundomni.data.packer import StreamPacker
from soundomni.data.reports import Reports, name_first
from soundomni.data.tasks import Task
from soundomni.data.writer import PlannedSample, SampleWriter

_PATIENCE = (100, 10_000)  # refusals in a row before giving up: twice the number of items, within these bounds


def state_for_other_data(state: Mapping[str, Any], mixture: Mixture) -> dict[str, Any]:
    """Return the state of a planner that goes on with other data, in another order of samples.

    The count of draws of each dataset goes on, so that what is random about samples does not start over. What the packer held is dropped.
    """
    before = state["mixture"]
    cursors = {name: int(before["cursors"].get(name, 0)) for name in mixture.sources}
    position = {"seed": mixture.seed, "sizes": mixture.sizes, "draws": before["draws"], "cursors": cursors}
    return {"mixture": position, "pool": []}


@dataclass(frozen=True)
class Planned:
    """A draw and how it is written."""

    draw: Draw
    plan: PlannedSample

    @property
    def length(self) -> int:
        """Tokens."""
        return self.plan.length


class Planner:
    """An infinite stream of packed batches, as plans.

    A sample longer than the limit, or of an item that no task suits, is never silently lost: it is named once in the log
    `soundomni.data` and counted in `refused` or `ineligible`.

    Args:
        mixture, writer: what is drawn and how it is written.
        spec: budget, limit and lookahead.
        state: of an earlier planner.
        refused, ineligible: where to report what is left out; shared by planners of one run, so that each key is named once.

    Raises SpecError when the model lacks what a task needs or the limit exceeds the budget; DataError when everything is refused.
    """

    def __init__(
        self,
        *,
        mixture: Mixture,
        writer: SampleWriter,
        spec: DataSpec,
        state: Mapping[str, Any] | None = None,
        refused: Reports | None = None,
        ineligible: Reports | None = None,
    ) -> None:
        self._limit = spec.max_tokens_per_sample if spec.max_tokens_per_sample is not None else spec.tokens_per_batch
        self._limit_name = "data.tokens_per_batch" if spec.max_tokens_per_sample is None else "data.max_tokens_per_sample"
        check_packing(spec)
        for tasks in mixture.tasks.values():
            for task, weight in tasks:
                if weight > 0:
                    writer.check(task)
        self._mixture = mixture
        self._writer = writer
        self.refused = refused or Reports("refused")
        self.ineligible = ineligible or Reports("ineligible")
        self._stream = mixture.stream(state["mixture"] if state else None)
        self._patience = min(max(_PATIENCE[0], 2 * len(mixture)), _PATIENCE[1])
        held = (self._write(mixture.draw(name, cursor)) for name, cursor in (state["pool"] if state else ()))
        self._packer = StreamPacker[Planned](
            budget=spec.tokens_per_batch, lookahead=spec.lookahead, pool=(planned for planned in held if planned is not None)
        )
        self._candidates = self._write_all()

    def next_batch(self) -> list[Planned]:
        """Returns the samples of the next packed batch; at least one."""
        return self._packer.next_batch(self._candidates)

    @property
    def state(self) -> dict[str, Any]:
        """The position in the mixture, and the packer's pool as (dataset, cursor) pairs; for JSON."""
        return {"mixture": self._stream.state, "pool": [[held.draw.source, held.draw.cursor] for held in self._packer.pool]}

    def _write_all(self) -> Iterator[Planned]:
        in_a_row = 0
        while True:
            planned = self._write(self._stream.next())
            if planned is not None:
                in_a_row = 0
                yield planned
                continue
            in_a_row += 1
            if in_a_row >= self._patience:
                examples = name_first(self.refused.skips[:1] + self.ineligible.skips[:1])
                raise DataError(f"no sample can be used: {in_a_row} in a row were refused, such as {examples}")

    def _write(self, draw: Draw) -> Planned | None:
        if draw.task is None:
            self.ineligible.add(draw.key, partial(self._why_ineligible, draw))
            return None
        max_seconds = self._mixture.sources[draw.source].max_seconds
        plan = self._writer.plan(draw.item, draw.task, seed=draw.seed, key=draw.key, max_seconds=max_seconds)
        if isinstance(plan, Skip):
            self.refused.add(draw.key, partial(str, plan.reason))
            return None
        if plan.full_length > self._limit:
            self.refused.add(draw.key, partial(self._why_too_long, Planned(draw, plan)))
            return None
        return Planned(draw, plan)

    def _tasks(self, source: str) -> list[Task]:
        """Returns the tasks that a dataset is really used for."""
        return [task for task, weight in self._mixture.tasks[source] if weight > 0]

    def _why_ineligible(self, draw: Draw) -> str:
        lacking = (f"'{task.name}' needs a {task.lacks(draw.item)}" for task in self._tasks(draw.source))
        return f"task {', '.join(lacking)}"

    def _why_too_long(self, planned: Planned) -> str:
        """Tells the lengths and, where audio makes most of the sample, how much of it would fit and how to have it cut."""
        draw, length, seconds = planned.draw, planned.plan.full_length, planned.plan.crop.num_samples / planned.plan.crop.rate
        reason = f"{length} tokens, the limit is {self._limit} ({self._limit_name})"
        fitting = bisect_right(range(int(100 * seconds) + 1), self._limit, key=partial(self._longest, draw)) - 1
        if length <= 2 * self._longest(draw, 0) or fitting < 1:
            return reason
        fits = f"{fitting / 100:.2f}"
        way_out = "cut the file into shorter ones"
        if any(task.uses("target") for task in self._tasks(draw.source)):
            where = f"data.datasets.{draw.source}.max_seconds"
            way_out = f"set {where} to {fits}, which cuts longer clips for generation (understanding takes whole clips)"
        audio = f"most of them are its {seconds:.2f} s of audio, of which {fits} s would fit"
        return f"{reason}; {audio}: {way_out}, or raise {self._limit_name}"

    def _longest(self, draw: Draw, hundredths: int) -> int:
        """Returns the tokens that an item would have in the longest of its tasks, were its clip this many hundredths of a second long.

        Beyond the limit, no matter how far, when one of the tasks does not take such a clip. Never falls with the length of the clip.
        """
        short = replace(draw.item, num_samples=max(1, int(hundredths / 100 * draw.item.sample_rate)))
        tasks = [task for task in self._tasks(draw.source) if task.lacks(short) is None]
        plans = [self._writer.plan(short, task, seed=draw.seed, key=draw.key) for task in tasks]
        return max(self._limit + 1 if isinstance(plan, Skip) else plan.full_length for plan in plans)
