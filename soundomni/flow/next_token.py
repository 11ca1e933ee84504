"""Drawing tokens one after the other, each from the model's distribution given all before it.

Shape letters: B clips, K levels, N tokens, V classes of one level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.inference.one_level import of_level
from soundomni.core.inference.places_ahead import shown_before
from soundomni.core.inference.token_choice import chosen_tokens
from soundomni.core.interfaces import Predict, Prediction, PredictLevels, Sampler
from soundomni.core.representation import EMPTY, HIDDEN, Representation, Tokens
from soundomni.flow.code_choice import CodeChoice, check_tokens, drawn_numbers, end_clips, tokens_to_draw
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
    by_level: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int | float | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        repetition_window: int | None = None,
    ) -> None:
        self._choice = CodeChoice(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
        )

    def count_steps(self, start: Representation) -> int:
        """Return the most tokens that are drawn: clips may end before."""
        return len(tokens_to_draw(start))

    def num_evaluations(self, start: Representation) -> int:
        """Return the most predictions that are asked for: one for each token to draw, and more for a long known part."""
        drawn = tokens_to_draw(start)
        return sum(len(_pieces(before + 1, token + 1)) for before, token in pairwise([-1, *drawn]))

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
        start = check_tokens(start)
        device = start.values.device
        values, lengths = start.values.cpu().clone(), list(start.frame_counts)
        numbers = drawn_numbers(values, lengths, generators)
        timesteps = torch.full((len(values),), begin, device=device)
        by_level = predict if isinstance(predict, PredictLevels) else None
        ask = of_level(predict, start.spec.codebook_sizes)
        shown = step = 0
        for token in range(values.shape[-1]):
            hidden = values[..., token] == HIDDEN
            levels = [level for level, is_asked in enumerate(hidden.any(0).tolist()) if is_asked]
            if not levels:
                continue
            before = shown_before(values, shown, token + 1).to(device)
            is_one = len(levels) == 1 and by_level is None
            one = partial(ask, level=levels[0]) if is_one else predict
            for first, last in _pieces(shown, token + 1):
                predicted = one(before[..., first - shown : last - shown], timesteps, first=first)
            logits, shown = predicted[..., -1].float().cpu(), token + 1
            parts = (logits,) if is_one else torch.split(logits, list(start.spec.codebook_sizes), dim=1)
            asked = {level: parts[0 if is_one else level] for level in levels}
            values[..., token] = self._drawn(asked, by_level, values, token, hidden, numbers[..., token], start)
            ended = torch.nonzero(hidden[:, 0] & (values[:, 0, token] == start.end))[:, 0].tolist()
            end_clips(values, lengths, ended, [token] * len(ended), start)
            if on_step is not None:
                on_step(step, values.to(device, copy=True))
            step += 1
        counts = torch.tensor(lengths, device=device)
        return replace(start, values=values.to(device), lengths=counts, frames=tuple(lengths))

    def _drawn(
        self,
        logits: Mapping[int, Tensor],
        by_level: PredictLevels | None,
        values: Tensor,
        token: int,
        hidden: Tensor,
        numbers: Tensor,
        start: Tokens,
    ) -> Tensor:
        """Return the ids `[B, K]` of a token, of which the hidden ones are drawn.

        Args:
            logits: level → `[B, V_level]`, for the levels with hidden ids, on the CPU like all other tensors here.
            by_level: predicts each level from those below it; None if they do not depend on each other.
            values: `[B, K, N]`, the tokens so far.
            token: index of the token.
            hidden: bool `[B, K]`.
            numbers: float64 `[B, K]`, uniform in [0, 1).
            start: says what ends a clip, and when.
        """
        ids = values[..., token].clone()
        for level, own in logits.items():
            rows = torch.nonzero(hidden[:, level])[:, 0]
            if by_level is not None:
                own = by_level.level(ids.masked_fill(ids == EMPTY, HIDDEN).to(start.values.device), level).float().cpu()
            tokens = torch.full_like(rows, token)
            scores = self._choice.scores(own[rows], values, rows, tokens, start, level=level)
            ids[rows, level] = chosen_tokens(scores, self._choice.sampling(scores.shape[1]), numbers[rows, level])
        return ids


def _pieces(first: int, last: int) -> list[tuple[int, int]]:
    """Return tokens `first` to `last` - 1 as parts (first, last) of at most SHOWN_AT_ONCE."""
    return [(begin, min(begin + SHOWN_AT_ONCE, last)) for begin in range(first, last, SHOWN_AT_ONCE)]
