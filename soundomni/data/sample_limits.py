"""Whether a sample can be made from an item, and if not, why: for every draw in training, and for all items before
it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from soundomni.core.interfaces import Item, Skip
from soundomni.core.spec.schema import DataSpec
from soundomni.core.writing.tasks import Task
from soundomni.data.mixture import Mixture
from soundomni.data.samples import PlannedSample, SampleWriter


@dataclass(frozen=True)
class Unfit:
    """Reason why no sample can be made.

    Args:
        group: what to say after a count of such items (see Skip).
        reason: returns the reason in words, which takes some computing.
    """

    group: str
    reason: Callable[[], str]


class SampleLimits:
    """Plans samples within the limits of a spec.

    Args:
        mixture, writer, spec: those of a run.
    """

    def __init__(self, *, mixture: Mixture, writer: SampleWriter, spec: DataSpec) -> None:
        self._mixture = mixture
        self._writer = writer
        self._limit = spec.max_tokens_per_sample if spec.max_tokens_per_sample is not None else spec.tokens_per_batch
        self._budget = spec.tokens_per_batch
        self._limit_name = "data.tokens_per_batch" if spec.max_tokens_per_sample is None else "data.max_tokens_per_sample"

    def plan(self, source: str, item: Item, task: Task, *, seed: int) -> PlannedSample | Unfit:
        """Return how an item of dataset `source` is written for a task that it is eligible for, or why it cannot be."""
        max_seconds, prepared = self._mixture.sources[source].max_seconds, self._mixture.sources[source].gives_length
        plan = self._writer.plan(item, task, seed=seed, key=f"{source}:{item.key}", max_seconds=max_seconds, prepared=prepared)
        if isinstance(plan, Skip):
            return Unfit(plan.group, partial(str, plan.reason))
        if plan.full_length > self._limit:
            group = f"longer than {self._limit} tokens for {task.name} ({self._limit_name})"
            return Unfit(group, partial(self._why_too_long, source, item, plan, seed))
        return plan

    def lacking(self, item: Item, task: Task) -> Unfit | None:
        """Return why an item is not eligible for a task, or None if it is."""
        lacks = task.lacks(item)
        return None if lacks is None else Unfit(f"without a {lacks} for {task.name}", partial(str, f"task '{task.name}' needs a {lacks}"))

    def tasks(self, source: str) -> list[Task]:
        """Return the tasks that a dataset is really used for."""
        return [task for task, weight in self._mixture.tasks[source] if weight > 0]

    def _why_too_long(self, source: str, item: Item, plan: PlannedSample, seed: int) -> str:
        """Return the lengths and, if audio makes up most of the sample, how much of it would fit and how to have it
        cut."""
        length, seconds = plan.full_length, plan.crop.num_samples / plan.crop.rate
        longest = partial(self._longest, source, item, seed)
        fitting = bisect_right(range(int(100 * seconds) + 1), self._limit, key=longest) - 1
        reason = f"{length} tokens, the limit is {self._limit} ({self._limit_name})"
        if length <= 2 * longest(0) or fitting < 1:
            return reason
        fits = f"{fitting / 100:.2f}"
        way_out = "cut the file into shorter ones"
        if self._mixture.sources[source].gives_length:
            way_out = f"set data.datasets.{source}.clips.seconds to {fits}"
        elif any(task.uses("target") for task in self.tasks(source)):
            where = f"data.datasets.{source}.max_seconds"
            way_out = f"set {where} to {fits}, which cuts longer clips for generation (understanding takes whole clips)"
        raised = f"raise {self._limit_name} to {length} or more"
        if self._limit_name != "data.tokens_per_batch" and length > self._budget:
            raised += ", with data.tokens_per_batch"
        return f"{reason}; most of them are its {seconds:.2f} s of audio, of which {fits} s would fit: {way_out}, or {raised}"

    def _longest(self, source: str, item: Item, seed: int, hundredths: int) -> int:
        """Return the tokens of an item in the longest of its tasks if its clip lasted this many hundredths of a second.

        The result exceeds the limit if one of the tasks does not accept such a clip. It never falls with the length of
        the clip.
        """
        short = replace(item, num_samples=max(1, int(hundredths / 100 * item.sample_rate)))
        tasks = [task for task in self.tasks(source) if task.lacks(short) is None]
        plans = [self._writer.plan(short, task, seed=seed, key=item.key) for task in tasks]
        return max(self._limit + 1 if isinstance(plan, Skip) else plan.full_length for plan in plans)
