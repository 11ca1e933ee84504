"""Choosing tokens from logits: the likeliest one, or one drawn from the model's distribution.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundomni.core.limits import check_text_sampling


@dataclass(frozen=True, kw_only=True)
class TokenSampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits: 1 draws from the model's own distribution, lower values make likely tokens
            likelier. 0 always takes the likeliest token (greedy), and then nothing else matters.
        top_k: draw only from the k likeliest tokens; None from all.
        top_p: draw only from the smallest set of likeliest tokens that together have at least this probability (Holtzman et al.
            2020, section 3.1, the nucleus); it counts after the temperature and among the tokens that `top_k` leaves.

    Raises:
        SpecError: a number is out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_text_sampling(self.temperature, self.top_k, self.top_p)


GREEDY = TokenSampling()


def next_tokens(logits: Tensor, sampling: TokenSampling, generators: Sequence[torch.Generator]) -> np.ndarray:
    """Choose the next token of each row.

    Args:
        logits: `[R, V]`, on any device.
        sampling: how to choose.
        generators: one for each row, on the CPU. Each draws one number; greedy decoding draws none.

    Returns:
        int64 `[R]`.
    """
    if sampling.temperature == 0.0:
        return chosen_tokens(logits, sampling, torch.zeros(len(logits), dtype=torch.float64)).numpy()
    drawn = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    return chosen_tokens(logits, sampling, drawn).numpy()


def chosen_tokens(logits: Tensor, sampling: TokenSampling, numbers: Tensor) -> Tensor:
    """Return the token of each row that its number chooses, int64 `[R]` on the CPU.

    Args:
        logits: `[R, V]`, on any device; -inf for what cannot be drawn.
        sampling: how to choose.
        numbers: float64 `[R]` in [0, 1), on the CPU; not used by greedy decoding.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1).cpu()
    return drawn_tokens(token_weights(logits, sampling), numbers)


def drawn_tokens(weights: Tensor, numbers: Tensor) -> Tensor:
    """Return the token of each row that its number chooses, int64 `[R]`.

    Weights are summed in the order of the ids. Sorted by weight, the order of nearly equal ones would depend on rounding.

    Args:
        weights: float64 `[R, V]`, proportional to the probabilities.
        numbers: float64 `[R]` in [0, 1).
    """
    totals = weights.cumsum(-1)
    passed = (totals <= numbers[:, None] * totals[:, -1:]).sum(-1)
    last = weights.shape[1] - 1 - (weights > 0).int().flip(-1).argmax(-1)
    return torch.minimum(passed, last)  # the product may round up to the total


def token_weights(logits: Tensor, sampling: TokenSampling) -> Tensor:
    """Return float64 weights `[R, V]` on the CPU, proportional to the probabilities; tokens that cannot be drawn get 0.

    Args:
        logits: `[R, V]`; among equal logits, the smaller id counts as likelier.
        sampling: how to choose. The temperature must be above 0.
    """
    if sampling.top_p >= 1.0:
        values = logits.cpu().double()
        weights = ((values - values.amax(-1, keepdim=True)) / sampling.temperature).exp()
        return weights if sampling.top_k is None else weights.masked_fill(~_among_likeliest(values, sampling.top_k), 0.0)
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    values = ordered.cpu().double()
    weights = ((values - values[:, :1]) / sampling.temperature).exp()
    if sampling.top_k is not None:
        weights[:, min(sampling.top_k, weights.shape[1]) :] = 0.0
    totals = weights.cumsum(-1)
    before = torch.cat([torch.zeros_like(totals[:, :1]), totals[:, :-1]], dim=-1)
    weights = weights.masked_fill(before >= sampling.top_p * totals[:, -1:], 0.0)
    return torch.zeros_like(weights).scatter_(1, ids.cpu(), weights)


def _among_likeliest(values: Tensor, top_k: int) -> Tensor:
    """Return bool `[R, V]`, the `top_k` highest values of each row, without sorting them all."""
    count = min(top_k, values.shape[1])
    least = values.topk(count, dim=-1).values[:, -1:]
    chosen = values >= least
    if int(chosen.sum()) == count * len(values):
        return chosen
    above = values > least  # of the equal values, the first ones fill the rest
    return above | (chosen & ~above & ((chosen & ~above).cumsum(-1) <= count - above.sum(-1, keepdim=True)))
