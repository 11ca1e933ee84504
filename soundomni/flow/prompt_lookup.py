"""A draft without a network: what followed the last time that a clip had the same tokens.

Shape letters: B clips, K levels, N tokens, n tokens that are compared, P classes of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from soundomni.core.representation import length_mask

_BEFORE, _NOWHERE = -3, -4
"""Ids before a clip: among its last tokens, and among those that these are compared with. They never match."""


class PromptLookup:
    """Guesses each code from the clip so far, its known part included (prompt lookup decoding, Saxena 2023).

    Of the earlier tokens of a clip, it takes the one before which most tokens are as now. Among equals, more codes of the own level
    count, then the latest. A level without a code yet is not guessed.

    Args:
        classes: classes of each level.
        compared: most tokens that are compared.
    """

    def __init__(self, classes: Sequence[int], *, compared: int) -> None:
        self._classes = tuple(classes)
        self._compared = compared

    def __call__(self, values: Tensor, tokens: Tensor) -> Tensor:
        """Return logits `[B, P]` of token `tokens[b]` of each clip: 0 for the guess, -inf for all others."""
        clips, levels, size = values.shape
        back = (tokens[:, None] - torch.arange(1, self._compared + 1))[:, None].expand(-1, levels, -1)
        last = values.gather(2, back.clamp(min=0)).masked_fill(back < 0, _BEFORE)
        padded = torch.nn.functional.pad(values, (self._compared, 0), value=_NOWHERE)
        earlier = padded.unfold(2, self._compared, 1)[:, :, :size].flip(-1)
        own = (earlier == last[:, :, None]).long().cumprod(-1)
        alike = own.sum(-1) + (self._compared + 1) * own.amin(1, keepdim=True).sum(-1)
        usable = (values >= 0) & length_mask(tokens, size)[:, None]
        best = (alike * size + torch.arange(size)).masked_fill(~usable, -1).max(-1)
        guess = values.gather(2, best.indices[..., None])[..., 0].masked_fill(best.values < 0, -1)
        parts = []
        for level, count in enumerate(self._classes):
            hit = torch.arange(count) == guess[:, level, None]
            parts.append(torch.zeros(clips, count).masked_fill(~hit, -math.inf))
        return torch.cat(parts, 1)
