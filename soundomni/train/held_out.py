"""Losses on data that training never draws, the same on any number of ranks.

Each rank computes some of the batches; the sums and counts of all batches are then added up in one order. The model is
in evaluation mode, with the averaged weights if the run keeps them. The random state of training does not change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn

from soundomni.core.errors import reason
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.schema import TrainSpec
from soundomni.data.held_out_batches import Group, PlannedBatch, read_in_turn
from soundomni.data.prefetch import ClipReader
from soundomni.train.best import CLIPS, LOSS, at_timestep
from soundomni.train.ema import EMA
from soundomni.train.loss_weighting import weighted_total
from soundomni.train.parallel import World, computing_precision, reshard
from soundomni.train.state import kept_random_state
from soundomni.train.trainable import as_trainable

logger = logging.getLogger(__name__)


class _Found(NamedTuple):
    """Results of batches: the names of the losses, the names of the losses that are counted by element, and two float64
    tensors, the losses `[batches, losses, (sum, count)]` and the number of clips in each batch."""

    names: list[str]
    counted: list[str]
    sums: Tensor
    clips: Tensor


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Measures the held-out losses at a step, by their names in metrics.jsonl.

    `validation/loss` is the weighted sum of the losses; `validation/loss/NAME` is one of them. If the batches come from
    several datasets or tasks, there is also `validation/loss/NAME/DATASET` or `validation/loss/NAME/DATASET/TASK`.
    `validation/loss/NAME@T` is a loss with all clips at timestep T, on some of the batches, see `_at_timesteps`.
    `validation/clips` counts the clips that were read. A failure gives a warning instead of numbers, and so do clips of
    which none can be read. A run that is asked to stop does not wait for the numbers.

    Args:
        batches: not empty, the same on every rank.
        reader: reads their clips.
        module: a Trainable, after `parallelize`.
        ema: the averages, or None.
        world, train: those of the run.
        should_stop: asked before each round of batches, one per rank; must return the same on every rank. If it is
            true, nothing is measured.
        explain: returns an error as one line, with the plugin that raised it if that is known.
    """

    batches: Sequence[PlannedBatch]
    reader: ClipReader
    module: nn.Module
    ema: EMA | None
    world: World
    train: TrainSpec
    should_stop: Callable[[], bool] = lambda: False
    explain: Callable[[BaseException], str] = reason
    told: set[tuple[str, str]] = field(default_factory=set)

    def __call__(self, step: int) -> dict[str, float]:
        """Return the measured numbers. Every rank must call this at the same step, and gets the same numbers."""
        averaged = self.ema.swapped(self.module) if self.ema is not None else nullcontext()
        timed: dict[str, float] | None = {}
        part = ""
        with kept_random_state(self.world.device), averaged, _evaluating(self.module), torch.no_grad():
            found, failure = self.world.attempt(self._measure, module=self.module, explain=self.explain)
            if found is not None and failure is None:
                timed, failure = self.world.attempt(self._at_timesteps, module=self.module, explain=self.explain)
                part = " at single timesteps" if failure is not None else ""
                found = None if timed is None and failure is None else found  # asked to stop
        reshard(self.module)
        if failure is not None and self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        if found is not None and not found[-1].any():
            found, failure, part = None, f"none of their {sum(len(batch.samples) for batch in self.batches)} clips can be read", ""
        if failure is not None and (part, failure) not in self.told:
            self.told.add((part, failure))
            what = f"the held-out losses{part} could not be measured at step {step}"
            logger.warning("%s; training continues, and this warning is not repeated: %s", what, failure)
        return self._named(*found) | (timed or {}) if found is not None else {}

    def read(self, batches: Sequence[PlannedBatch]) -> Iterator[PackedBatch]:
        """Read some of the batches, in order."""
        return read_in_turn(batches, self.reader)

    def _measure(self) -> _Found | None:
        """Return the results of all batches, or None if asked to stop."""
        found = self._losses(self.batches, [None])
        return None if found is None else found[0]

    def _at_timesteps(self) -> dict[str, float] | None:
        """Return the losses with all clips at each of `validation.timesteps`, by name, or None if asked to stop.

        With n timesteps, they are measured on every n-th batch of each dataset and task that makes clips, so all
        timesteps together take about as long as the other losses. Clips and noise are the same at every timestep.
        """
        timed, timesteps = getattr(self.module, "timed_losses", ()), self.train.validating.timesteps
        if not timed or not timesteps:
            return {}
        groups: dict[Group, list[PlannedBatch]] = {}
        for batch in self.batches:
            groups.setdefault(batch.group, []).append(batch)
        some = [batch for own in groups.values() if _makes(own[0]) for batch in own[:: len(timesteps)]]
        if not some:
            return {}
        found = self._losses(some, timesteps)
        if found is None:
            return None
        measured: dict[str, float] = {}
        for timestep, (names, counted, sums, _) in zip(timesteps, found, strict=True):
            for i, name in enumerate(names):
                mean = _mean(sums[:, i], by_element=name in counted) if name in timed else None
                if mean is not None:
                    measured[at_timestep(name, timestep)] = mean
        return measured

    def _losses(self, batches: Sequence[PlannedBatch], timesteps: Sequence[float | None]) -> list[_Found] | None:
        """Return the results of the batches at each timestep (None: each clip has its own), or None if asked to
        stop."""
        size, rank, count = self.world.size, self.world.rank, len(batches)
        mine = range(rank, count, size)
        rounds = -(-count // size)
        own = self.read([batches[number] for number in mine])
        empty = PackedBatch.from_samples([])
        counted = sorted(as_trainable(self.module).count_terms(empty))
        names: list[str] = []
        rows: list[list[Tensor]] = [[] for _ in timesteps]
        clips = torch.zeros(count, dtype=torch.float64)
        for number, batch in zip(range(rank, rounds * size, size), chain(own, repeat(empty)), strict=False):  # repeat never ends
            if self.should_stop():
                return None
            given = batch.to(self.world.device)
            for timestep, found in zip(timesteps, rows, strict=True):
                shown = given if timestep is None else given.at_timestep(timestep)
                with computing_precision(self.world, self.train):
                    terms = as_trainable(self.module)(shown)
                names = sorted(name for name in terms if "/" not in name)
                found.append(torch.stack([torch.stack([value.double() for value in terms[name]]) for name in names]))
            if number < count:
                clips[number] = len(batch.keys)
        sums = torch.zeros(len(rows), count, len(names), 2, dtype=torch.float64)
        sums[:, mine.start :: size] = torch.stack([torch.stack(found) for found in rows]).cpu()[:, : len(mine)]
        sums, clips = self.world.sum(sums), self.world.sum(clips)
        return [_Found(names, counted, one, clips) for one in sums]

    def _named(self, names: Sequence[str], counted: Sequence[str], sums: Tensor, clips: Tensor) -> dict[str, float]:
        read = clips > 0
        means = {name: _mean(sums[read, i], by_element=name in counted) for i, name in enumerate(names)}
        losses = {name: mean for name, mean in means.items() if mean is not None}
        measured = {LOSS: weighted_total(losses, self.train.loss_weights)}
        measured |= {f"{LOSS}/{name}": mean for name, mean in losses.items()}
        for label, rows in self._parts().items():
            chosen = torch.tensor(rows) & read
            for i, name in enumerate(names):
                mean = _mean(sums[chosen, i], by_element=name in counted)
                if mean is not None:
                    measured[f"{LOSS}/{name}/{label}"] = mean
        return measured | {CLIPS: float(clips.sum())}

    def _parts(self) -> Mapping[str, list[bool]]:
        """Return which batches belong to each dataset, and to each dataset and task, unless all of them do."""
        groups = [batch.group for batch in self.batches]
        datasets = dict.fromkeys(group.dataset for group in groups)
        parts = {dataset: [group.dataset == dataset for group in groups] for dataset in datasets}
        parts |= {f"{one.dataset}/{one.task}": [group == one for group in groups] for one in dict.fromkeys(groups)}
        return {label: rows for label, rows in parts.items() if not all(rows)}


def _makes(batch: PlannedBatch) -> bool:
    """Return whether the task of a batch makes clips."""
    task = batch.samples[0].draw.task
    return task is not None and task.uses("target")


def _mean(rows: Tensor, *, by_element: bool) -> float | None:
    """Return the mean of a loss over `[batches, (sum, count)]`, by element or by batch; None if nothing is counted."""
    rows = rows[rows[:, 1] > 0]
    if not len(rows):
        return None
    return float(rows[:, 0].sum() / rows[:, 1].sum()) if by_element else float((rows[:, 0] / rows[:, 1]).mean())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of a module into evaluation mode in this context, and restore the mode of each at the end."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
