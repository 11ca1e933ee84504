"""How many clips of each dataset a run uses, and why it leaves out others: reported once, before the first step.

Nothing is decoded: lengths come from the listing, and samples are planned as in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from soundomni.core.interfaces import Item, Skip
from soundomni.core.spec.schema import DataSpec
from soundomni.data.mixture import Mixture
from soundomni.data.sample_limits import SampleLimits, Unfit
from soundomni.data.samples import SampleWriter

MOST_ITEMS = 10_000
"""Number of items above which only `LOOKED_AT` are examined, because planning a sample takes about 0.05 ms."""
LOOKED_AT = 2_000
_EXAMPLES = 3
_HELD_OUT, _BEYOND = "held out for validation", "beyond num_used"
_NOT_DRAWN = (_HELD_OUT, _BEYOND)

_GROUPS = {"unreadable": "unreadable", "missing": "named but missing", "no caption": "without a caption", "unsuitable": "unsuitable"}


@dataclass(frozen=True)
class Usage:
    """How much of a dataset is used.

    Args:
        name: name of the dataset.
        listed: number of items in the dataset.
        looked_at: number of items that were examined: those in use, or a sample of very many.
        used: number of these that some task can use.
        left_out: group → number of clips that the listing or every task left out.
        in_part: group → number of clips that some tasks of the dataset use and others cannot.
        examples: group → its first clip, for all groups except those of the listing.
    """

    name: str
    listed: int
    looked_at: int
    used: int
    left_out: dict[str, int]
    in_part: dict[str, int]
    examples: dict[str, Skip]

    def describe(self) -> list[str]:
        """Return a line of sums, and a line for an example of each group; at most three groups."""
        if self.looked_at < self.listed - sum(self.left_out.get(group, 0) for group in _NOT_DRAWN):
            line = f"{self.listed:,} clips are listed; of {self.looked_at:,} that were checked, {self.used:,} are used"
        else:
            line = f"{self.used:,} of {self.used + sum(self.left_out.values()):,} clips are used"
        for title, groups in (("left out", self.left_out), ("used in part", self.in_part)):
            if groups:
                line += f"; {title}: {', '.join(f'{count:,} {group}' for group, count in groups.items())}"
        examples = list(self.examples.items())[:_EXAMPLES]
        return [f"data '{self.name}': {line}", *(f"  {group}, such as '{skip.key}': {skip.reason}" for group, skip in examples)]


def survey(mixture: Mixture, writer: SampleWriter, spec: DataSpec) -> list[Usage]:
    """Return what a run uses of each dataset.

    Conditions that are drawn, such as one of several captions, are drawn once.
    """
    limits = SampleLimits(mixture=mixture, writer=writer, spec=spec)
    return [_usage(name, mixture, limits) for name in mixture.sources]


def summarize(skips: Iterable[Skip]) -> dict[str, int]:
    """Return group → number of items that a listing left out, the largest first."""
    return _ordered(Counter(skip.group or _GROUPS[skip.kind] for skip in skips))


def looked_at(mixture: Mixture, name: str, *, most: int = MOST_ITEMS, few: int = LOOKED_AT) -> np.ndarray:
    """Return the indices `[N]` of the items in use or, if there are more than `most`, of `few` of them, evenly
    spread."""
    indices = mixture.indices(name)
    return indices if len(indices) <= most else indices[np.linspace(0, len(indices) - 1, few).astype(int)]


def _usage(name: str, mixture: Mixture, limits: SampleLimits) -> Usage:
    dataset = mixture.sources[name].dataset
    indices = looked_at(mixture, name)
    left_out, in_part = Counter(summarize(dataset.skipped)), Counter[str]()
    examples: dict[str, Skip] = {}
    used = 0
    for index in indices.tolist():
        item = dataset.item(index)
        problems = _problems(name, item, limits)
        is_used = len(problems) < len(limits.tasks(name))
        used += is_used
        if problems and not is_used:  # each clip is left out only once
            left_out[" and ".join(problem.group for problem in problems)] += 1
        for problem in problems:
            in_part[problem.group] += is_used
            if problem.group not in examples:
                examples[problem.group] = Skip(item.key, problem.reason(), "unsuitable", problem.group)
    if held_out := len(mixture.held_out(name)):
        left_out[_HELD_OUT] = held_out
    if beyond := len(dataset) - held_out - len(mixture.indices(name)):
        left_out[_BEYOND] = beyond
    return Usage(name, len(dataset), len(indices), used, _ordered(left_out), _ordered(in_part), examples)


def _ordered(counts: Counter[str]) -> dict[str, int]:
    """Return the counts above 0, the largest first."""
    return dict((+counts).most_common())


def _problems(source: str, item: Item, limits: SampleLimits) -> list[Unfit]:
    """Return why an item cannot be used, for each task of its dataset that cannot use it."""
    planned = (limits.lacking(item, task) or limits.plan(source, item, task, seed=0) for task in limits.tasks(source))
    return [plan for plan in planned if isinstance(plan, Unfit)]
