"""The held-out items as packed batches that are the same every time: the same tasks, cuts, noise and timesteps.

A batch has samples of one dataset and one task, so its losses belong to them. Item i of n takes the timestep at
(i + 1/2) / n of the objective's distribution, and its task at the fractional part of i times the golden ratio: each is
spread evenly, and so are their pairs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.schema import DataSpec
from soundomni.data.batch_planner import Planned
from soundomni.data.mixture import Draw, Mixture
from soundomni.data.prefetch import ClipReader
from soundomni.data.sample_limits import SampleLimits, Unfit
from soundomni.data.samples import SampleWriter

GOLDEN_RATIO = (1.0 + 5.0**0.5) / 2.0

logger = logging.getLogger("soundomni.data")


class Group(NamedTuple):
    """The dataset and task that all samples of a batch share."""

    dataset: str
    task: str


@dataclass(frozen=True)
class PlannedBatch:
    """A batch whose clips have not been read."""

    group: Group
    samples: tuple[Planned, ...]


def plan_held_out(mixture: Mixture, writer: SampleWriter, spec: DataSpec, *, most: int) -> list[PlannedBatch]:
    """Return the batches of the held-out items of all datasets; empty if nothing is held out.

    An item that no task suits, or that is longer than the spec allows, is left out; a warning gives their number.

    Args:
        mixture: the datasets.
        writer: writes the samples; it should not drop conditions, because nothing is trained.
        spec: the data section, which limits the tokens of a batch.
        most: largest number of items from each dataset; -1 for all.
    """
    limits = SampleLimits(mixture=mixture, writer=writer, spec=spec)
    batches: list[PlannedBatch] = []
    for name in mixture.sources:
        indices = mixture.held_out(name)
        indices = indices if most < 0 else indices[:most]
        groups: dict[str, list[Planned]] = {}
        unfit: list[Unfit] = []
        for number, index in enumerate(indices.tolist()):
            planned = _plan(mixture, limits, name, index, number=number, count=len(indices))
            if isinstance(planned, Unfit):
                unfit.append(planned)
            elif planned.draw.task is not None:
                groups.setdefault(planned.draw.task.name, []).append(planned)
        if unfit:
            logger.warning(
                "dataset '%s': %d of %d held-out items are not measured, the first because: %s",
                name,
                len(unfit),
                len(indices),
                unfit[0].reason(),
            )
        for task, samples in groups.items():
            batches += [PlannedBatch(Group(name, task), part) for part in _packed(samples, spec.tokens_per_batch)]
    return batches


def read_in_turn(batches: Sequence[PlannedBatch], reader: ClipReader) -> Iterator[PackedBatch]:
    """Read and pack batches, one ahead. A clip that cannot be read is missing from its batch; the reader reports it."""
    pending = reader.start(batches[0].samples) if batches else []
    for number in range(len(batches)):
        current = pending
        if number + 1 < len(batches):
            pending = reader.start(batches[number + 1].samples)
        yield PackedBatch.from_samples(reader.finish(current))


def _plan(mixture: Mixture, limits: SampleLimits, name: str, index: int, *, number: int, count: int) -> Planned | Unfit:
    item = mixture.sources[name].dataset.item(index)
    task = mixture.choose_task(name, item, number * GOLDEN_RATIO % 1.0)
    if task is None:
        problems = (limits.lacking(item, one) for one in limits.tasks(name))
        return next(problem for problem in problems if problem is not None)
    seed = _seed(item.key)
    plan = limits.plan(name, item, task, seed=seed)
    if isinstance(plan, Unfit):
        return plan
    draw = Draw(name, number, 0, index, item, task, seed)
    return Planned(draw, replace(plan, sample=replace(plan.sample, quantile=(number + 0.5) / count)))


def _seed(key: str) -> int:
    """Return the seed of an item, which does not depend on other items."""
    digest = hashlib.sha256(f"held out: {key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big")


def _packed(samples: Sequence[Planned], budget: int) -> Iterator[tuple[Planned, ...]]:
    """Yield the samples in order, as many per batch as fit."""
    part: list[Planned] = []
    for sample in samples:
        if part and sum(one.length for one in part) + sample.length > budget:
            yield tuple(part)
            part = []
        part.append(sample)
    if part:
        yield tuple(part)
