"""Conformance of samplers.

Shape letters: B clips, D latent dimensions, K levels of codes, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from soundomni.core.interfaces import First, Predict, Sampler
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec, length_mask
from soundomni.testing.suite import ConformanceSuite, generator, noise, seeded

SHAPE = (3, 2, 5)
LEVELS = (3, 4)
CODES = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=LEVELS)
LENGTHS = (5, 3, 4)
GIVEN = ((0, 0, 1, 2), (0, 1, 4, 3), (2, 0, 0, 1))
"""Cells of codes that are given: clip, level, frame and code."""


class SamplerSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Sampler`.

    A sampler that takes velocities is tried on latents, and one that takes logits on codes.

    Attributes:
        velocity: whether velocities are ε − x0 of x_t = (1 − t)·x0 + t·ε; the clause `target` is for these, and for logits.
        tolerance: largest difference between results that should be equal, relative above magnitude 1.
    """

    kind: ClassVar[str] = "sampler"
    velocity: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self) -> Sampler:
        """Return a new sampler with a few steps, more than one."""

    def built(self, seed: int = 0) -> Sampler:
        """Return `make()`."""
        sampler: Sampler = seeded(self.make, seed)
        return sampler

    def test_num_evaluations(self) -> None:
        """One call asks for `num_evaluations` predictions."""
        sampler = self.built()
        steps, expected, found = sampler.num_steps, sampler.num_evaluations(_batch(_start(sampler))), len(_asked(sampler))
        self.require(isinstance(steps, int) and steps >= 1, "num_evaluations", f"num_steps is {steps!r}; expected an int from 1")
        message = f"one call asked for {found} predictions, but num_evaluations says {expected}"
        self.require(found == expected, "num_evaluations", message)

    def test_timesteps(self) -> None:
        """Predictions are asked for at timesteps `[B]` in (0, 1], from `starts_at` on and never rising."""
        sampler = self.built()
        found = sampler.starts_at
        self.require(0.0 < found <= 1.0, "timesteps", f"starts_at is {found}; expected a timestep above 0, at most 1")
        self._check_timesteps("timesteps", _asked(sampler), begin=found)

    def test_shape(self) -> None:
        """Values keep shape and dtype, also when predictions are asked for; the given ones are not changed in place."""
        sampler = self.built()
        for start in _of_all_types(_start(sampler)):
            kept = start.clone()
            seen: list[Tensor] = []

            def predict(values: Tensor, timesteps: Tensor, *, first: First = 0, seen: list[Tensor] = seen) -> Tensor:
                seen.append(values)
                return _swirl(values, timesteps)

            for values in (_sample(sampler, predict, start), *seen):
                found, wanted = f"{values.dtype} {list(values.shape)}", f"{start.dtype} {list(SHAPE)}"
                self.require(found == wanted, "shape", f"noise of {wanted} became values of {found}; expected {wanted}")
            self.require(torch.equal(start, kept), "shape", "the given noise was changed in place; expected it to stay unchanged")

    def test_target(self) -> None:
        """If the velocity is that of a straight line to x0, the result is x0; if logits allow one code in each cell, it is these
        codes.

        A sampler that adds noise of its own leaves the line. It is shown a velocity that leads to x0 from anywhere.
        """
        sampler = self.built()
        if sampler.takes == "logits":
            self._check_codes(sampler)
            return
        if not self.velocity:
            pytest.skip("this sampler takes other velocities")
        start, data = noise(0, *SHAPE).double(), noise(1, *SHAPE).double()
        slope = start - data / sampler.starts_at  # of the line from x0 to what the sampler starts with, at that timestep
        velocity, which = (_to_point(data), "velocity") if _adds_noise(sampler) else (_constant(slope), "constant velocity")
        result = _sample(sampler, velocity, start)
        self.require_close(result, data, self.tolerance, "target", f"{which} ε − x0 did not lead from ε to x0")

    def _check_codes(self, sampler: Sampler) -> None:
        codes = torch.stack([torch.randint(size, (SHAPE[0], SHAPE[2]), generator=generator(9)) for size in LEVELS], dim=1)
        sure = [torch.nn.functional.one_hot(codes[:, level], size).transpose(1, 2) for level, size in enumerate(LEVELS)]
        logits = 1e4 * torch.cat(sure, dim=1).float()
        start = _start(sampler)
        result = _sample(sampler, lambda values, timesteps, *, first=0: logits, start)
        expected = torch.where((start == HIDDEN) & _within(), codes, result)
        self.require_close(result, expected, 0.0, "target", "logits that allow one code in each cell did not lead to these codes")

    def test_known(self) -> None:
        """Codes that are not HIDDEN at the start never change."""
        sampler = self.built()
        if sampler.takes != "logits":
            return
        start = _start(sampler)
        seen: list[Tensor] = []
        result = _sample(sampler, _swirl, start, lambda index, values: seen.append(values.clone()))
        for step, values in enumerate([*seen, result]):
            what = f"after step {step}" if step < len(seen) else "in the result"
            same = torch.equal(values[start != HIDDEN], start[start != HIDDEN])
            self.require(same, "known", f"codes given at the start are others {what}; expected them never to change")

    def test_hidden(self) -> None:
        """No code is HIDDEN in the result, and each is one of its level's."""
        sampler = self.built()
        if sampler.takes != "logits":
            return
        result = _sample(sampler, _swirl, _start(sampler))
        left = int((result == HIDDEN).sum())
        self.require(left == 0, "hidden", f"{left} cells are HIDDEN in the result; expected none")
        for level, size in enumerate(LEVELS):
            low, high = int(result[:, level].min()), int(result[:, level].max())
            message = f"codes of level {level} run from {low} to {high}; expected 0 to {size - 1}"
            self.require(low >= 0 and high < size, "hidden", message)

    def test_begin(self) -> None:
        """When it begins at a timestep below 1, it asks from there, in as many steps, and a straight line still
        leads to x0."""
        sampler, begin = self.built(), 0.5
        asked = _asked(sampler, begin)
        self._check_timesteps("begin", asked, begin=begin)
        self._check_steps("begin", sampler, begin=begin)
        expected = len(_asked(sampler))
        self.require(len(asked) == expected, "begin", f"{len(asked)} predictions were asked for; expected {expected}, as from noise")
        if not self.velocity or sampler.takes == "logits":
            return
        start, data = noise(0, *SHAPE).double(), noise(1, *SHAPE).double()
        middle = (1 - begin) * data + begin * start
        velocity, which = (_to_point(data), "velocity") if _adds_noise(sampler) else (_constant(start - data), "constant velocity")
        result = _sample(sampler, velocity, middle, begin=begin)
        self.require_close(result, data, self.tolerance, "begin", f"{which} ε − x0 did not lead from the middle to x0")

    def test_straight_steps(self) -> None:
        """If `straight_steps` gives timesteps, each step follows its only prediction in a straight line from one to the
        next."""
        sampler = self.built()
        timesteps = sampler.straight_steps()
        if timesteps is None:
            return
        falls = len(timesteps) == sampler.num_steps + 1 and all(before > after for before, after in pairwise(timesteps))
        ends = timesteps[0] == sampler.starts_at and timesteps[-1] == 0.0
        message = f"they are {timesteps}; expected {sampler.num_steps + 1} falling timesteps from {sampler.starts_at:g} to 0"
        self.require(falls and ends, "straight_steps", message)
        start = _start(sampler)
        values = start * sampler.starts_at
        for timestep, next_timestep in pairwise(timesteps):
            values = values + (next_timestep - timestep) * _swirl(values, torch.full((len(values),), timestep))
        found = _sample(sampler, _swirl, start)
        self.require_close(found, values, self.tolerance, "straight_steps", "the result is not that of straight steps between them")

    def test_no_state(self) -> None:
        """The same call gives the same values twice: it keeps no state, and only draws from the generators."""
        sampler = self.built()
        start = _start(sampler)
        first = seeded(lambda: _sample(sampler, _swirl, start), 1)
        _sample(sampler, _swirl, _start(sampler, 1)[:1, :, :2])
        second = seeded(lambda: _sample(sampler, _swirl, start), 2)
        message = "the same call gave other values after another call"
        self.require_close(second, first, self.tolerance, "no_state", message)

    def test_batch(self) -> None:
        """A clip gives the same result on its own and in a batch, if its generator is the same; padding changes nothing."""
        sampler = self.built()
        start = _start(sampler)
        together = _sample(sampler, _swirl, start)
        for clip, frames in enumerate(_frames(start)):
            alone = _sample(sampler, _swirl, start[clip : clip + 1, :, :frames], first_seed=clip)
            message = f"clip {clip} gave another result on its own than in a batch of {SHAPE[0]}"
            self.require_close(together[clip : clip + 1, :, :frames], alone, self.tolerance, "batch", message)

    def test_on_step(self) -> None:
        """`on_step` is called after each of `count_steps` steps, in order, the last time with the result."""
        self._check_steps("on_step", self.built(), begin=1.0)

    def _check_timesteps(self, clause: str, asked: list[Tensor], *, begin: float) -> None:
        for timesteps in asked:
            shape = list(timesteps.shape)
            self.require(shape == [SHAPE[0]], clause, f"timesteps of {SHAPE[0]} clips have shape {shape}; expected {[SHAPE[0]]}")
            low, high = float(timesteps.min()), float(timesteps.max())
            message = f"timesteps from {low:.4g} to {high:.4g} were asked for; expected above 0, at most {begin:g}"
            self.require(low > 0 and high <= begin + 1e-6, clause, message)
        first = float(asked[0].min())
        self.require(abs(first - begin) < 1e-6, clause, f"the first prediction was asked for at timestep {first:.4g}; expected {begin:g}")
        for before, after in pairwise(asked):
            rises = bool((after > before + 1e-6).any())
            message = f"timestep {float(after.max()):.4g} was asked for after {float(before.max()):.4g}; expected it not to rise"
            self.require(not rises, clause, message)

    def _check_steps(self, clause: str, sampler: Sampler, *, begin: float) -> None:
        seen: list[tuple[int, Tensor]] = []
        start = _start(sampler)
        result = _sample(sampler, _swirl, start, lambda index, values: seen.append((index, values.clone())), begin=begin)
        indices, steps = [index for index, _ in seen], sampler.count_steps(_batch(start))
        message = f"on_step was called {len(indices)} times, indices start {indices[:3]}; expected {steps} times, with 0 to {steps - 1}"
        self.require(indices == list(range(steps)), clause, message)
        self.require_close(seen[-1][1], result, self.tolerance, clause, "the last call of on_step had other values than the result")


def _swirl(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
    """Return a prediction that treats each clip and frame separately: smooth velocities, or logits of codes."""
    if values.is_floating_point():
        return torch.sin(3 * values) + timesteps[:, None, None].to(values) * values
    seen = (values * torch.tensor([[1.3], [0.7]])).sum(1, keepdim=True) + timesteps[:, None, None]
    return 2 * torch.sin(seen + 2.1 * torch.arange(sum(LEVELS))[:, None])


def _constant(velocity: Tensor) -> Predict:
    """Return a prediction that is the same everywhere."""
    return lambda values, timesteps, *, first=0: velocity


def _to_point(data: Tensor) -> Predict:
    """Return the velocity of a flow whose data is a single point: it leads straight there from any values."""
    return lambda values, timesteps, *, first=0: (values - data) / timesteps[:, None, None]


def _adds_noise(sampler: Sampler) -> bool:
    """Return whether a sampler of velocities draws from its generators: others give another result, the same ones do not."""
    start = _start(sampler)
    first, again, other = (_sample(sampler, _swirl, start.clone(), first_seed=seed) for seed in (0, 0, len(start)))
    return torch.equal(first, again) and not torch.equal(first, other)


def _start(sampler: Sampler, seed: int = 0) -> Tensor:
    """Return what sampling starts from: noise, or hidden codes of which some are given."""
    if sampler.takes == "velocity":
        return noise(seed, *SHAPE)
    codes = torch.full(SHAPE, HIDDEN)
    for clip, level, frame, code in GIVEN:
        codes[clip, level, frame] = code
    return codes


def _of_all_types(start: Tensor) -> list[Tensor]:
    """Return the same values in the types that a start may have."""
    return [start, start.double()] if start.is_floating_point() else [start]


def _frames(start: Tensor) -> tuple[int, ...]:
    """Return the lengths of the clips of a start; a batch has padding."""
    longest = start.shape[-1]
    return tuple(min(frames, longest) for frames in LENGTHS[: len(start)]) if len(start) > 1 else (longest,)


def _within() -> Tensor:
    """Return which frames of codes are within their clips, `[B, 1, T]`."""
    return length_mask(torch.tensor(LENGTHS), SHAPE[2])[:, None]


def _batch(start: Tensor) -> Representation:
    spec = Representation.of_latents(start).spec if start.is_floating_point() else CODES
    return Representation(start, torch.tensor(_frames(start)), spec)


def _sample(
    sampler: Sampler,
    predict: Predict,
    start: Tensor,
    on_step: Callable[[int, Tensor], None] | None = None,
    *,
    begin: float = 1.0,
    first_seed: int = 0,
) -> Tensor:
    def review(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
        return predict(values, timesteps, first=first)[:, : values.shape[1]]

    generators = [generator(first_seed + clip) for clip in range(len(start))]

    def compare(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
        return predict(values, timesteps, first=first).expand(2, *values.shape)

    more: dict[str, Any] = {"review": review} if sampler.reviews else {}
    more |= {"compare": compare} if sampler.compares else {}
    made = sampler.sample(predict, _batch(start), generators=generators, begin=begin, on_step=on_step, **more)
    return made.values


def _asked(sampler: Sampler, begin: float = 1.0) -> list[Tensor]:
    """Return the timesteps `[B]` of every prediction of one call."""
    asked: list[Tensor] = []

    def predict(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        asked.append(timesteps.clone())
        return _swirl(values, timesteps)

    _sample(sampler, predict, _start(sampler), begin=begin)
    return asked
