"""The losses of a batch by group of samples, such as by dataset and task, from the same forward pass. They are logged.

Shape letters: N text tokens that predict something, H hidden dimensions, B clips, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.interfaces import LossTerms, Objective, Query, Review
from soundomni.core.sequence import Breakdown


@torch.no_grad()
def text_parts(logits: Tensor, labels: Tensor, breakdown: Breakdown) -> LossTerms:
    """Return the cross-entropy of `logits` `[N, V]` against `labels` `[N]` by group, as (sum in nats, count)."""
    each = functional.cross_entropy(logits.float(), labels, reduction="none")
    return _by_group("ce", torch.stack((each, torch.ones_like(each)), 1), breakdown.labels, breakdown.names)


@torch.no_grad()
def clip_parts(
    objective: Objective | Review, prediction: Tensor, query: Query, groups: Tensor, names: tuple[str, ...], *, named: Mapping[str, str]
) -> LossTerms:
    """Return each loss of the objective by group, as (sum, count).

    The objective computes the losses of one clip at a time.

    Args:
        objective: the objective, or its review.
        prediction, query: of all clips.
        groups: int64 `[B]`, the group of each clip.
        names: names of the groups.
        named: name of a loss → its name in the model.
    """
    each: dict[str, list[Tensor]] = {}
    for clip in range(len(prediction)):
        for name, (total, count) in objective.loss(prediction[clip : clip + 1], query.clip(clip)).items():
            each.setdefault(name, []).append(torch.stack((total.float(), count.float())))
    parts: LossTerms = {}
    for name, terms in each.items():
        parts |= _by_group(named[name], torch.stack(terms), groups, names)
    return parts


def _by_group(name: str, terms: Tensor, groups: Tensor, names: tuple[str, ...]) -> LossTerms:
    """Add up `terms` `[elements, 2]` by the group of each element."""
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=terms.device).index_add(0, groups, terms.double())
    return {f"{name}/{group}": (sums[i, 0], sums[i, 1]) for i, group in enumerate(names)}
