"""Asking for several tokens of each clip at once, every clip at its own place.

Shape letters: B clips, K levels, N tokens, n tokens that are asked for, P predicted numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.interfaces import Predict
from soundomni.core.representation import EMPTY, HIDDEN, length_mask


class PlacesAhead:
    """A prediction of the next token that clips ask for at places of their own.

    The model is only shown what it was not shown before: tokens that have changed since then, and those after them.

    Args:
        predict: the prediction.
        values: ids `[B, K, N]` of the clips; only their shape and device count.
        timestep: timestep of the predictions.
    """

    def __init__(self, predict: Predict, values: Tensor, timestep: float) -> None:
        self._predict = predict
        self._timesteps = torch.full((len(values),), timestep, device=values.device)
        self._shown = torch.full(values.shape, EMPTY)

    def __call__(self, values: Tensor, tokens: Tensor, count: int = 1) -> Tensor:
        """Return the logits `[B, P, n]` of the n = `count` tokens of each clip from `tokens` `[B]` on.

        Those of tokens beyond N are undefined, and so are those after a HIDDEN token.

        Args:
            values: ids `[B, K, N]`, on the CPU.
            tokens: int64 `[B]`, on the CPU.
            count: number of tokens.
        """
        size = values.shape[-1]
        shown = shown_before(values, 0, size)
        same = (shown == self._shown).all(1).long().cumprod(1).sum(1)
        tokens = tokens.clamp(max=size)
        first = torch.minimum(same, tokens)
        width = int(((tokens + count).clamp(max=size) - first).max())
        first = first.clamp(max=size - width)  # so that clips near their end have as many places as the others
        places = first[:, None] + torch.arange(width)
        self._shown = shown.masked_fill(~length_mask(first + width, size)[:, None], EMPTY)
        entered = shown.gather(2, places[:, None].expand(-1, shown.shape[1], -1))
        logits = self._predict(entered.to(self._timesteps.device), self._timesteps, first=first)
        wanted = (tokens[:, None] + torch.arange(count) - first[:, None]).clamp(max=width - 1).to(logits.device)
        return logits.gather(2, wanted[:, None].expand(-1, logits.shape[1], -1))


def shown_before(values: Tensor, first: int, last: int) -> Tensor:
    """Return what the network is shown to predict tokens `first` to `last` of values `[B, K, N]`: the token before each."""
    padded = torch.nn.functional.pad(values[..., :last], (1, 0), value=HIDDEN)[..., first:-1]
    return padded.masked_fill(padded == EMPTY, HIDDEN)
