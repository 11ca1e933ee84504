"""Iterative decoding of masked codes, level by level (SoundStorm, Borsos et al. 2023, section 3.3; MaskGIT, Chang et al. 2022).

Shape letters: B clips, K levels, T frames, V vocabulary of one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.inference.one_level import of_level
from soundomni.core.interfaces import Predict, Prediction, Sampler
from soundomni.core.limits import MOST_STEPS, check_count
from soundomni.core.representation import HIDDEN, Representation, length_mask
from soundomni.flow.code_draws import draw_codes, uniform
from soundomni.flow.rounding import ROUNDING
from soundomni.flow.timestep_schedule import check_begin, predict_at

Order = Literal["confidence", "random"]


class MaskGITSampler(Sampler):
    """Fills the levels of codes one after the other, each in several passes that keep the codes it is most confident of.

    In pass s of S of a level with N hidden cells, every hidden cell draws a code. The floor(N·cos(π/2·(s + 1)/S)) cells with the least
    confidence are hidden again, but never all that were hidden before. The confidence of a cell is the log-probability of its code, plus
    temperature·(1 − (s + 1)/S) times Gumbel noise. Levels above stay hidden meanwhile.

    This order prefers likely codes, so what it draws does not follow the model's distribution. The order "random" with as many passes as a
    level has frames fills one cell per pass and draws from the model's distribution exactly.

    Args:
        iterations: passes of each level that is made; the last number is that of all further levels.
        num_steps: passes of the first of them, in place of its number in `iterations`.
        temperature: scale of the noise in the confidence; higher values come closer to a random order.
        draw_temperature: divides the logits that codes are drawn from: values below 1 favor likely codes. The confidence still uses the
            model's own probabilities.
        order: "confidence" as above, or "random", in which the cells that are hidden again do not depend on their codes.
        greedy: levels of one pass take the likeliest codes instead of drawing them.

    Raises:
        SpecError: an argument is out of range.
    """

    takes: ClassVar[Prediction] = "logits"

    def __init__(
        self,
        *,
        iterations: Sequence[int] = (16, 1),
        num_steps: int | None = None,
        temperature: float = 4.5,
        draw_temperature: float = 1.0,
        order: Order = "confidence",
        greedy: bool = True,
    ) -> None:
        if not iterations:
            raise SpecError("iterations is []; expected the number of passes of at least one level")
        first, *others = iterations
        self.iterations = (first if num_steps is None else num_steps, *others)
        for level, passes in enumerate(self.iterations):
            check_count("num_steps" if num_steps is not None and not level else f"iterations[{level}]", passes, most=MOST_STEPS)
        if not 0 <= temperature < math.inf:
            raise SpecError(f"temperature is {temperature}; expected a number from 0 on")
        if not 0 < draw_temperature < math.inf:
            raise SpecError(
                f"draw_temperature is {draw_temperature}; expected a number above 0. For the likeliest codes, use one pass and greedy"
            )
        if order not in get_args(Order):
            raise SpecError(f"order is '{order}'; expected confidence or random.{did_you_mean(order, get_args(Order))}")
        self.num_steps = self.iterations[0]
        self.temperature = temperature
        self.draw_temperature = draw_temperature
        self.order = order
        self.greedy = greedy

    def count_steps(self, start: Representation) -> int:
        """Return the number of passes over all levels."""
        return self.num_evaluations(start)

    def num_evaluations(self, start: Representation) -> int:
        """Return the number of passes over all levels from the first one with hidden cells on: 27 for 12 levels with 16 passes of the
        first and one of each other."""
        return sum(self._passes_of(start).values())

    def _passes_of(self, start: Representation) -> dict[int, int]:
        """Return the passes of each level, from the first one with hidden cells on."""
        hidden = (start.values == HIDDEN).any(2).any(0)
        first = int(hidden.int().argmax()) if bool(hidden.any()) else len(hidden)
        return {level: self.iterations[min(level - first, len(self.iterations) - 1)] for level in range(first, len(hidden))}

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Representation:
        """Fill the hidden cells of codes `[B, K, T]`.

        The timestep falls evenly from `begin` with each pass. Clip b draws from `generators[b]`, by frame, so that padding changes nothing.
        Cells beyond a clip become 0 where they are hidden.
        """
        return self._fill(predict, start, self._confidence, generators=generators, begin=begin, on_step=on_step)

    def _fill(
        self,
        predict: Predict,
        start: Representation,
        confidence: Callable[[Pass], tuple[Tensor, Tensor]],
        *,
        generators: Sequence[torch.Generator],
        begin: float,
        on_step: Callable[[int, Tensor], None] | None,
    ) -> Representation:
        """Fill the hidden cells as `sample` does.

        After every pass of a level except its last one, `confidence` returns the scores of cells `[B, T]`, and which of them may be
        hidden again; those with the lowest scores are hidden.
        """
        check_begin(begin)
        sizes, frames = start.spec.codebook_sizes, start.frame_counts
        valid = length_mask(start.lengths.to(start.values.device), start.values.shape[-1])
        values = torch.where(valid[:, None] | (start.values != HIDDEN), start.values, 0)
        every, ask = self._passes_of(start), of_level(predict, sizes)
        step, total = 0, sum(every.values())
        for level, passes in every.items():
            free = values[:, level] == HIDDEN
            for index in range(passes):
                timestep, done = begin * (1.0 - step / total), (index + 1) / passes
                logits = predict_at(partial(ask, level=level), values, timestep)
                unknown = values[:, level] == HIDDEN
                if passes == 1 and self.greedy:
                    values = _with_level(values, level, torch.where(unknown, logits.argmax(1), values[:, level]))
                else:
                    scores, numbers = logits.double().log_softmax(1), uniform(2, frames, values[:, level], generators)
                    drawn = draw_codes(self._sharpened(scores), numbers[0])
                    values = _with_level(values, level, torch.where(unknown, drawn, values[:, level]))
                    if done < 1.0:
                        made = Pass(values, level, timestep, done, scores, free, unknown, gumbel(numbers[1]))
                        sure, candidates = confidence(made)
                        again = num_hidden(free.sum(1), unknown.sum(1), done)
                        rank = sure.masked_fill(~candidates, math.inf).argsort(dim=1, stable=True).argsort(1)
                        hidden = candidates & (rank < again[:, None])
                        values = _with_level(values, level, values[:, level].masked_fill(hidden, HIDDEN))
                if on_step is not None:
                    on_step(step, values)
                step += 1
        return start.with_values(values)

    def _sharpened(self, scores: Tensor) -> Tensor:
        """Return the log-probabilities that codes are drawn from."""
        return scores if self.draw_temperature == 1.0 else (scores / self.draw_temperature).log_softmax(1)

    def _confidence(self, made: Pass) -> tuple[Tensor, Tensor]:
        """Return the scores, each code's log-probability plus noise or, in a random order, only noise, and the cells drawn in this pass."""
        if self.order == "random":
            return made.noise, made.unknown
        codes = made.values[:, made.level].masked_fill(~made.unknown, 0)
        sure = made.scores.gather(1, codes[:, None])[:, 0]
        return sure + self.temperature * (1.0 - made.done) * made.noise, made.unknown


@dataclass(frozen=True)
class Pass:
    """State of one pass over a level, after codes were drawn for its hidden cells.

    Args:
        values: codes `[B, K, T]`.
        level: index of the level.
        timestep: timestep of the pass.
        done: share of the level's passes that are done, this one included.
        scores: log-probabilities `[B, V, T]` of the model.
        free: bool `[B, T]`, cells that were hidden before the first pass of the level.
        unknown: bool `[B, T]`, cells that were hidden before this pass.
        noise: Gumbel noise `[B, T]`.
    """

    values: Tensor
    level: int
    timestep: float
    done: float
    scores: Tensor
    free: Tensor
    unknown: Tensor
    noise: Tensor


def _with_level(values: Tensor, level: int, codes: Tensor) -> Tensor:
    """Return a copy of codes `[B, K, T]` with one level replaced: what a model or a callback was given stays as it is."""
    copy = values.clone()
    copy[:, level] = codes
    return copy


def num_hidden(first: Tensor, before: Tensor, done: float) -> Tensor:
    """Return how many cells of a level are hidden again `[B]`, of `first` at its start and `before` this pass; `done` is the share of its
    passes that are done, this one included."""
    return torch.minimum(torch.floor(first * math.cos(math.pi / 2 * done) + ROUNDING), before - 1)


def gumbel(numbers: Tensor) -> Tensor:
    """Return Gumbel noise from uniform float64 numbers in [0, 1), of the same shape."""
    return -(-numbers.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
