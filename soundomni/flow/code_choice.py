"""How the codes of the next token are chosen: what samplers of the next token do to the logits of a level before they draw.

Shape letters: B clips, K levels, N tokens, R rows, V classes of one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.inference.token_choice import TokenSampling
from soundomni.core.representation import EMPTY, HIDDEN, Representation, Tokens
from soundomni.flow.rounding import share_of


@dataclass(frozen=True, kw_only=True)
class CodeChoice:
    """Settings of the distribution that the codes of a level are drawn from.

    Args:
        temperature, top_k, top_p, repetition_penalty, repetition_window: as in `NextTokenSampler`.

    Raises:
        SpecError: an argument is out of its range.
    """

    temperature: float
    top_k: int | float | None
    top_p: float
    repetition_penalty: float
    repetition_window: int | None

    def __post_init__(self) -> None:
        TokenSampling(temperature=self.temperature, top_p=self.top_p)
        top_k = self.top_k
        if top_k is not None and not (top_k >= 1 if isinstance(top_k, int) else 0.0 < top_k <= 1.0):
            raise SpecError(f"top_k is {top_k!r}; expected a whole number of codes from 1 on, or a share of them, above 0 and at most 1.0")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise SpecError(f"repetition_penalty is {self.repetition_penalty:g}; expected a number above 0 (1 changes nothing)")
        if self.repetition_window is not None and self.repetition_window < 1:
            raise SpecError(f"repetition_window is {self.repetition_window}; expected a number of tokens, at least 1")

    def sampling(self, classes: int) -> TokenSampling:
        """Return how one of so many classes is chosen."""
        most = self.top_k if self.top_k is None or isinstance(self.top_k, int) else share_of(self.top_k, classes)
        return TokenSampling(temperature=self.temperature, top_k=most, top_p=self.top_p)

    def scores(self, logits: Tensor, ids: Tensor, clips: Tensor, tokens: Tensor, start: Tokens, *, level: int) -> Tensor:
        """Return logits `[R, V]` of a level as float32, changed where codes are repetitions or not allowed.

        Args:
            logits: `[R, V]`, on any device.
            ids: ids `[B, K, N]` of all clips, on the CPU.
            clips: int64 `[R]`, the clip of each row, on the CPU.
            tokens: int64 `[R]`, the token that each row is about, on the CPU; only ids before it count.
            start: says what ends a clip, and when, and which classes are allowed.
            level: index of the level.
        """
        scores = logits.float().clone()
        if self.repetition_penalty != 1.0:
            self._penalize(scores, ids[clips, level], tokens, end=start.end if not level else None)
        if not level:
            scores[:, start.end].masked_fill_((tokens < start.earliest).to(scores.device), -math.inf)
            if start.allowed is not None:
                scores.masked_fill_(~start.allowed(ids[clips], clips, tokens).to(scores.device), -math.inf)
        return scores

    def _penalize(self, scores: Tensor, codes: Tensor, tokens: Tensor, *, end: int | None) -> None:
        """Lower the scores `[R, V]` of the codes that come before, in place."""
        size = scores.shape[1]
        back = tokens[:, None] - torch.arange(codes.shape[1])
        near = (back > 0) if self.repetition_window is None else (back > 0) & (back <= self.repetition_window)
        had = torch.zeros(scores.shape[0], size + 1, dtype=torch.bool)
        had.scatter_(1, codes.masked_fill(~near | (codes < 0), size), True)
        if end is not None:
            had[:, end] = False
        penalty = self.repetition_penalty
        lower = torch.where(scores > 0, scores / penalty, scores * penalty)
        torch.where(had[:, :-1].to(scores.device), lower, scores, out=scores)


def check_tokens(start: Representation) -> Tokens:
    """Return the start of sampling. Raise TypeError unless it is `Tokens`, as an objective that predicts the next token gives it."""
    if not isinstance(start, Tokens):
        raise TypeError("this sampler makes tokens in an order; expected the start of an objective that predicts the next token")
    return start


def tokens_to_draw(start: Representation) -> list[int]:
    """Return the tokens of which some clip may have a hidden cell: when a clip ends early, its hidden cells move."""
    hidden: list[int] = (start.values == HIDDEN).any(1).any(0).nonzero()[:, 0].tolist()
    if hidden and check_tokens(start).earliest < start.values.shape[-1]:
        return list(range(hidden[0], hidden[-1] + 1))
    return hidden


def end_clips(values: Tensor, lengths: list[int], clips: Sequence[int], tokens: Sequence[int], start: Tokens) -> None:
    """Give clips that end at `tokens` the cells after their end, and none beyond, in place.

    Args:
        values: ids `[B, K, N]`, on the CPU.
        lengths: number of tokens of each clip.
        clips: the clips that end.
        tokens: the token at which each of them ends.
        start: says which cells a clip has after its end.
    """
    for clip, token in zip(clips, tokens, strict=True):
        rest = start.ended(clip, token).cpu()
        lengths[clip] = rest.shape[-1]
        values[clip, :, token + 1 :] = EMPTY
        values[clip, :, token + 1 : lengths[clip]] = rest[:, token + 1 :]


def drawn_numbers(values: Tensor, lengths: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Return float64 numbers in [0, 1) for the cells of each clip, `[B, K, N]`, on the CPU; 0 beyond it."""
    numbers = torch.zeros(values.shape, dtype=torch.float64)
    for i, (count, generator) in enumerate(zip(lengths, generators, strict=True)):
        drawn = torch.rand(count, values.shape[1], generator=generator, device=generator.device, dtype=torch.float64)
        numbers[i, :, :count] = drawn.T.cpu()
    return numbers
