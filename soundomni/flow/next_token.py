"""Drawing tokens one after the other, each from the model's distribution given all before it.

Shape letters: B clips, K levels, N tokens, V classes of one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.inference.one_level import of_level
from soundomni.core.inference.token_choice import TokenSampling, chosen_tokens
from soundomni.core.interfaces import Predict, Prediction, Sampler
from soundomni.core.representation import EMPTY, HIDDEN, Representation, Tokens
from soundomni.flow.orders import shown_before
from soundomni.flow.rounding import share_of
from soundomni.flow.timestep_schedule import check_begin

SHOWN_AT_ONCE = 256
"""Most tokens that one prediction is asked for."""


class NextTokenSampler(Sampler):
    """Draws the codes of each token from the model's distribution, until every clip has ended.

    With the defaults, clips follow the model's distribution exactly. Tokens that are known are shown at most 256 at a time, because
    each one costs the logits of all levels.

    Args:
        temperature: divides the logits: below 1, likely codes become likelier; 0 always takes the likeliest code.
        top_k: draw only from this whole number of likeliest codes of a level, or, for a number with a point, from this share of them,
            rounded up; AudioLM draws from 0.1. Null draws from all.
        top_p: draw only from the smallest set of likeliest codes with at least this probability together (Holtzman et al. 2020).
        repetition_penalty: divides positive logits of codes that the level had before, and multiplies negative ones (Keskar et
            al. 2019, section 4.1); 1 changes nothing. The end of a clip is not a repetition.
        repetition_window: number of last tokens whose codes count as had before; null counts all of the clip.

    Raises:
        SpecError: an argument is out of its range.
    """

    takes: ClassVar[Prediction] = "next-token"

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int | float | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        repetition_window: int | None = None,
    ) -> None:
        if top_k is not None and not (top_k >= 1 if isinstance(top_k, int) else 0.0 < top_k <= 1.0):
            raise SpecError(f"top_k is {top_k!r}; expected a whole number of codes from 1 on, or a share of them, above 0 and at most 1.0")
        if not 0.0 < repetition_penalty < math.inf:
            raise SpecError(f"repetition_penalty is {repetition_penalty:g}; expected a number above 0 (1 changes nothing)")
        if repetition_window is not None and repetition_window < 1:
            raise SpecError(f"repetition_window is {repetition_window}; expected a number of tokens, at least 1")
        self._plain = TokenSampling(temperature=temperature, top_p=top_p)
        self.top_k = top_k
        self.repetition_penalty = repetition_penalty
        self.repetition_window = repetition_window

    def count_steps(self, start: Representation) -> int:
        """Return the most tokens that are drawn: clips may end before."""
        return int((start.values == HIDDEN).any(1).any(0).sum())

    def num_evaluations(self, start: Representation) -> int:
        """Return the most predictions that are asked for: one for each token to draw, and more for a long known part."""
        drawn = (start.values == HIDDEN).any(1).any(0).nonzero()[:, 0].tolist()
        return sum(len(_pieces(first, last + 1)) for first, last in zip([0, *(token + 1 for token in drawn[:-1])], drawn, strict=True))

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tokens:
        """Fill the hidden cells of tokens `[B, K, N]`, one token of all clips at a time.

        Clip b draws K numbers for each of its tokens from `generators[b]`, in the order of tokens. Tokens beyond a clip become EMPTY.

        Raises:
            TypeError: `start` is not `Tokens`, as an objective that predicts the next token gives it.
        """
        check_begin(begin)
        if not isinstance(start, Tokens):
            raise TypeError("this sampler makes tokens in an order; expected the start of an objective that predicts the next token")
        device = start.values.device
        values, lengths = start.values.cpu().clone(), list(start.frame_counts)
        numbers = _numbers(values, lengths, generators)
        timesteps = torch.full((len(values),), begin, device=device)
        ask = of_level(predict, start.spec.codebook_sizes)
        shown = step = 0
        for token in range(values.shape[-1]):
            hidden = values[..., token] == HIDDEN
            levels = [level for level, is_asked in enumerate(hidden.any(0).tolist()) if is_asked]
            if not levels:
                continue
            before = shown_before(values[..., max(0, shown - 1) : token + 1])[..., min(1, shown) :].to(device)
            one = partial(ask, level=levels[0]) if len(levels) == 1 else predict
            for first, last in _pieces(shown, token + 1):
                predicted = one(before[..., first - shown : last - shown], timesteps, first=first)
            logits, shown = predicted[..., -1].float().cpu(), token + 1
            parts = (logits,) if len(levels) == 1 else torch.split(logits, list(start.spec.codebook_sizes), dim=1)
            asked = {level: parts[0 if len(levels) == 1 else level] for level in levels}
            values[..., token] = self._drawn(asked, values, token, hidden, numbers[..., token], start)
            for clip in torch.nonzero(hidden[:, 0] & (values[:, 0, token] == start.end))[:, 0].tolist():
                rest = start.ended(clip, token).cpu()
                lengths[clip] = rest.shape[-1]
                values[clip, :, token + 1 :] = EMPTY
                values[clip, :, token + 1 : lengths[clip]] = rest[:, token + 1 :]
            if on_step is not None:
                on_step(step, values.to(device, copy=True))
            step += 1
        counts = torch.tensor(lengths, device=device)
        return replace(start, values=values.to(device), lengths=counts, frames=tuple(lengths))

    def _drawn(self, logits: Mapping[int, Tensor], values: Tensor, token: int, hidden: Tensor, numbers: Tensor, start: Tokens) -> Tensor:
        """Return the ids `[B, K]` of a token, of which the hidden ones are drawn.

        Args:
            logits: level → `[B, V_level]`, for the levels with hidden ids, on the CPU like all other tensors here.
            values: `[B, K, N]`, the tokens so far.
            token: index of the token.
            hidden: bool `[B, K]`.
            numbers: float64 `[B, K]`, uniform in [0, 1).
            start: says what ends a clip, and when.
        """
        ids = values[..., token].clone()
        for level, own in logits.items():
            rows = torch.nonzero(hidden[:, level])[:, 0]
            scores = own[rows]
            self._penalize(scores, values[rows, level, :token], end=start.end if not level else None)
            if not level and token < start.earliest:
                scores[:, start.end] = -math.inf
            ids[rows, level] = chosen_tokens(scores, self._sampling(scores.shape[1]), numbers[rows, level])
        return ids

    def _sampling(self, classes: int) -> TokenSampling:
        most = self.top_k if self.top_k is None or isinstance(self.top_k, int) else share_of(self.top_k, classes)
        return replace(self._plain, top_k=most)

    def _penalize(self, scores: Tensor, before: Tensor, *, end: int | None) -> None:
        """Lower the scores `[R, V]` of the ids `[R, n]` that come before, in place."""
        if self.repetition_penalty == 1.0:
            return
        last = before[:, -self.repetition_window :] if self.repetition_window is not None else before
        had = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool)
        had.scatter_(1, last.masked_fill(last < 0, scores.shape[1]), True)
        if end is not None:
            had[:, end] = False
        penalty = self.repetition_penalty
        lower = torch.where(scores > 0, scores / penalty, scores * penalty)
        torch.where(had[:, :-1], lower, scores, out=scores)


def _pieces(first: int, last: int) -> list[tuple[int, int]]:
    """Return tokens `first` to `last` - 1 as parts (first, last) of at most SHOWN_AT_ONCE."""
    return [(begin, min(begin + SHOWN_AT_ONCE, last)) for begin in range(first, last, SHOWN_AT_ONCE)]


def _numbers(values: Tensor, lengths: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Return float64 numbers in [0, 1) for the cells of each clip, `[B, K, N]`, on the CPU; 0 beyond it."""
    numbers = torch.zeros(values.shape, dtype=torch.float64)
    for i, (count, generator) in enumerate(zip(lengths, generators, strict=True)):
        drawn = torch.rand(count, values.shape[1], generator=generator, device=generator.device, dtype=torch.float64)
        numbers[i, :, :count] = drawn.T.cpu()
    return numbers
