"""Iterative decoding of masked codes with a token critic (Lezama et al. 2022, Token-Critic, section 3.3), level by level.

Shape letters: B clips, K levels, T frames, V vocabulary of one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Predict
from soundomni.core.representation import HIDDEN, Representation, length_mask
from soundomni.flow.code_draws import draw_codes, uniform
from soundomni.flow.maskgit import MaskGITSampler, gumbel, num_hidden
from soundomni.flow.timestep_schedule import check_begin, predict_at


class MaskGITCriticSampler(MaskGITSampler):
    """Fills the levels of codes one after the other as `maskgit` does, but a token critic says which codes stay.

    In each pass of a level every hidden cell draws a code. Then the critic sees all codes of the level, and those with the lowest scores
    are hidden again, as many as in `maskgit`. It may also hide codes that earlier passes kept. The score of a cell is the log-probability
    that its code is right, plus temperature·(1 − (s + 1)/S) times Gumbel noise after pass s of S. Given codes never change.

    Each pass but the last of its level asks the critic once, so a level of S passes takes 2·S − 1 evaluations. With equal cost, `maskgit`
    has almost twice as many passes.

    Args:
        iterations: passes of each level; the last number is that of all further levels.
        num_steps: passes of the first level, in place of its number in `iterations`.
        temperature: scale of the noise in the scores; higher values come closer to a random order.
        greedy: levels of one pass take the likeliest codes instead of drawing them.

    Raises:
        SpecError: an argument is out of range.
    """

    reviews: ClassVar[bool] = True

    def __init__(
        self, *, iterations: Sequence[int] = (16, 1), num_steps: int | None = None, temperature: float = 1.0, greedy: bool = True
    ) -> None:
        super().__init__(iterations=iterations, num_steps=num_steps, temperature=temperature, greedy=greedy)

    def count_steps(self, start: Representation) -> int:
        """Return the number of passes over all levels."""
        return super().num_evaluations(start)

    def num_evaluations(self, start: Representation) -> int:
        """Return the passes over all levels and the reviews between them: 42 for 12 levels with 16 passes of the first and one of each
        other."""
        passes = self._passes_of(start)
        return 2 * sum(passes.values()) - len(passes)

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
        review: Predict | None = None,
    ) -> Representation:
        """Fill the hidden cells of codes `[B, K, T]`.

        The timestep falls evenly from `begin` with each pass, and a review has that of its pass. Clip b draws from `generators[b]`, by
        frame, so that padding changes nothing. Cells beyond a clip become 0 where they are hidden.

        Raises:
            ValueError: there is no `review`, which gives scores `[B, K, T]`.
        """
        if review is None:
            raise ValueError("review is None; expected the scores of a token critic")
        check_begin(begin)
        sizes, frames = start.spec.codebook_sizes, start.frame_counts
        valid = length_mask(start.lengths.to(start.values.device), start.values.shape[-1])
        values = torch.where(valid[:, None] | (start.values != HIDDEN), start.values, 0)
        done, total = 0, self.count_steps(start)
        for level, passes in self._passes_of(start).items():
            size, free = sizes[level], values[:, level] == HIDDEN
            for index in range(passes):
                timestep = begin * (1.0 - done / total)
                logits = predict_at(predict, values, timestep)
                scores = logits.narrow(1, sum(sizes[:level]), size).double().log_softmax(1)
                codes, unknown = values[:, level], values[:, level] == HIDDEN
                if passes == 1 and self.greedy:
                    values = _with_level(values, level, torch.where(unknown, scores.argmax(1), codes))
                else:
                    numbers = uniform(2, frames, codes, generators)
                    values = _with_level(values, level, torch.where(unknown, draw_codes(scores, numbers[0]), codes))
                if index + 1 < passes:
                    right = predict_at(review, values, timestep)[:, level]
                    again = self._doubted(right, free, unknown, (index + 1) / passes, numbers[1])
                    values = _with_level(values, level, values[:, level].masked_fill(again, HIDDEN))
                if on_step is not None:
                    on_step(done, values)
                done += 1
        return start.with_values(values)

    def _doubted(self, right: Tensor, free: Tensor, unknown: Tensor, done: float, numbers: Tensor) -> Tensor:
        """Return which cells `[B, T]` of a level are hidden again: those of the `free` ones with the lowest scores.

        Args:
            right: logits of being right `[B, T]`.
            free: cells `[B, T]` that were hidden before the first pass of the level.
            unknown: those of them that were hidden before this pass.
            done: share of the level's passes that are done.
            numbers: uniform in [0, 1), `[B, T]`.
        """
        confidence = torch.nn.functional.logsigmoid(right.double()) + self.temperature * (1.0 - done) * gumbel(numbers)
        rank = confidence.masked_fill(~free, math.inf).argsort(dim=1, stable=True).argsort(1)
        return free & (rank < num_hidden(free.sum(1), unknown.sum(1), done)[:, None])


def _with_level(values: Tensor, level: int, codes: Tensor) -> Tensor:
    """Return a copy of codes `[B, K, T]` with one level replaced: what a model or a callback was given stays as it is."""
    copy = values.clone()
    copy[:, level] = codes
    return copy
