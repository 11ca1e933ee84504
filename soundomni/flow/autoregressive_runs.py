"""Autoregressive runs: codes of one level that repeat are made as one token, with the number of frames that they last.

Shape letters: B clips, T frames, N tokens, R rows, V vocabulary, M frames of the longest run, P classes of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import LossTerms, Query
from soundomni.core.limits import MOST_VOCABULARY, check_count
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec, Tokens, TokenSpec, length_mask
from soundomni.flow.autoregressive import Autoregressive
from soundomni.flow.level_losses import nats_of_clips
from soundomni.flow.runs import collapse, expand, frames_before


@dataclass(frozen=True, kw_only=True)
class RunQuery(Query):
    """A query of runs.

    Args:
        frames: int64 `[B]`, the number of frames to make, and one more for the end; 0 for clips that are not targets.
        cut: int64 `[B]`, the token of the run that the known frames cut.
        least: int64 `[B]`, the id that this run has at least; HIDDEN if no run is cut.
    """

    frames: Tensor
    cut: Tensor
    least: Tensor

    def clip(self, index: int) -> RunQuery:
        """Return the query of one clip, as a batch of one."""
        one, rows = cast(RunQuery, super().clip(index)), slice(index, index + 1)
        return replace(one, frames=self.frames[rows], cut=self.cut[rows], least=self.least[rows])


class AutoregressiveRuns(Autoregressive):
    """Predicts each run of equal codes, its code and its frames together, from those before it; for codes of one level.

    AudioLM removes repetitions of semantic tokens (Borsos et al. 2022, section III.C). Here durations are kept, so that the frames
    come back exactly: every sequence of codes has one sequence of runs. The loss is the cross-entropy of a clip's runs and its end,
    divided by its frames plus one; so it is the loss of `autoregressive` on the same codes, and the two are comparable. It is named
    "autoregressive" too.

    Clips take fewer tokens to make. In training there are as many places as frames, because batches are planned before anything is
    encoded; those after the end of a clip are not asked for.

    A known prefix is a clip to continue. If it ends within a run, that run goes on for as long as the model says, given how long it
    has lasted. Runs that would go beyond the length of a clip are not drawn.

    Args:
        longest: most frames of a run; longer ones are divided. A token has this many classes for each code, and one for the end.
        forget: share of the tokens that the network is not shown in training, as in `autoregressive`.

    Raises:
        SpecError: an argument is out of its range.
    """

    def __init__(self, *, longest: int = 8, forget: float = 0.0) -> None:
        super().__init__(forget=forget)
        check_count("longest", longest)
        self.longest = longest

    def tokens(self, spec: RepresentationSpec) -> TokenSpec:
        """Return the classes of a token, V·M runs and the end. Raise SpecError for latents and for codes of several levels."""
        super().tokens(spec)
        if len(spec.codebook_sizes) != 1:
            raise SpecError(
                f"the codec has {len(spec.codebook_sizes)} levels of codes; expected one level to make runs. Use a codec of one level, "
                "such as mel-kmeans, or the objective autoregressive"
            )
        classes = spec.codebook_sizes[0] * self.longest + 1
        if spec.codebook_sizes[0] < 2:
            raise SpecError("the codec has one code; expected at least 2, because two runs in a row have different codes")
        if classes > MOST_VOCABULARY:
            most = (MOST_VOCABULARY - 1) // spec.codebook_sizes[0]
            raise SpecError(f"longest is {self.longest}; expected at most {most}, so that there are no more than {MOST_VOCABULARY:,} runs")
        return TokenSpec((classes,), (classes,))

    def start(self, given: Representation, known: Tensor, generators: Sequence[torch.Generator]) -> Tokens:
        """Return tokens whose every run is hidden but those of known frames; nothing is drawn.

        A clip has a hidden token for each frame that is not known, and ends as soon as its runs fill the frames of `given`.

        Raises:
            SpecError: the known frames of a clip are not its first ones.
        """
        self.check_known(known)
        end, frames = self._end(given.spec), given.lengths.to(given.values.device)
        runs, settled, least = self._settled(given, known)
        left = frames - _count(given, known)
        least, settled = least.where(left > 0, HIDDEN), settled.where((left > 0) | (least < 0), settled + 1)
        last = settled + left + (least >= 0)
        values, width = functional.pad(runs, (0, 1)), runs.shape[1] + 1
        values = values.where(length_mask(settled, width), HIDDEN).where(length_mask(last, width), EMPTY)
        values = values.scatter(1, last[:, None], end)[:, None]
        counts = last + 1
        return Tokens(
            values=values,
            lengths=counts,
            spec=replace(given.spec, codebook_sizes=(end + 1,)),
            frames=tuple(counts.tolist()),
            end=end,
            earliest=-(-(given.spec.extra_frames + 1) // self.longest),
            ended=lambda clip, token: functional.pad(values[clip, :, :token], (0, 1), value=end),
            allowed=_Allowed(self.longest, end, frames.cpu(), given.spec.extra_frames, settled.cpu(), least.cpu()),
        )

    def made(self, values: Representation) -> Representation:
        """Return the codes that tokens hold, each clip up to its end.

        Raise ValueError for a clip without an end.
        """
        (classes,) = values.spec.codebook_sizes
        ended = values.values[:, 0] == classes - 1
        if not bool(ended.any(1).all()):
            raise ValueError(f"a clip does not end: no token of it is {classes - 1}")
        codes, lengths = expand(values.values[:, 0], ended.int().argmax(1), self.longest)
        spec = replace(values.spec, codebook_sizes=((classes - 1) // self.longest,))
        return Representation(codes[:, None], lengths, spec, tuple(lengths.tolist()))

    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> RunQuery:
        """Arrange the clips as runs, and show the run before each one to predict. Forgetting is as in `autoregressive`.

        Raises:
            SpecError: the representation is continuous, or has several levels.
        """
        end = self._end(clean.spec)
        tokens = self._arranged(clean, clean.values)
        made = noise.to(tokens.device)[:, None]
        _, settled, least = self._settled(clean, known)
        asked = made & ~length_mask(settled, tokens.shape[-1]) & (tokens[:, 0] != EMPTY)
        frames = clean.lengths.to(tokens.device) - _count(clean, known) + 1
        return RunQuery(
            inputs=self._shown(clean, tokens, made, generators),
            timesteps=made.float().expand(-1, tokens.shape[-1]),
            targets=tokens.masked_fill(~asked[:, None], HIDDEN),
            loss_mask=asked,
            levels=(end + 1,),
            ids=tokens.masked_fill(tokens == EMPTY, HIDDEN),
            frames=frames * made[:, 0],
            cut=settled,
            least=least,
        )

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the sum of the cross-entropy over the runs to predict, and the number of frames and ends that they make.

        The prediction is `[B, V·M + 1, N]`. The loss of a run that is cut is conditional on its code and its known frames, and that of
        a run after a short one on having another code.
        """
        if not isinstance(query, RunQuery):  # a batch without clips, which nothing corrupted
            return super().loss(prediction, query)
        assert query.ids is not None, "corrupt gives them"
        classes = torch.arange(prediction.shape[1], device=prediction.device)[:, None]
        last = functional.pad(query.ids[:, 0, :-1], (1, 0), value=HIDDEN)
        least = torch.full_like(last, HIDDEN).scatter(1, query.cut[:, None], query.least[:, None])
        given = prediction.masked_fill(_impossible(classes, last[:, None], least[:, None], self.longest), -math.inf)
        return {"autoregressive": (nats_of_clips(given, query).sum(), query.frames.sum())}

    def _end(self, spec: RepresentationSpec) -> int:
        """Return the class that ends a clip, which is the last one."""
        return self.tokens(spec).num_outputs - 1

    def _arranged(self, clips: Representation, codes: Tensor) -> Tensor:
        """Return codes of `clips` as tokens `[B, 1, N]`, with a place for each frame of the longest clip and one more."""
        frames = max(clips.frame_counts)
        runs, counts = collapse(codes[:, 0, :frames], clips.lengths.to(codes.device), self.longest)
        tokens = functional.pad(runs, (0, 1), value=EMPTY)
        return tokens.scatter(1, counts[:, None], self._end(clips.spec))[:, None]

    def _settled(self, clips: Representation, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the runs `[B, T]` of known frames `[B, T]`, how many of them are known whole `[B]`, and the least id of the next one.

        The last is HIDDEN if none of its frames is known.
        """
        runs, counts = collapse(clips.values[:, 0], _count(clips, known), self.longest)
        last = runs.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
        is_cut = (counts > 0) & (last % self.longest < self.longest - 1)
        return runs, counts - is_cut.long(), last.where(is_cut, HIDDEN)


@dataclass(frozen=True)
class _Allowed:
    """Which classes the next run of a clip may have: `Tokens.allowed`. All tensors are on the CPU.

    Args:
        longest: M.
        end: the class that ends a clip.
        frames: int64 `[B]`, most frames of each clip.
        extra: a clip needs more frames than this to have a sample.
        cut, least: as in RunQuery.
    """

    longest: int
    end: int
    frames: Tensor
    extra: int
    cut: Tensor
    least: Tensor

    def __call__(self, ids: Tensor, clips: Tensor, tokens: Tensor) -> Tensor:
        """Return bool `[R, V·M + 1]` for ids `[R, 1, N]`, the clips `[R]` and the tokens `[R]` of rows."""
        before = frames_before(ids[:, 0], tokens, self.longest)
        classes = torch.arange(self.end)
        fits = classes % self.longest < (self.frames[clips] - before)[:, None]
        last = functional.pad(ids[:, 0], (1, 0), value=HIDDEN).gather(1, tokens[:, None])
        least = self.least[clips].where(tokens == self.cut[clips], HIDDEN)
        fits &= ~_impossible(classes, last, least[:, None], self.longest)
        return torch.cat([fits, ((before > self.extra) & (least < 0))[:, None]], dim=1)


def _impossible(classes: Tensor, last: Tensor, least: Tensor, longest: int) -> Tensor:
    """Return which classes cannot come next; shapes broadcast.

    After a run `last` that is shorter than M, its code cannot come again, because both would be one run. If a run is cut, and has at
    least the id `least`, it can neither have another code nor fewer frames. HIDDEN stands for no run.
    """
    codes = classes // longest
    repeats = (codes == last // longest) & (last % longest < longest - 1)
    shorter = (least >= 0) & ((codes != least // longest) | (classes < least))
    return repeats | shorter


def _count(clips: Representation, known: Tensor) -> Tensor:
    """Return how many frames of each clip are known: int64 `[B]`."""
    known = known.to(clips.values.device)
    return (known & length_mask(clips.lengths.to(known.device), known.shape[1])).sum(1)
