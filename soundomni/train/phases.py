"""Phases of a training step: which parameters are trained one after the other, each with its own optimizer.

A model without phases is trained in one, whose settings are those of `train`. A codec with critics that learn has two: the critics
learn from what the codec makes, then the codec learns from what they say (Goodfellow et al. 2014, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.spec.schema import OptimizerSpec, ScheduleSpec, TrainSpec
from soundomni.train.learning_rate import learning_rate
from soundomni.train.optimizers.build import build_optimizer


@dataclass(frozen=True)
class Phase:
    """A phase of every step.

    Args:
        name: its name; empty for the only phase of a model without phases.
        module: what it trains.
        optimizer: settings of its optimizer.
        schedule: its learning rate over steps.
        starts: number of steps before it begins.
    """

    name: str
    module: nn.Module
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    starts: int = 0

    def rate(self, step: int, *, total_steps: int) -> float:
        """Return the learning rate of the step after `step` finished ones."""
        return learning_rate(step, schedule=self.schedule, peak=self.optimizer.lr, total_steps=total_steps)


def phases_of(model: nn.Module, train: TrainSpec) -> tuple[Phase, ...]:
    """Return the phases of a step, in order. Raise SpecError if `train.phases` names one that the model does not have."""
    modules: Mapping[str, nn.Module] = getattr(model, "phases", {})
    check_phases(train, modules)
    if not modules:
        return (Phase("", model, train.optimizer, train.schedule),)
    found = []
    for name, module in modules.items():
        own = train.set_phases.get(name)
        optimizer, schedule, starts = train.optimizer, train.schedule, 0
        if own is not None:
            optimizer, schedule, starts = own.optimizer or optimizer, own.schedule or schedule, own.starts
        found.append(Phase(name, module, optimizer, schedule, starts))
    if found[-1].starts:
        raise SpecError(f"train.phases.{found[-1].name}.starts is {found[-1].starts}; expected 0, so that there is something to train")
    return tuple(found)


def check_phases(train: TrainSpec, names: Collection[str]) -> None:
    """Raise SpecError if `train.phases` names a phase that is not one of `names`."""
    for name in train.set_phases:
        if name not in names:
            known = f"expected one of {', '.join(names)}.{did_you_mean(name, names)}" if names else "this spec trains in one phase"
            raise SpecError(f"train.phases names '{name}'; {known}. Remove train.phases.{name}")


def loss_weights(train: TrainSpec, step: int) -> dict[str, float]:
    """Return the weights of the losses in the step after `step` finished ones: 0 for those that have not started."""
    waiting = {name: 0.0 for name, starts in train.loss_starts.items() if step < starts}
    return {**train.loss_weights, **waiting}


def build_optimizers(model: nn.Module, phases: Collection[Phase], *, trust_class_paths: bool = False) -> torch.optim.Optimizer:
    """Return the optimizers of all phases as one, see Phased; the optimizer itself if there is one phase.

    Raise as `build_optimizer`.
    """
    built = {
        phase.name: build_optimizer(model, phase.optimizer, part=phase.module, trust_class_paths=trust_class_paths) for phase in phases
    }
    return next(iter(built.values())) if len(built) == 1 else Phased(built)


def optimizer_of(optimizer: torch.optim.Optimizer, phase: Phase) -> torch.optim.Optimizer:
    """Return the optimizer of a phase."""
    return optimizer.optimizers[phase.name] if isinstance(optimizer, Phased) else optimizer


class Phased(torch.optim.Optimizer):
    """The optimizers of several phases as one for checkpoints, which find the state of each parameter in it.

    Args:
        optimizers: name of a phase → its optimizer; no two have a parameter in common.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        self.param_groups = [group for one in self.optimizers.values() for group in one.param_groups]
        owners = {p: one for one in self.optimizers.values() for group in one.param_groups for p in group["params"]}
        self.state = _States(owners)  # type: ignore[assignment]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Raise TypeError: phases step one after the other."""
        raise TypeError("each phase has its own optimizer; see optimizer_of")


class _States(MutableMapping[nn.Parameter, Any]):
    """The state of each parameter, wherever it is kept."""

    def __init__(self, owners: Mapping[nn.Parameter, torch.optim.Optimizer]) -> None:
        self._owners = owners

    def __getitem__(self, parameter: nn.Parameter) -> Any:
        return self._owners[parameter].state[parameter]

    def __setitem__(self, parameter: nn.Parameter, value: Any) -> None:
        self._owners[parameter].state[parameter] = value

    def __delitem__(self, parameter: nn.Parameter) -> None:
        del self._owners[parameter].state[parameter]

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)
