"""Conformance of critics.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Critic, LossTerms
from soundomni.testing.suite import ModuleSuite, generator, noise, number, seeded

LENGTHS = (1, 2, 3, 7, 64, 100, 513)
"""Numbers of samples of clips that may be too short."""


class CriticSuite(ModuleSuite):
    """Clauses of `soundomni.core.interfaces.Critic`.

    Attributes:
        sample_rate, channels: what the critics are made for; C.
        num_samples: S of clips that are long enough for every loss.
        distances: losses of `judge` that are zero for a perfect estimate.
        steps, learning_rate: how `learns` trains, with Adam.
        tolerance: largest difference between a batch and the sum of its clips, relative above magnitude 1; and largest
            distance of a perfect estimate.
    """

    kind: ClassVar[str] = "critic"
    sample_rate: ClassVar[int] = 8000
    channels: ClassVar[int] = 1
    num_samples: ClassVar[int] = 2048
    distances: ClassVar[tuple[str, ...]] = ("distance", "features")
    steps: ClassVar[int] = 30
    learning_rate: ClassVar[float] = 3e-3
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self, *, sample_rate: int, channels: int) -> Critic:
        """Return a new, small critic on the CPU; the assembly passes these arguments."""

    def built(self, seed: int = 0) -> Critic:
        """Return a critic with weights drawn from `seed`."""
        critic: Critic = seeded(lambda: self.make(sample_rate=self.sample_rate, channels=self.channels), seed)
        return critic

    def outputs(self, plugin: Any) -> list[Tensor]:
        """Return the sums of the losses for two clips."""
        return [total for total, _ in plugin.judge(*self.clips(2)).values()]

    def clips(self, count: int, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Return targets, smooth noise, and estimates, white noise of the same RMS, `[B, C, S]` each."""
        shape = (count, self.channels, self.num_samples if num_samples is None else num_samples)
        drawn = noise(0, *shape[:-1], shape[-1] + 7).unfold(2, 8, 1)
        return 0.3 * drawn.mean(3) * 8**0.5, 0.3 * noise(1, *shape)

    def test_names(self) -> None:
        """`judge` returns the losses that `judged` names, and `learn` those of `learned`; sums are finite, and long
        clips count."""
        critic = self.built()
        for attribute, names in (("judged", critic.judged), ("learned", critic.learned)):
            good = isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)
            good = good and len({*names}) == len(names)
            self.require(good, "names", f"{attribute} is {names!r}; expected a tuple of unique names")
            for name in names:
                self.require("." not in name, "names", f"{attribute} has '{name}'; expected names without a dot")
        self.require(bool(critic.judged), "names", "judged is empty; expected at least one loss")
        self._named("judge", critic.judged, critic.judge(*self.clips(2)))
        if critic.learned:
            self._named("learn", critic.learned, self._learn(critic, *self.clips(2)))

    def test_parameters(self) -> None:
        """A critic has trainable parameters exactly if it learns."""
        critic = self.built()
        trainable = [name for name, parameter in critic.named_parameters() if parameter.requires_grad]
        found = f"learned is {critic.learned!r}, and the trainable parameters are {trainable[:3] or 'none'}"
        self.require(bool(trainable) == bool(critic.learned), "parameters", f"{found}; expected both or neither")

    def test_gradient(self) -> None:
        """Losses of `judge` have gradients for the estimate, and none for the target."""
        critic = self.built()
        for name in critic.judged:
            target, estimate = (clips.requires_grad_() for clips in self.clips(2))
            self._differentiate(critic.judge(target, estimate)[name][0], "gradient", f"judge: '{name}'")
            slope = estimate.grad
            good = slope is not None and bool(slope.isfinite().all()) and bool(slope.any())
            message = f"judge: '{name}' gave the estimate no gradient, or one that is zero or not finite"
            self.require(good, "gradient", message)
            leaked = target.grad is not None and bool(target.grad.any())
            self.require(not leaked, "gradient", f"judge: '{name}' gave the target a gradient; expected none")

    def test_learn_gradient(self) -> None:
        """Losses of `learn` have gradients for every trainable parameter, and none for target and estimate."""
        critic = self.built()
        if not critic.learned:
            return
        target, estimate = (clips.requires_grad_() for clips in self.clips(2))
        total = _total(self._learn(critic, target, estimate))
        self.require_gradients(critic, total, "learn_gradient", "learn")
        for name, clips in (("target", target), ("estimate", estimate)):
            leaked = clips.grad is not None and bool(clips.grad.any())
            self.require(not leaked, "learn_gradient", f"learn gave the {name} a gradient; expected none")

    def test_penalty(self) -> None:
        """A loss named "penalty" has a gradient for the parameters, although it is itself made of one."""
        critic = self.built()
        if "penalty" not in critic.learned:
            return
        self._differentiate(self._learn(critic, *self.clips(2))["penalty"][0], "penalty", "learn: 'penalty'")
        slopes = [parameter.grad for parameter in critic.parameters() if parameter.grad is not None]
        good = any(bool(slope.any()) for slope in slopes) and all(bool(slope.isfinite().all()) for slope in slopes)
        self.require(good, "penalty", "learn: 'penalty' gave no parameter a gradient, or one that is not finite")

    def test_batch(self) -> None:
        """Sums and counts of a batch are the sums of those of its clips, each on its own."""
        critic = self.built()
        target, estimate = self.clips(3)
        for method, call in self._calls(critic).items():
            together = call(target, estimate)
            each = [call(target[b : b + 1], estimate[b : b + 1]) for b in range(3)]
            for name, terms in together.items():
                for index, what in enumerate(("sum", "count")):
                    expected = torch.tensor(sum(number(one[name][index]) for one in each))
                    message = f"{method}: the {what} of '{name}' of a batch is not that of its clips"
                    self.require_close(torch.tensor(number(terms[index])), expected, self.tolerance, "batch", message)

    def test_shortest(self) -> None:
        """Clips of any length from one sample are accepted: losses and gradients are finite, and what is not counted
        is zero."""
        critic = self.built()
        for samples in LENGTHS:
            target, estimate = self.clips(2, samples)
            given = f"judge of clips of {samples} sample{'s' if samples > 1 else ''}"
            losses = critic.judge(target, estimate.requires_grad_())
            self._uncounted(given, losses)
            self._differentiate(_total(losses), "shortest", given)
            good = estimate.grad is not None and bool(estimate.grad.isfinite().all())
            message = f"{given} gave the estimate no gradient, or one that is not finite"
            self.require(good, "shortest", f"{message}; expected one, even if zero")
            if critic.learned:
                given = given.replace("judge", "learn")
                losses = self._learn(critic, target, estimate)
                self._uncounted(given, losses)
                self.require_gradients(critic, _total(losses), "shortest", given)

    def test_silence(self) -> None:
        """Losses of silence, and of a silent estimate, are finite, and so are their gradients."""
        critic = self.built()
        target, estimate = self.clips(2)
        for given, wanted in (("silence for silence", 0 * target), ("silence for noise", target)):
            silent = (0 * estimate).requires_grad_()
            total = _total(critic.judge(wanted, silent))
            self.require(bool(total.isfinite()), "silence", f"judge of {given} gave losses that are not finite")
            self._differentiate(total, "silence", f"judge of {given}")
            good = silent.grad is not None and bool(silent.grad.isfinite().all())
            self.require(good, "silence", f"judge of {given} gave no gradient, or one that is not finite")
            if critic.learned:
                total = _total(self._learn(critic, wanted, silent))
                self.require_gradients(critic, total, "silence", f"learn of {given}")

    def test_perfect(self) -> None:
        """Distances are zero for a perfect estimate, and grow with the error."""
        critic = self.built()
        target, other = self.clips(2)
        for name in (name for name in critic.judged if name in self.distances):
            found = [self._value(critic, target, target + share * other, name) for share in (0.0, 0.1, 1.0)]
            message = f"'{name}' of a perfect estimate is {found[0]:.3g}; expected 0"
            self.require(abs(found[0]) <= self.tolerance, "perfect", message)
            message = f"'{name}' is {found[1]:.3g} for a small error and {found[2]:.3g} for a large one"
            self.require(found[0] < found[1] < found[2], "perfect", f"{message}; expected it to grow")

    def test_learns(self) -> None:
        """A few steps lower the critic's own losses; "adversarial" then tells the estimate from the target."""
        critic = self.built()
        if not critic.learned:
            return
        clips = self.clips(2)
        target = clips[0]
        optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], lr=self.learning_rate)
        before = number(_total(self._learn(critic, *clips)))
        for _ in range(self.steps):
            optimizer.zero_grad()
            _total(self._learn(critic, *clips)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        after = number(_total(self._learn(critic, *clips)))
        message = f"{self.steps} steps took the losses of learn from {before:.3g} to {after:.3g}"
        self.require(after < before, "learns", f"{message}; expected less")
        if "adversarial" in critic.judged:
            worse, better = (self._value(critic, target, estimate, "adversarial") for estimate in (clips[1], target))
            message = f"after {self.steps} steps 'adversarial' is {worse:.3g} for the estimate"
            self.require(worse > better, "learns", f"{message} and {better:.3g} for the target itself; expected more")

    def test_pure(self) -> None:
        """`judge` changes neither the critic nor what it is given."""
        critic = self.built()
        clips = self.clips(2)
        state = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
        copies = [one.clone() for one in clips]
        critic.judge(*clips)
        for name, tensor in critic.state_dict().items():
            self.require(torch.equal(tensor, state[name]), "pure", f"judge changed '{name}'; expected it to stay")
        for name, one, copy in zip(("target", "estimate"), clips, copies, strict=True):
            self.require(torch.equal(one, copy), "pure", f"judge changed the {name} in place; expected it to stay")

    def test_deterministic(self) -> None:
        """`judge` draws nothing, and `learn` only from the generators."""
        critic = self.built()
        clips = self.clips(2)
        for method, call in self._calls(critic).items():
            first, second = (seeded(partial(call, *clips), seed) for seed in (1, 2))
            for name in first:
                message = f"two calls of {method} gave different '{name}'"
                self.require_close(second[name][0], first[name][0], 0.0, "deterministic", message)

    def _calls(self, critic: Critic) -> dict[str, Callable[[Tensor, Tensor], LossTerms]]:
        """Return `judge`, and `learn` if the critic learns, by name."""
        return {"judge": critic.judge, "learn": partial(self._learn, critic)} if critic.learned else {"judge": critic.judge}

    def _learn(self, critic: Critic, target: Tensor, estimate: Tensor) -> LossTerms:
        return critic.learn(target, estimate, [generator(b) for b in range(len(target))])

    @torch.no_grad()
    def _value(self, critic: Critic, target: Tensor, estimate: Tensor, name: str) -> float:
        """Return a loss of `judge`: its sum divided by its count."""
        total, count = critic.judge(target, estimate)[name]
        return number(total) / number(count)

    def _named(self, method: str, names: Sequence[str], losses: LossTerms) -> None:
        self.require(set(losses) == {*names}, "names", f"{method} returned {list(losses)}; expected {list(names)}")
        for name, (total, count) in losses.items():
            finite = bool(torch.isfinite(total)) and number(count) > 0
            message = f"{method}: '{name}' is ({number(total):.3g}, {number(count):.3g})"
            self.require(finite, "names", f"{message}; expected a finite sum and a count above 0")

    def _uncounted(self, given: str, losses: LossTerms) -> None:
        for name, (total, count) in losses.items():
            good = bool(torch.isfinite(total)) and number(count) >= 0 and (number(count) > 0 or number(total) == 0)
            message = f"{given} gave '{name}' ({number(total):.3g}, {number(count):.3g})"
            self.require(good, "shortest", f"{message}; expected a finite sum, which is 0 if the count is")

    def _differentiate(self, total: Tensor, clause: str, given: str) -> None:
        self.require(total.requires_grad, clause, f"{given} has no gradient; expected one, even if zero")
        total.backward()  # type: ignore[no-untyped-call]


def _total(losses: LossTerms) -> Tensor:
    """Return the sum of all losses, each per what it counts."""
    return torch.stack([total / max(number(count), 1.0) for total, count in losses.values()]).sum()
