"""Plans of packed batches from metadata only: mixture → writer → packer.

Every rank computes the same plan without reading audio.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from soundomni.core.errors import DataError
from soundomni.core.spec.schema import DataSpec
from soundomni.data.augmented import Augmenter
from soundomni.data.data_section import check_packing
from soundomni.data.mixture import Draw, Mixture
from soundomni.data.packer import StreamPacker
from soundomni.data.reports import Reports, name_first
from soundomni.data.sample_limits import SampleLimits, Unfit
from soundomni.data.samples import PlannedSample, SampleWriter

_EXAMPLES = 3  # items named in the log; usage.py reports how many there are of each kind before the first step
_PATIENCE = (100, 10_000)  # refusals in a row before giving up: twice the number of items, within these limits


def state_for_other_data(state: Mapping[str, Any], mixture: Mixture) -> dict[str, Any]:
    """Return the state of a planner that continues with other data, in another order of samples.

    The count of draws of each dataset continues, so that random choices do not start over. Samples held by the packer are
    dropped.
    """
    before = state["mixture"]
    cursors = {name: int(before["cursors"].get(name, 0)) for name in mixture.sources}
    position = {"seed": mixture.seed, "sizes": mixture.sizes, "draws": before["draws"], "cursors": cursors}
    return {"mixture": position, "pool": []}


@dataclass(frozen=True)
class Planned:
    """A draw and the plan for its sample.

    Args:
        draw, plan: the draw and its plan.
        augmenter: changes the clip; None leaves it as it is.
    """

    draw: Draw
    plan: PlannedSample
    augmenter: Augmenter | None = None

    @property
    def length(self) -> int:
        """Tokens."""
        return self.plan.length


class Planner:
    """An infinite stream of plans for packed batches.

    A sample longer than the limit, or of an item that no task suits, is never lost silently: it is named once in the
    log `soundomni.data` and counted in `refused` or `ineligible`.

    Args:
        mixture, writer: where samples come from and how they are written.
        spec: budget, limit and lookahead.
        state: state of an earlier planner.
        refused, ineligible: reports of what is left out; planners of one run share them, so that each key is named
            once.
        told: groups of left-out items that were already reported (see usage.py), and are only counted here.

    Raise SpecError if the model lacks what a task needs or the limit exceeds the budget, and DataError if everything is
    refused.
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
        told: Collection[str] = (),
    ) -> None:
        check_packing(spec)
        for name, tasks in mixture.tasks.items():
            encoding = mixture.sources[name].dataset.encoding
            for task, weight in tasks:
                if weight > 0:
                    writer.check(task)
                if weight > 0 and encoding is not None:
                    writer.check_encoded(task, encoding, name=name)
        self._mixture = mixture
        self._limits = SampleLimits(mixture=mixture, writer=writer, spec=spec)
        self.refused = refused or Reports("refused", limit=_EXAMPLES, told=told)
        self.ineligible = ineligible or Reports("ineligible", limit=_EXAMPLES, told=told)
        self._augmenters = {name: Augmenter(source.augmentations) for name, source in mixture.sources.items() if source.augmentations}
        self._stream = mixture.stream(state["mixture"] if state else None)
        self._patience = min(max(_PATIENCE[0], 2 * len(mixture)), _PATIENCE[1])
        held = (self._write(mixture.draw(name, cursor)) for name, cursor in (state["pool"] if state else ()))
        self._packer = StreamPacker[Planned](
            budget=spec.tokens_per_batch, lookahead=spec.lookahead, pool=(planned for planned in held if planned is not None)
        )
        self._candidates = self._write_all()

    def next_batch(self) -> list[Planned]:
        """Return the samples of the next packed batch; at least one."""
        return self._packer.next_batch(self._candidates)

    @property
    def state(self) -> dict[str, Any]:
        """Position in the mixture, and the packer's pool as (dataset, cursor) pairs; for JSON."""
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
            lacking = [self._limits.lacking(draw.item, task) for task in self._limits.tasks(draw.source)]
            reasons = [unfit for unfit in lacking if unfit is not None]
            self.ineligible.add(draw.key, lambda: ", ".join(unfit.reason() for unfit in reasons), group=reasons[0].group)
            return None
        augmenter = self._augmenters.get(draw.source)
        item = draw.item if augmenter is None else augmenter.lasting(draw.item, draw.seed)
        plan = self._limits.plan(draw.source, item, draw.task, seed=draw.seed)
        if isinstance(plan, Unfit):
            self.refused.add(draw.key, plan.reason, group=plan.group)
            return None
        group = f"{draw.source}/{draw.task.name}"
        return Planned(draw, replace(plan, sample=replace(plan.sample, group=group)), augmenter)
