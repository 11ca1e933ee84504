"""Conformance of samplers.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from soundomni.core.interfaces import Predict, Sampler
from soundomni.core.representation import Representation
from soundomni.testing.suite import ConformanceSuite, generator, noise, seeded

SHAPE = (3, 2, 5)


class SamplerSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Sampler`.

    Attributes:
        velocity: whether predictions are velocities ε − x0 of x_t = (1 − t)·x0 + t·ε; the clause `target` is for these.
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
        steps, expected, found = sampler.num_steps, sampler.num_evaluations(_start()), len(_asked(sampler))
        self.require(isinstance(steps, int) and steps >= 1, "num_evaluations", f"num_steps is {steps!r}; expected an int from 1")
        message = f"one call asked for {found} predictions, but num_evaluations says {expected}"
        self.require(found == expected, "num_evaluations", message)

    def test_timesteps(self) -> None:
        """Predictions are asked for at timesteps `[B]` in (0, 1], from 1 on and never rising."""
        self._check_timesteps("timesteps", _asked(self.built()), begin=1.0)

    def test_shape(self) -> None:
        """Values keep shape and dtype, also when predictions are asked for; the given noise is not changed in place."""
        sampler = self.built()
        for dtype in (torch.float32, torch.float64):
            start = noise(0, *SHAPE).to(dtype)
            kept = start.clone()
            seen: list[Tensor] = []

            def predict(values: Tensor, timesteps: Tensor, *, first: int = 0, seen: list[Tensor] = seen) -> Tensor:
                seen.append(values)
                return _swirl(values, timesteps)

            for values in (_sample(sampler, predict, start), *seen):
                found, wanted = f"{values.dtype} {list(values.shape)}", f"{dtype} {list(SHAPE)}"
                self.require(found == wanted, "shape", f"noise of {wanted} became values of {found}; expected {wanted}")
            self.require(torch.equal(start, kept), "shape", "the given noise was changed in place; expected it to stay unchanged")

    def test_target(self) -> None:
        """If the velocity is that of a straight line to x0, the result is x0."""
        if not self.velocity:
            pytest.skip("this sampler does not take velocities")
        start, data = noise(0, *SHAPE).double(), noise(1, *SHAPE).double()
        result = _sample(self.built(), lambda values, timesteps, *, first=0: start - data, start)
        self.require_close(result, data, self.tolerance, "target", "constant velocity ε − x0 did not lead from ε to x0")

    def test_begin(self) -> None:
        """When it begins at a timestep below 1, it asks from there, in `num_steps` steps, and a straight line still
        leads to x0."""
        sampler, begin = self.built(), 0.5
        asked = _asked(sampler, begin)
        self._check_timesteps("begin", asked, begin=begin)
        self._check_steps("begin", sampler, begin=begin)
        expected = len(_asked(sampler))
        self.require(len(asked) == expected, "begin", f"{len(asked)} predictions were asked for; expected {expected}, as from noise")
        if not self.velocity:
            return
        start, data = noise(0, *SHAPE).double(), noise(1, *SHAPE).double()
        middle = (1 - begin) * data + begin * start
        result = _sample(sampler, lambda values, timesteps, *, first=0: start - data, middle, begin=begin)
        self.require_close(result, data, self.tolerance, "begin", "constant velocity ε − x0 did not lead from the middle to x0")

    def test_no_state(self) -> None:
        """The same call gives the same values twice: it keeps no state, and only draws from the generators."""
        sampler, start = self.built(), noise(0, *SHAPE)
        first = seeded(lambda: _sample(sampler, _swirl, start), 1)
        _sample(sampler, _swirl, noise(1, 1, 4, 2))
        second = seeded(lambda: _sample(sampler, _swirl, start), 2)
        message = "the same call gave other values after another call"
        self.require_close(second, first, self.tolerance, "no_state", message)

    def test_batch(self) -> None:
        """A clip gives the same result on its own and in a batch, if its generator is the same."""
        sampler, start = self.built(), noise(0, *SHAPE)
        together = _sample(sampler, _swirl, start)
        for clip in range(SHAPE[0]):
            alone = _sample(sampler, _swirl, start[clip : clip + 1], first_seed=clip)
            message = f"clip {clip} gave another result on its own than in a batch of {SHAPE[0]}"
            self.require_close(together[clip : clip + 1], alone, self.tolerance, "batch", message)

    def test_on_step(self) -> None:
        """`on_step` is called after each of `num_steps` steps, in order, the last time with the result."""
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
        result = _sample(sampler, _swirl, noise(0, *SHAPE), lambda index, values: seen.append((index, values.clone())), begin=begin)
        indices, steps = [index for index, _ in seen], sampler.num_steps
        message = f"on_step was called {len(indices)} times, indices start {indices[:3]}; expected {steps} times, with 0 to {steps - 1}"
        self.require(indices == list(range(steps)), clause, message)
        self.require_close(seen[-1][1], result, self.tolerance, clause, "the last call of on_step had other values than the result")


def _swirl(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
    """Return a smooth prediction that treats each clip, frame and dimension separately."""
    return torch.sin(3 * values) + timesteps[:, None, None].to(values) * values


def _start() -> Representation:
    return Representation.of_latents(noise(0, *SHAPE))


def _sample(
    sampler: Sampler,
    predict: Predict,
    start: Tensor,
    on_step: Callable[[int, Tensor], None] | None = None,
    *,
    begin: float = 1.0,
    first_seed: int = 0,
) -> Tensor:
    generators = [generator(first_seed + clip) for clip in range(len(start))]
    made = sampler.sample(predict, Representation.of_latents(start), generators=generators, begin=begin, on_step=on_step)
    return made.values


def _asked(sampler: Sampler, begin: float = 1.0) -> list[Tensor]:
    """Return the timesteps `[B]` of every prediction of one call."""
    asked: list[Tensor] = []

    def predict(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
        asked.append(timesteps.clone())
        return _swirl(values, timesteps)

    _sample(sampler, predict, noise(0, *SHAPE), begin=begin)
    return asked
