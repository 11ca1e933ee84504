"""Autoregressive codes: the model says which codes come next, given all before them.

Shape letters: B clips, K levels, T frames, N tokens, V_k vocabulary of level k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.inference.places_ahead import shown_before
from soundomni.core.interfaces import LossTerms, Objective, Prediction, Query
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec, Tokens, TokenSpec
from soundomni.core.sequence import Attend
from soundomni.core.upload import upload
from soundomni.flow.level_losses import nats_of_clips
from soundomni.flow.made_levels import Levels, check_levels, levels_of
from soundomni.flow.orders import Order, arrange, codes_of, end_token, frames_before, frames_of, num_tokens, restore
from soundomni.flow.rounding import share_of


class Autoregressive(Objective):
    """Predicts each code, and the end of the clip, from those before it; the loss is the cross-entropy, named "autoregressive".

    Every order predicts the same K·T + 1 ids of a clip: its codes and its end, which is one more class of level 0. So losses
    of different orders are comparable. Codes of one token do not depend on each other: with `frames`, the levels of a frame are drawn
    independently, unless the connector is `depth-codes`.

    A known prefix is a clip to continue. It carries no loss, and it never changes.

    Args:
        order: in which order the codes are made: "flat", "levels", "delay" or "frames", see `soundomni.flow.orders`.
        forget: share of the tokens that the network is not shown in training, so that it does not lean on the last ones (Liu et
            al. 2022, forgetful causal masking; AudioLM's implementations use 0.15). What they hold is still predicted.
        levels: levels of the codec that are made, [first, end]; null for all. Those below `first` are given and come first, in the same
            order, and say how long the clip is: then no end is predicted. Those from `end` on are left out (AudioLM's fine and coarse
            stages, Borsos et al. 2022, section III.C).

    Raises:
        SpecError: an argument is out of its range.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("autoregressive",)
    predicts: ClassVar[Prediction] = "next-token"
    attend: ClassVar[Attend] = Attend.CAUSAL

    def __init__(self, *, order: Order = "flat", forget: float = 0.0, levels: Levels | None = None) -> None:
        super().__init__()
        check_levels(levels)
        if order not in get_args(Order):
            raise SpecError(f"order is '{order}'; expected {', '.join(get_args(Order))}.{did_you_mean(order, get_args(Order))}")
        if not 0.0 <= forget < 1.0:
            raise SpecError(f"forget is {forget}; expected a share from 0 to below 1")
        self.order: Order = order
        self.forget = forget
        self.levels = levels

    def tokens(self, spec: RepresentationSpec) -> TokenSpec:
        """Return the vocabularies of the levels in, and of those that are made out; level 0 has one class more, the end, unless it is
        given. Raise SpecError for latents."""
        if spec.kind != "codes":
            raise SpecError(
                "autoregressive modeling needs codes, but the codec makes continuous latents. Use an objective for latents, such as "
                "flow-matching"
            )
        first, end = self.made_levels(spec)
        classes = _classes(spec.with_levels(end), first)
        return TokenSpec(classes, classes[first:])

    def made_levels(self, spec: RepresentationSpec) -> tuple[int, int]:
        """Return `levels`, or all levels of the codec. Raise SpecError if the codec has fewer."""
        return levels_of(self.levels, spec)

    def num_tokens(self, spec: RepresentationSpec, frames: int) -> int:
        """Return how many tokens the order gives a clip, its end and the levels that are given included."""
        first, end = self.made_levels(spec)
        return num_tokens(self.order, end, frames, first=first)

    def num_terms(self, spec: RepresentationSpec, frames: int) -> int:
        """Return the codes of these frames that are made, and the end if it is predicted."""
        first, end = self.made_levels(spec)
        return (end - first) * frames + (0 if first else 1)

    def given(self, clean: Representation) -> Tensor:
        """Return the tokens `[B, K, N]` of clips that are only context, as those of clips that are made, moved by one."""
        tokens = self._arranged(clean, clean.values)
        return shown_before(tokens, 0, tokens.shape[-1])

    def check_known(self, known: Tensor) -> None:
        """Raise SpecError unless the known frames of each clip `[B, T]` are its first ones."""
        if bool((known[:, 1:] & ~known[:, :-1]).any()):
            raise SpecError(
                "the parts to keep do not begin with the clip and go on without a gap, but this model makes clips from beginning to end. "
                "Keep one part that begins at 0 s"
            )

    def start(self, given: Representation, known: Tensor, generators: Sequence[torch.Generator]) -> Tokens:
        """Return tokens whose every code is hidden but those of known frames; nothing is drawn.

        A clip ends at the frames of `given` if it does not end before.

        Raises:
            SpecError: the known frames of a clip are not its first ones.
        """
        self.check_known(known)
        first, end = self.made_levels(given.spec)
        spec = given.spec.with_levels(end)
        classes = _classes(spec, first)
        codes = given.values[:, :end].clone()
        codes[:, first:] = codes[:, first:].masked_fill(~known[:, None], HIDDEN)
        values = self._arranged(given, codes)

        def ended(clip: int, token: int) -> Tensor:
            length = frames_before(self.order, end, token)
            one = codes[clip : clip + 1, :, :length]
            width = num_tokens(self.order, end, length)
            return arrange(one, torch.tensor([length], device=codes.device), self.order, end=spec.codebook_sizes[0], width=width)[0]

        counts = tuple(self.num_tokens(given.spec, count) for count in given.frame_counts)
        return Tokens(
            values=values,
            lengths=upload(torch.tensor(counts), codes.device),
            spec=_with_classes(spec, classes),
            frames=counts,
            end=spec.codebook_sizes[0],
            earliest=max(counts) if first else end_token(self.order, end, spec.extra_frames + 1),
            ended=ended,
        )

    def made(self, values: Representation) -> Representation:
        """Return the codes that tokens hold, each clip up to its end."""
        first, end = self.made_levels(values.spec)
        if first:
            lengths = frames_of(self.order, end, values.lengths)
            codes, spec = codes_of(values.values, self.order, lengths, first=first), values.spec
        else:
            size, *others = values.spec.codebook_sizes
            codes, lengths = restore(values.values, self.order, end=size - 1)
            spec = _with_classes(values.spec, (size - 1, *others))
        return Representation(codes, lengths, spec, tuple(lengths.tolist()))

    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Query:
        """Arrange the clips as tokens, and show the token before each one to predict.

        A clip draws a number for each of its tokens if some are forgotten. No clip depends on the batch around it or on padding.

        Raises:
            SpecError: the representation is continuous.
        """
        self.tokens(clean.spec)
        first, end = self.made_levels(clean.spec)
        tokens = self._arranged(clean, clean.values)
        made = noise.to(tokens.device)[:, None]
        codes = clean.values.masked_fill(known[:, None], EMPTY)
        codes[:, :first] = EMPTY
        unknown = self._arranged(clean, codes)
        targets = unknown.masked_fill((unknown == EMPTY) | ~made[:, None], HIDDEN)
        return Query(
            inputs=self._shown(clean, tokens, made, generators),
            timesteps=made.float().expand(-1, tokens.shape[-1]),
            targets=targets,
            loss_mask=(targets != HIDDEN).any(1),
            levels=_classes(clean.spec.with_levels(end), first),
            ids=tokens.masked_fill(tokens == EMPTY, HIDDEN),
        )

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the sum of the cross-entropy over the ids to predict, and their number. The prediction is `[B, V_1 + … + V_K, N]`."""
        return {"autoregressive": (nats_of_clips(prediction, query).sum(), (query.targets != HIDDEN).sum())}

    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        """Return codes `[B, K, T]` whose last frames, a share `timestep` rounded up, are as in `start`, and the others as in `clean`.

        So a clip to vary keeps its beginning, and the rest is made again.
        """
        frames = clean.shape[-1]
        kept = frames - share_of(timestep, frames)
        return torch.where(torch.arange(frames, device=clean.device) < kept, clean, start)

    def _arranged(self, clips: Representation, codes: Tensor) -> Tensor:
        """Return codes of `clips` as tokens `[B, K, N]`, N being those of the longest clip."""
        first, end = self.made_levels(clips.spec)
        longest = max(clips.frame_counts)
        lengths = clips.lengths.to(codes.device)
        width, last = self.num_tokens(clips.spec, longest), clips.spec.codebook_sizes[0]
        return arrange(codes[:, :end, :longest], lengths, self.order, end=last, width=width, first=first)

    def _shown(self, clean: Representation, tokens: Tensor, made: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return what each place of tokens `[B, K, N]` shows; those of clips that are `made` `[B, 1]` may be forgotten."""
        inputs = shown_before(tokens, 0, tokens.shape[-1])
        if self.forget > 0.0:
            inputs = inputs.masked_fill((self._forgotten(clean, tokens.shape[-1], generators).to(tokens.device) & made)[:, None], HIDDEN)
        return inputs

    def _forgotten(self, clean: Representation, width: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Return which places `[B, N]` do not show their token. Place 0 shows none in any case."""
        forgotten = torch.zeros(len(generators), width, dtype=torch.bool)
        for i, (frames, generator) in enumerate(zip(clean.frame_counts, generators, strict=True)):
            count = self.num_tokens(clean.spec, frames)
            forgotten[i, :count] = (torch.rand(count, generator=generator, device=generator.device) < self.forget).cpu()
        return forgotten


def _classes(spec: RepresentationSpec, first: int) -> tuple[int, ...]:
    """Return the classes of each level; level 0 has one more for the end, unless the levels below `first` are given."""
    size, *others = spec.codebook_sizes
    return (size if first else size + 1, *others)


def _with_classes(spec: RepresentationSpec, classes: Sequence[int]) -> RepresentationSpec:
    return replace(spec, codebook_sizes=tuple(classes))
