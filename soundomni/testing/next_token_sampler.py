"""Conformance of samplers of the next token.

Shape letters: B clips, K levels of codes, T frames, N tokens, P classes of all levels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import First, Predict, Sampler
from soundomni.core.representation import EMPTY, HIDDEN, RepresentationSpec, Tokens
from soundomni.testing.suite import ConformanceSuite, generator, seeded

SIZES = (3, 4)
CLASSES = (SIZES[0] + 1, SIZES[1])
END = SIZES[0]
LENGTHS = (5, 2, 4)
GIVEN = (2, 0, 0)
EARLIEST = 2
"""Frames of the clips, how many of them are known, and the least that a clip may have."""
SPEC = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=CLASSES)


class NextTokenSamplerSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Sampler`, for those of the next token.

    They are tried on codes of two levels: all of level 0 and the end of the clip, then all of level 1.
    """

    kind: ClassVar[str] = "sampler"

    @abstractmethod
    def make(self) -> Sampler:
        """Return a new sampler."""

    def built(self, seed: int = 0) -> Sampler:
        """Return `make()`."""
        sampler: Sampler = seeded(self.make, seed)
        return sampler

    def test_takes(self) -> None:
        """It takes logits of the next token."""
        takes = self.built().takes
        self.require(takes == "next-token", "takes", f"takes is '{takes}'; expected next-token. Use SamplerSuite")

    def test_num_evaluations(self) -> None:
        """One call asks for at most `num_evaluations` predictions, one for each token to draw."""
        sampler, start = self.built(), _start()
        asked = _Asked(_endless)
        _sample(sampler, asked, start)
        expected, found = sampler.num_evaluations(start), len(asked.firsts)
        message = f"one call asked for {found} predictions, but num_evaluations says {expected}"
        self.require(found <= expected, "num_evaluations", message)
        most = int((start.values == HIDDEN).any(1).any(0).sum())
        self.require(expected == most, "num_evaluations", f"num_evaluations says {expected}, but there are {most} tokens to draw")

    def test_settled(self) -> None:
        """Each token is asked for after all before it, and places show the token before, HIDDEN in cells without a code.

        Tokens before `first` stay as they were shown. Later ones may be asked for again, with others before them.
        """
        asked = _Asked(_swirl)
        result = _sample(self.built(), asked, _start())
        for clip, count in enumerate(result.frame_counts):
            right, reached = _before(result.values[clip, :, :count]), 0
            shown = right[:, :0]
            for first, values in zip((int(firsts[clip]) for firsts in asked.firsts), asked.values, strict=True):
                message = f"tokens from {first} on of clip {clip} were asked for after those before {shown.shape[1]}; expected no gap"
                self.require(first <= shown.shape[1], "settled", message)
                same = torch.equal(shown[:, : min(first, count)], right[:, :first])
                message = f"places before {first} do not show clip {clip} the token before each of them, but were not asked for again"
                self.require(same, "settled", message)
                shown = torch.cat([shown[:, :first], values[clip]], 1)
                width = min(count, shown.shape[1])
                reached = max(reached, int((shown[:, :width] == right[:, :width]).all(0).int().cumprod(0).sum()))
            message = f"places from {reached} on do not show clip {clip} the token before each of them"
            self.require(reached == count, "settled", message)

    def test_stops(self) -> None:
        """Nothing is asked for after all clips have ended."""
        asked = _Asked(_ending)
        result = _sample(self.built(), asked, _start(given=(0, 0, 0)))
        found, most = len(asked.values), max(result.frame_counts)
        message = f"{found} predictions were asked for, although the longest clip ended after {most} tokens"
        self.require(found <= most, "stops", message)

    def test_shape(self) -> None:
        """The result is `Tokens` of the start's shape and dtype; the start is not changed in place."""
        start = _start()
        kept = start.values.clone()
        result = _sample(self.built(), _swirl, start)
        self.require(isinstance(result, Tokens), "shape", f"it returned a {type(result).__name__}; expected Tokens")
        wanted, found = f"{kept.dtype} {list(kept.shape)}", f"{result.values.dtype} {list(result.values.shape)}"
        self.require(found == wanted, "shape", f"a start of {wanted} became {found}; expected {wanted}")
        self.require(torch.equal(start.values, kept), "shape", "the start was changed in place; expected it to stay unchanged")

    def test_target(self) -> None:
        """If logits allow one id in each cell, it is these ids, up to each clip's own end."""
        start, ends = _start(given=(0, 0, 0)), (5, 2, 3)
        codes = torch.randint(min(SIZES), (len(ends), 2, max(LENGTHS)), generator=generator(9))
        wanted = [_tokens(codes[clip, :, :frames]) for clip, frames in enumerate(ends)]

        def predict(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
            logits = torch.zeros(len(values), sum(CLASSES), values.shape[-1])
            for clip, (ids, begun) in enumerate(zip(wanted, torch.as_tensor(first).expand(len(wanted)).tolist(), strict=True)):
                for place in range(values.shape[-1]):
                    if begun + place < ids.shape[1]:
                        for level, own in enumerate(ids[:, begun + place].tolist()):
                            if own >= 0:
                                logits[clip, own + level * CLASSES[0], place] = 1e4
            return logits

        result = _sample(self.built(), predict, start)
        found = result.frame_counts
        counts = tuple(ids.shape[1] for ids in wanted)
        self.require(found == counts, "target", f"clips that end after {ends} frames have {found} tokens; expected {counts}")
        for clip, ids in enumerate(wanted):
            same = torch.equal(result.values[clip, :, : counts[clip]], ids)
            self.require(same, "target", f"logits that allow one id in each cell did not lead to these ids in clip {clip}")

    def test_known(self) -> None:
        """Ids that are not HIDDEN at the start never change, while their clip lasts."""
        start = _start()
        seen: list[Tensor] = []
        result = _sample(self.built(), _endless, start, lambda index, values: seen.append(values.clone()))
        for step, values in enumerate([*seen, result.values]):
            what = f"after step {step}" if step < len(seen) else "in the result"
            same = torch.equal(values[start.values >= 0], start.values[start.values >= 0])
            self.require(same, "known", f"ids given at the start are others {what}; expected them never to change")

    def test_hidden(self) -> None:
        """No id of a clip is HIDDEN in the result, each is one of its level's, level 0 ends once, and all beyond a clip is EMPTY."""
        result = _sample(self.built(), _swirl, _start())
        left = int((result.values == HIDDEN).sum())
        self.require(left == 0, "hidden", f"{left} cells are HIDDEN in the result; expected none")
        for clip, count in enumerate(result.frame_counts):
            ids, beyond = result.values[clip, :, :count], result.values[clip, :, count:]
            ends = int((ids[0] == END).sum())
            self.require(ends == 1, "hidden", f"clip {clip} has {ends} ends; expected one")
            frames = int((ids[0] == END).int().argmax())
            full = ids.shape[1] == 2 * frames + 1 and bool(((ids >= 0) == (_tokens(ids.new_zeros(2, frames)) >= 0)).all())
            self.require(full, "hidden", f"clip {clip} ends after {frames} frames, but does not have the cells of such a clip")
            for level, size in enumerate(CLASSES):
                high = int(ids[level].max())
                self.require(high < size, "hidden", f"ids of level {level} go up to {high}; expected at most {size - 1}")
            self.require(bool((beyond == EMPTY).all()), "hidden", f"tokens beyond clip {clip} are not EMPTY")

    def test_earliest(self) -> None:
        """No clip ends before `earliest`, even if its end is the likeliest id everywhere."""
        result = _sample(self.built(), _ending, _start(given=(0, 0, 0)))
        for clip, ids in enumerate(result.values):
            frames = int((ids[0] == END).int().argmax())
            self.require(frames >= EARLIEST, "earliest", f"clip {clip} ended at token {frames}; expected {EARLIEST} at the earliest")

    def test_begin(self) -> None:
        """Predictions are asked for at timesteps `[B]`, always `begin`."""
        sampler = self.built()
        for begin in (1.0, 0.5):
            asked = _Asked(_swirl)
            _sample(sampler, asked, _start(), begin=begin)
            for timesteps in asked.timesteps:
                fits = list(timesteps.shape) == [len(LENGTHS)] and bool((timesteps == begin).all())
                self.require(fits, "begin", f"timesteps {timesteps.tolist()} were asked for; expected {begin:g} for each clip")

    def test_no_state(self) -> None:
        """The same call gives the same ids twice: it keeps no state, and only draws from the generators."""
        sampler, start = self.built(), _start()
        first = seeded(lambda: _sample(sampler, _swirl, start), 1)
        _sample(sampler, _endless, _start(clips=[1]))
        second = seeded(lambda: _sample(sampler, _swirl, start), 2)
        same = torch.equal(first.values, second.values)
        self.require(same, "no_state", "the same call gave other ids after another call")

    def test_batch(self) -> None:
        """A clip gives the same ids on its own and in a batch, if its generator is the same."""
        sampler = self.built()
        together = _sample(sampler, _swirl, _start())
        for clip in range(len(LENGTHS)):
            alone = _sample(sampler, _swirl, _start(clips=[clip]), first_seed=clip)
            counts = together.frame_counts[clip], alone.frame_counts[0]
            same = counts[0] == counts[1] and torch.equal(together.values[clip, :, : counts[0]], alone.values[0, :, : counts[0]])
            self.require(same, "batch", f"clip {clip} gave another result on its own than in a batch of {len(LENGTHS)}")

    def test_on_step(self) -> None:
        """`on_step` is called after each step, in order, at most `count_steps` times, the last time with the result."""
        sampler, start = self.built(), _start()
        seen: list[tuple[int, Tensor]] = []
        result = _sample(sampler, _swirl, start, lambda index, values: seen.append((index, values.clone())))
        indices, most = [index for index, _ in seen], sampler.count_steps(start)
        right = bool(indices) and indices == list(range(len(indices))) and len(indices) <= most
        message = f"on_step was called {len(indices)} times, indices start {indices[:3]}; expected 0, 1, 2, … and at most {most} times"
        self.require(right, "on_step", message)
        same = torch.equal(seen[-1][1], result.values)
        self.require(same, "on_step", "the last call of on_step had other ids than the result")


class _Asked:
    """A prediction that notes what it is asked."""

    def __init__(self, predict: Predict) -> None:
        self.firsts: list[Tensor] = []
        self.values: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self._predict = predict

    def __call__(self, values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        self.firsts.append(torch.as_tensor(first).expand(len(values)).clone())
        self.values.append(values.clone())
        self.timesteps.append(timesteps.clone())
        return self._predict(values, timesteps, first=first)


def _swirl(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
    """Return logits `[B, P, n]` that follow from the token before and the place."""
    places = (torch.as_tensor(first).reshape(-1, 1) + torch.arange(values.shape[-1]))[:, None]
    seen = (values * torch.tensor([[1.3], [0.7]])).sum(1, keepdim=True) + 0.9 * places
    return 2 * torch.sin(seen + 2.1 * torch.arange(sum(CLASSES))[:, None])


def _endless(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
    """Return logits with which no clip ends."""
    logits = _swirl(values, timesteps, first=first)
    logits[:, END] = -1e4
    return logits


def _ending(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
    """Return logits with which every clip ends as soon as it may."""
    logits = _swirl(values, timesteps, first=first)
    logits[:, END] = 1e4
    return logits


def _tokens(codes: Tensor) -> Tensor:
    """Return the ids `[2, N]` of codes `[2, T]`: level 0, its end, then level 1."""
    frames = codes.shape[1]
    ids = codes.new_full((2, 2 * frames + 1), EMPTY)
    ids[0, :frames], ids[0, frames], ids[1, frames + 1 :] = codes[0], END, codes[1]
    return ids


def _before(ids: Tensor) -> Tensor:
    """Return what each place shows, `[2, N]`, for ids `[2, N]`."""
    shown = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=HIDDEN)
    return shown.masked_fill(shown == EMPTY, HIDDEN)


def _start(*, clips: Sequence[int] = range(len(LENGTHS)), given: Sequence[int] = GIVEN) -> Tokens:
    """Return what sampling starts from."""
    codes = torch.full((len(LENGTHS), 2, max(LENGTHS)), HIDDEN)
    for clip, count in enumerate(given):
        codes[clip, :, :count] = 1
    counts = tuple(2 * LENGTHS[clip] + 1 for clip in clips)
    values = torch.full((len(counts), 2, max(counts)), EMPTY)
    for row, clip in enumerate(clips):
        values[row, :, : counts[row]] = _tokens(codes[clip, :, : LENGTHS[clip]])
    return Tokens(
        values=values,
        lengths=torch.tensor(counts),
        spec=SPEC,
        frames=counts,
        end=END,
        earliest=EARLIEST,
        ended=lambda row, token: _tokens(codes[clips[row], :, :token]),
    )


def _sample(
    sampler: Sampler,
    predict: Predict,
    start: Tokens,
    on_step: Callable[[int, Tensor], None] | None = None,
    *,
    begin: float = 1.0,
    first_seed: int = 0,
) -> Tokens:
    generators = [generator(first_seed + clip) for clip in range(len(start.values))]
    made = sampler.sample(predict, start, generators=generators, begin=begin, on_step=on_step)
    assert isinstance(made, Tokens), f"it returned a {type(made).__name__}; expected Tokens"
    return made
