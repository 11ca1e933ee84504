"""Masked codes: some cells of a clip are hidden, and the model says which codes they hold.

The masks are those of SoundStorm (Borsos et al. 2023, section 3.2), after MaskGIT (Chang et al. 2022).

Shape letters: B clips, K levels, T frames, V_k vocabulary of level k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import LossTerms, Objective, Prediction, Query
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec, TokenSpec, length_mask
from soundomni.core.upload import upload
from soundomni.flow.level_losses import nats_of_clips
from soundomni.flow.made_levels import Levels, check_levels, levels_of
from soundomni.flow.rounding import ROUNDING, share_of


class Masked(Objective):
    """Hides codes of one level and all codes of the levels above it; the loss is the cross-entropy of the former, named "masked".

    Each clip draws the length of a prompt, which stays visible (see `prompts`), a level q, and a share cos(u·π/2) with u uniform. After
    the prompt, this share of the cells of level q is hidden, at least one, and every cell above q. Levels below q are visible. Known
    frames are visible too, and the prompt's length is drawn from the frames that are left.

    Each clip weighs as many frames as it has to make, however many cells are hidden: the loss of a clip is the mean over its hidden cells
    of level q, times that number.

    Args:
        prompts: share of the clips that have a prompt. SoundStorm gives one to each clip, since semantic tokens say what to make; a
            model that makes clips from a caption needs many clips without a prompt.
        levels: levels of the codec that are made, [first, end]; null for all. Those below `first` are given and always visible, and those
            from `end` on are left out.

    Raises:
        SpecError: `prompts` or `levels` is out of its range.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("masked",)
    predicts: ClassVar[Prediction] = "logits"

    def __init__(self, *, prompts: float = 1.0, levels: Levels | None = None) -> None:
        super().__init__()
        check_levels(levels)
        if not 0.0 <= prompts <= 1.0:
            raise SpecError(f"prompts is {prompts}; expected a share from 0 to 1")
        self.prompts = prompts
        self.levels = levels

    def tokens(self, spec: RepresentationSpec) -> TokenSpec:
        """Return the vocabularies of the levels in, and of those that are made out. Raise SpecError for continuous latents."""
        if spec.kind != "codes":
            raise SpecError(
                "masked modeling needs codes, but the codec makes continuous latents. Use an objective for latents, such as flow-matching"
            )
        first, end = self.made_levels(spec)
        return TokenSpec(spec.codebook_sizes[:end], spec.codebook_sizes[first:end])

    def made_levels(self, spec: RepresentationSpec) -> tuple[int, int]:
        """Return `levels`, or all levels of the codec. Raise SpecError if the codec has fewer."""
        return levels_of(self.levels, spec)

    def given(self, clean: Representation) -> Tensor:
        """Return the codes of clips that are only context, without levels that are left out."""
        return clean.values[:, : self.made_levels(clean.spec)[1]]

    def start(self, given: Representation, known: Tensor, generators: Sequence[torch.Generator]) -> Representation:
        """Return clips with every cell hidden but those of known frames, and of levels that are given; nothing is drawn."""
        first, end = self.made_levels(given.spec)
        values = given.values[:, :end].clone()
        values[:, first:] = values[:, first:].masked_fill(~known[:, None], HIDDEN)
        return replace(given, values=values, spec=given.spec.with_levels(end))

    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Query:
        """Hide cells of the clips `[B, K, T]` with `noise` `[B]` set, except those of their `known` `[B, T]` frames.

        A clip draws the prompt, the level and the share, and then a number for each of its own frames: those with the lowest ones are
        hidden. Its mask depends neither on the batch around it nor on padding. Frames beyond a clip become zero. The timestep of a clip
        is the share of its cells to make that are hidden.

        Raises:
            SpecError: the representation is continuous.
        """
        return self._hide(clean, known, noise, generators, quantiles=None)

    def corrupt_at(
        self,
        clean: Representation,
        *,
        known: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        quantiles: Sequence[float],
    ) -> Query:
        """Hide as `corrupt` does, but with the share of clip b at `quantiles[b]` of its distribution.

        The prompt, the level and the cells are drawn from the clip's generator, the same ones as in `corrupt`.
        """
        return self._hide(clean, known, noise, generators, quantiles=quantiles)

    def _hide(
        self,
        clean: Representation,
        known: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        *,
        quantiles: Sequence[float] | None,
    ) -> Query:
        self.tokens(clean.spec)
        first, end = self.made_levels(clean.spec)
        values = clean.values[:, :end]
        drawn, ranks = (upload(one, values.device) for one in _draws(clean.frame_counts, values.shape[-1], generators))
        if quantiles is not None:
            drawn[:, 2] = 1.0 - upload(torch.tensor(quantiles, dtype=drawn.dtype), drawn.device)  # the share falls with u
        valid = length_mask(clean.lengths.to(values.device), values.shape[-1])
        counted = valid & noise.to(values.device)[:, None] & ~known
        asked, above = _masks(counted, drawn, ranks, levels=(first, end), prompts=self.prompts)
        hidden = asked | above
        frames = counted.sum(1)
        shares = hidden.sum((1, 2)) / ((end - first) * frames).clamp_min(1)
        return Query(
            inputs=values.masked_fill(~valid[:, None], 0).masked_fill(hidden, HIDDEN),
            timesteps=shares[:, None] * counted,
            targets=values.masked_fill(~asked, HIDDEN),
            loss_mask=counted,
            levels=clean.spec.codebook_sizes[:end],
        )

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the sum over clips of the mean cross-entropy of the cells to predict, times the clip's frames that count, and the number
        of these frames.

        The prediction is `[B, V_1 + … + V_K, T]`. Other cells have no gradient.
        """
        counted = query.loss_mask.sum(1)
        cells = (query.targets != HIDDEN).sum((1, 2)).clamp_min(1)
        return {"masked": ((nats_of_clips(prediction, query) * counted / cells).sum(), counted.sum())}

    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        """Return codes `[B, K, T]` with a share `timestep` of the frames, rounded up, as in `start`, and the others as in `clean`.

        All levels of a frame are hidden together. The frames are evenly spread over the clip, always the same ones, and a larger share
        hides those of a smaller one too.
        """
        frames = clean.shape[-1]
        count = share_of(timestep, frames)
        hidden = torch.zeros(frames, dtype=torch.bool, device=clean.device)
        hidden[_spread(frames)[:count]] = True
        return torch.where(hidden, start, clean)


def _draws(frames: Sequence[int], padded: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Return float64 numbers in [0, 1): three for each clip `[B, 3]`, for prompt, level and share, and one for each frame `[B, padded]`."""
    drawn = torch.zeros(len(frames), 3, dtype=torch.float64)
    ranks = torch.zeros(len(frames), padded, dtype=torch.float64)
    for i, (count, generator) in enumerate(zip(frames, generators, strict=True)):
        numbers = torch.rand(3 + count, generator=generator, device=generator.device, dtype=torch.float64)
        drawn[i], ranks[i, :count] = numbers[:3], numbers[3:]
    return drawn, ranks


def _masks(counted: Tensor, drawn: Tensor, ranks: Tensor, *, levels: Levels, prompts: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return which cells to ask for and which to hide above them, both bool `[B, K, T]`, in the `counted` `[B, T]` frames."""
    first, end = levels
    frames = counted.sum(1)
    place = drawn[:, 0] / prompts if prompts > 0 else torch.ones_like(drawn[:, 0])
    prompt = torch.where(place < 1, place * frames, 0).floor()
    level = (first + drawn[:, 1] * (end - first)).floor()[:, None, None]
    share = torch.cos(drawn[:, 2] * (math.pi / 2))
    after = counted & (counted.cumsum(1) > prompt[:, None])
    count = torch.ceil(share * after.sum(1) - ROUNDING).clamp_min(1)
    order = ranks.masked_fill(~after, torch.inf).argsort(dim=1, stable=True).argsort(1)
    chosen = after & (order < count[:, None])
    every = torch.arange(end, device=counted.device)[:, None]
    return (every == level) & chosen[:, None], (every > level) & after[:, None]


def _spread(frames: int) -> list[int]:
    """Return the frames of a clip in an order in which the first ones are always evenly spread (van der Corput 1935).

    >>> _spread(8)
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = max(1, frames - 1).bit_length()
    places = (int(f"{i:0{bits}b}"[::-1], 2) * frames >> bits for i in range(1 << bits))
    return list(dict.fromkeys(places))
