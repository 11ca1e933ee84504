"""Cross-entropy of texts in parts, so that a batch with many texts and a large vocabulary never holds all of its logits.

Shape letters: N labeled tokens, H hidden dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

MOST_LOGITS = 2**28
"""Number of logits that are computed, and kept for the backward pass, at once: 1 GiB in float32."""


def summed_nats(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of `[N, H]` against `labels` `[N]`.

    Args:
        head: maps `[n, H]` to logits `[n, V]`.
        hidden, labels: the labeled tokens.
    """

    def nats(some: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(head(some).float(), wanted, reduction="sum")

    size = max(1, MOST_LOGITS // head(hidden[:0]).shape[-1])
    if len(hidden) <= size:
        return nats(hidden, labels)
    parts = zip(torch.split(hidden, size), torch.split(labels, size), strict=True)
    return torch.stack([checkpoint(nats, some, wanted, use_reentrant=False) for some, wanted in parts]).sum()
