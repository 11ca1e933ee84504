"""Iterative decoding of masked codes with a token critic (Lezama et al. 2022, Token-Critic, section 3.3), level by level.

Shape letters: B clips, K levels, T frames, V vocabulary of one level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.interfaces import Predict
from soundomni.core.representation import Representation
from soundomni.flow.maskgit import MaskGITSampler, Pass
from soundomni.flow.timestep_schedule import predict_at


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
        draw_temperature, greedy: as in `maskgit`.

    Raises:
        SpecError: an argument is out of range.
    """

    reviews: ClassVar[bool] = True

    def __init__(
        self,
        *,
        iterations: Sequence[int] = (16, 1),
        num_steps: int | None = None,
        temperature: float = 1.0,
        draw_temperature: float = 1.0,
        greedy: bool = True,
    ) -> None:
        super().__init__(
            iterations=iterations, num_steps=num_steps, temperature=temperature, draw_temperature=draw_temperature, greedy=greedy
        )

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
        return self._fill(predict, start, partial(self._reviewed, review), generators=generators, begin=begin, on_step=on_step)

    def _reviewed(self, review: Predict, made: Pass) -> tuple[Tensor, Tensor]:
        """Return the log-probability that each code is right, plus noise, and all cells that were hidden when the level began."""
        right = functional.logsigmoid(predict_at(review, made.values, made.timestep)[:, made.level].double())
        return right + self.temperature * (1.0 - made.done) * made.noise, made.free
