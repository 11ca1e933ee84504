"""The cross-entropy of codes of several levels.

Shape letters: B clips, K levels, T frames or tokens, V_k classes of level k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.interfaces import Query
from soundomni.core.representation import HIDDEN


def nats_of_clips(prediction: Tensor, query: Query) -> Tensor:
    """Return the sum `[B]` of the cross-entropy over each clip's cells to predict, those of `query.targets` that are not HIDDEN.

    The prediction is `[B, V_1 + … + V_K, T]`. Other cells have no gradient.
    """
    if not len(prediction):  # a batch without clips has no levels
        return prediction.float().sum((1, 2))
    logits = torch.split(prediction.float(), list(query.levels), dim=1)
    nats = [
        functional.cross_entropy(one, ids, ignore_index=HIDDEN, reduction="none").sum(1)
        for one, ids in zip(logits, query.targets.unbind(1), strict=True)
    ]
    return torch.stack(nats).sum(0)
