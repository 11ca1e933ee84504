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
from soundomni.core.interfaces import LossTerms, Objective, Prediction, Query
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec, Tokens, TokenSpec
from soundomni.core.sequence import Attend
from soundomni.flow.level_losses import nats_of_clips
from soundomni.flow.orders import Order, arrange, end_token, frames_before, num_tokens, restore, shown_before
from soundomni.flow.rounding import share_of


class Autoregressive(Objective):
    """Predicts each code, and the end of the clip, from those before it; the loss is the cross-entropy, named "autoregressive".

    Every order predicts the same K·T + 1 ids of a clip: its codes and its end, which is one more class of level 0. So losses
    of different orders are comparable. Codes of one token do not depend on each other: with `frames`, the levels of a frame are drawn
    independently.

    A known prefix is a clip to continue. It carries no loss, and it never changes.

    Args:
        order: in which order the codes are made: "flat", "levels", "delay" or "frames", see `soundomni.flow.orders`.
        forget: share of the tokens that the network is not shown in training, so that it does not lean on the last ones (Liu et
            al. 2022, forgetful causal masking; AudioLM's implementations use 0.15). What they hold is still predicted.

    Raises:
        SpecError: an argument is out of its range.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("autoregressive",)
    predicts: ClassVar[Prediction] = "next-token"
    attend: ClassVar[Attend] = Attend.CAUSAL

    def __init__(self, *, order: Order = "flat", forget: float = 0.0) -> None:
        super().__init__()
        if order not in get_args(Order):
            raise SpecError(f"order is '{order}'; expected {', '.join(get_args(Order))}.{did_you_mean(order, get_args(Order))}")
        if not 0.0 <= forget < 1.0:
            raise SpecError(f"forget is {forget}; expected a share from 0 to below 1")
        self.order: Order = order
        self.forget = forget

    def tokens(self, spec: RepresentationSpec) -> TokenSpec:
        """Return the vocabularies of the levels, in and out; level 0 has one class more, the end. Raise SpecError for latents."""
        if spec.kind != "codes":
            raise SpecError(
                "autoregressive modeling needs codes, but the codec makes continuous latents. Use an objective for latents, such as "
                "flow-matching"
            )
        classes = (spec.codebook_sizes[0] + 1, *spec.codebook_sizes[1:])
        return TokenSpec(classes, classes)

    def num_tokens(self, spec: RepresentationSpec, frames: int) -> int:
        """Return how many tokens the order gives a clip, its end included."""
        return num_tokens(self.order, spec.token_dim, frames)

    def num_terms(self, spec: RepresentationSpec, frames: int) -> int:
        """Return the codes of these frames, and the end."""
        return spec.token_dim * frames + 1

    def given(self, clean: Representation) -> Tensor:
        """Return the tokens `[B, K, N]` of clips that are only context, as those of clips that are made, moved by one."""
        return shown_before(self._arranged(clean, clean.values))

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
        levels = given.spec.token_dim
        classes = self.tokens(given.spec).inputs
        assert isinstance(classes, tuple)
        codes = given.values.masked_fill(~known[:, None], HIDDEN)
        frames = given.frame_counts

        def ended(clip: int, token: int) -> Tensor:
            length = frames_before(self.order, levels, token)
            one = codes[clip : clip + 1, :, :length]
            width = num_tokens(self.order, levels, length)
            return arrange(one, torch.tensor([length], device=codes.device), self.order, end=classes[0] - 1, width=width)[0]

        counts = tuple(num_tokens(self.order, levels, count) for count in frames)
        return Tokens(
            values=self._arranged(given, codes),
            lengths=torch.tensor(counts, device=codes.device),
            spec=_with_classes(given.spec, classes),
            frames=counts,
            end=classes[0] - 1,
            earliest=end_token(self.order, levels, given.spec.extra_frames + 1),
            ended=ended,
        )

    def made(self, values: Representation) -> Representation:
        """Return the codes that tokens hold, each clip up to its end."""
        classes = values.spec.codebook_sizes
        codes, lengths = restore(values.values, self.order, end=classes[0] - 1)
        return Representation(codes, lengths, _with_classes(values.spec, (classes[0] - 1, *classes[1:])), tuple(lengths.tolist()))

    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Query:
        """Arrange the clips as tokens, and show the token before each one to predict.

        A clip draws a number for each of its tokens if some are forgotten. No clip depends on the batch around it or on padding.

        Raises:
            SpecError: the representation is continuous.
        """
        classes = self.tokens(clean.spec).outputs
        assert isinstance(classes, tuple)
        tokens = self._arranged(clean, clean.values)
        made = noise.to(tokens.device)[:, None]
        unknown = self._arranged(clean, clean.values.masked_fill(known[:, None], EMPTY))
        targets = unknown.masked_fill((unknown == EMPTY) | ~made[:, None], HIDDEN)
        inputs = shown_before(tokens)
        if self.forget > 0.0:
            inputs = inputs.masked_fill((self._forgotten(clean, tokens.shape[-1], generators).to(tokens.device) & made)[:, None], HIDDEN)
        return Query(
            inputs=inputs,
            timesteps=made.float().expand(-1, tokens.shape[-1]),
            targets=targets,
            loss_mask=(targets != HIDDEN).any(1),
            levels=classes,
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
        counts = clips.frame_counts
        longest = max(counts)
        lengths = clips.lengths.to(codes.device)
        width = self.num_tokens(clips.spec, longest)
        return arrange(codes[..., :longest], lengths, self.order, end=clips.spec.codebook_sizes[0], width=width)

    def _forgotten(self, clean: Representation, width: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Return which places `[B, N]` do not show their token. Place 0 shows none in any case."""
        forgotten = torch.zeros(len(generators), width, dtype=torch.bool)
        for i, (frames, generator) in enumerate(zip(clean.frame_counts, generators, strict=True)):
            count = self.num_tokens(clean.spec, frames)
            forgotten[i, :count] = (torch.rand(count, generator=generator, device=generator.device) < self.forget).cpu()
        return forgotten


def _with_classes(spec: RepresentationSpec, classes: Sequence[int]) -> RepresentationSpec:
    return replace(spec, codebook_sizes=tuple(classes))
