"""Guards of a run that trains a codec: they end it in one line once its numbers say that it has failed.

A run that has diverged still has finite numbers: a critic that always wins teaches the codec nothing, a dead codebook carries nothing,
and a codec whose latents explode is lost. Each sign has to hold at several logged steps in a row. The newest checkpoint from before the
first of them is kept, and named.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from soundomni.core.errors import SoundOmniError

PATIENCE = 8
"""Logged steps in a row at which a sign has to hold."""
WON = 0.005
"""A critic's own loss below this tells every clip from its estimate by far."""
EXPLODED = 1000.0
"""A critic's loss, or the root mean square of latents, above this is not one that training comes back from."""
CONSTANT = 1e-6
"""Relative range of a critic's own loss within which it always gives the same score."""
VANISHED = 1e-4
"""Root mean square of latents below this carries nothing."""
DEAD = 0.05
"""Share of a codebook's codes; if fewer are in use, it has died."""
WORSE = 10.0
"""Times the first one that the run logged, a distance shows that the codec has diverged; clips differ by less than that."""
USAGE, POWER = "usage/", "latent/power"
"""Names of the metrics that codecs report: the share of each codebook's codes in use, and the mean square of latents."""


@dataclass
class Guards:
    """Looks at the metrics of logged steps.

    Args:
        learned: the losses of critics' own training, without penalties.
        judged: the losses that critics give the codec.
        distances: those of them that are distances, which are never negative.
    """

    learned: Collection[str]
    judged: Collection[str]
    distances: Collection[str]
    good_step: int | None = None
    """The newest checkpoint that was saved while nothing was wrong, or from which the run was resumed."""
    _held: dict[str, int] = field(default_factory=dict)
    _first: dict[str, float] = field(default_factory=dict)
    _recent: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raise SoundOmniError if a sign has held at PATIENCE logged steps in a row.

        Numbers that are not finite do not count: the loop skips such steps, and ends the run itself.
        """
        found = dict(self._signs({name: value for name, value in metrics.items() if math.isfinite(value)}))
        self._held = {sign: self._held.get(sign, 0) + 1 for sign in found}
        for sign, held in self._held.items():
            if held >= PATIENCE:
                raise SoundOmniError(f"training has failed by step {step}: {found[sign]}. {self._way_back()}")

    def resumed(self, step: int, first: Mapping[str, float]) -> None:
        """Note that the run was resumed from the checkpoint of a step, and the metrics of the first step that it logged."""
        self._first = {name: first[f"loss/{name}"] for name in self.distances if f"loss/{name}" in first}
        self.good_step = step

    def saved(self, step: int) -> None:
        """Note that a checkpoint was saved."""
        if not self._held:
            self.good_step = step

    def _way_back(self) -> str:
        if self.good_step is None:
            return "No checkpoint was saved before this began: start again with --existing overwrite"
        return f"The checkpoint of step {self.good_step} is from before this began: continue with --from-step {self.good_step}"

    def _signs(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Yield a name for each sign, and a sentence with the number and what to change: causes before what follows from them."""
        for name in self.distances:
            distance = metrics.get(f"loss/{name}")
            if distance is None:
                continue
            first = self._first.setdefault(name, distance)
            if distance > WORSE * first > 0:
                yield name, f"{name} is {distance:.3g}, {distance / first:.0f} times what it was at first. Lower train.optimizer.lr"
        if POWER in metrics:
            spread = math.sqrt(max(0.0, metrics[POWER]))
            if not VANISHED <= spread <= EXPLODED:
                yield (
                    POWER,
                    (
                        f"the root mean square of the latents is {spread:.3g}, outside {VANISHED:g} to {EXPLODED:g}. Lower "
                        "train.optimizer.lr, or raise the weight of the loss that bounds them, such as kl"
                    ),
                )
        for name, value in metrics.items():
            if name.startswith(USAGE) and value < DEAD:
                level = name.removeprefix(USAGE)
                yield (
                    name,
                    (
                        f"only {value:.1%} of the codes of level {level} are in use ({name}). Lower train.optimizer.lr, train the codec "
                        "longer before it quantizes, or give clips that differ more"
                    ),
                )
        yield from self._of_critics(metrics)

    def _of_critics(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for name in self.learned:
            value = metrics.get(f"loss/{name}")
            if value is None:
                continue
            recent = self._recent[name] = [*self._recent.get(name, []), value][-PATIENCE:]
            is_constant = len(recent) == PATIENCE and max(recent) - min(recent) < CONSTANT * max(recent)
            if value > EXPLODED:
                yield name, _of_critic(name, f"has exploded: {name} is {value:.3g}", "set its clip")
            elif value < WON:
                teaches = f"tells every clip from its estimate: {name} is {value:.2g}, so the codec learns nothing from it"
                yield name, _of_critic(name, teaches, "raise the weight of a distance")
            elif is_constant:
                yield f"{name} constant", _of_critic(name, f"has collapsed: {name} is always {value:.6g}, whatever it hears")
        for name in self.judged:
            value = metrics.get(f"loss/{name}", 0.0)
            if name not in self.distances and abs(value) > EXPLODED:
                yield name, _of_critic(name, f"has exploded: {name} is {value:.3g}", "set its clip")


def _of_critic(loss: str, what: str, otherwise: str = "") -> str:
    """Return a sentence about the critic of a loss, and what to change."""
    change = "Lower train.phases.critics.optimizer.lr" + (f", or {otherwise}" if otherwise else "")
    return f"the critic '{loss.partition('.')[0]}' {what}. {change}"
