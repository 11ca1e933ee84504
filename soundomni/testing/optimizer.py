"""Conformance of optimizers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from soundomni.core.errors import SoundOmniError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.testing.suite import ConformanceSuite, noise, number, seeded

SHAPES = {
    "embedding.weight": (7, 4),
    "backbone.blocks.0.experts.understanding.mlp.gate_up.weight": (6, 4),
    "backbone.blocks.0.experts.understanding.mlp.down.weight": (4, 6),
    "backbone.blocks.0.experts.understanding.mlp_norm.weight": (4,),
    "encoder.convolutions.0.weight": (3, 2, 3),
    "encoder.convolutions.0.bias": (3,),
}
"""Parameters as in a model, which an optimizer may distinguish by name and shape."""
SETTINGS = OptimizerSpec(lr=0.02, eps=1e-8, weight_decay=0.1)


class OptimizerSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Optimizer`.

    Attributes:
        steps: number of steps within which a sum of squares must halve.
    """

    kind: ClassVar[str] = "optimizer"
    steps: ClassVar[int] = 60

    @abstractmethod
    def make(self) -> Optimizer:
        """Return a new optimizer plugin."""

    def built(self, seed: int = 0) -> Optimizer:
        """Return `make()`."""
        optimizer: Optimizer = seeded(self.make, seed)
        return optimizer

    def test_groups(self) -> None:
        """Each parameter is in exactly one group, and every group starts at the learning rate of the settings."""
        parameters = _parameters()
        optimizer = self.built().build(parameters, SETTINGS)
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        for name, parameter in parameters.items():
            times = held.count(id(parameter))
            self.require(times == 1, "groups", f"'{name}' is in {times} groups; expected 1")
        for group in optimizer.param_groups:
            self.require(group["lr"] == SETTINGS.lr, "groups", f"a group starts at lr {group['lr']}; expected {SETTINGS.lr}")

    def test_empty_state(self) -> None:
        """A new optimizer has no state yet, because a checkpoint is read into it."""
        kept = len(self.built().build(_parameters(), SETTINGS).state)
        self.require(kept == 0, "empty_state", f"a new optimizer has a state for {kept} parameters; expected none")

    def test_learns(self) -> None:
        """Steps along the gradient of a sum of squares at least halve it."""
        parameters = _parameters()
        optimizer = self.built().build(parameters, SETTINGS)
        before = number(_loss(parameters))
        for _ in range(self.steps):
            _step(optimizer, parameters)
        after = number(_loss(parameters))
        self.require(after < 0.5 * before, "learns", f"{self.steps} steps took a loss of {before:.3g} to {after:.3g}; expected half")

    def test_rate(self) -> None:
        """The learning rate is that of the groups: at 0 nothing moves."""
        parameters = _parameters()
        optimizer = self.built().build(parameters, SETTINGS)
        _step(optimizer, parameters)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = _copies(parameters)
        _step(optimizer, parameters)
        for name, value in before.items():
            self.require(torch.equal(parameters[name], value), "rate", f"'{name}' moved at lr 0")

    def test_no_gradient(self) -> None:
        """A parameter without a gradient stays, and the others move."""
        parameters = _parameters()
        optimizer = self.built().build(parameters, SETTINGS)
        for missing in SHAPES:
            before = _copies(parameters)
            _step(optimizer, parameters, missing=missing)
            for name, value in before.items():
                moved = not torch.equal(parameters[name], value)
                self.require(moved == (name != missing), "no_gradient", f"'{name}' {_moved(moved)} in a step without '{missing}'")

    def test_state(self) -> None:
        """The state consists of tensors of the parameter's shape and 0-dim ones named "step"; with it, another
        optimizer goes on alike.

        One that refuses sharded parameters may keep tensors of any shape.
        """
        free = not self.built().shards
        first, second = _parameters(), _parameters()
        before, after = (self.built().build(parameters, SETTINGS) for parameters in (first, second))
        for _ in range(3):
            _step(before, first)
        for name, parameter in first.items():
            with torch.no_grad():
                second[name].copy_(parameter)
            for key, value in before.state.get(parameter, {}).items():
                fits = isinstance(value, Tensor) and (free or value.shape == parameter.shape or (key == "step" and value.ndim == 0))
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                self.require(fits, "state", f"'{key}' of a parameter {list(parameter.shape)} is {found}")
                after.state[second[name]][key] = value.clone()
        for _ in range(3):
            _step(before, first)
            _step(after, second)
        for name, parameter in first.items():
            self.require_close(second[name], parameter, 0.0, "state", f"'{name}' moved differently with the state of another optimizer")

    def test_sharded(self) -> None:
        """With `shards`, sharded parameters move like whole ones; without it, `build` refuses them in one line."""
        whole, optimizer = _parameters(), self.built()
        with _mesh() as mesh:
            sharded = _sharded(mesh)
            if not optimizer.shards:
                self._require_refusal(optimizer, sharded)
                return
            before, after = optimizer.build(whole, SETTINGS), self.built().build(sharded, SETTINGS)
            for _ in range(3):
                _step(before, whole)
                _step(after, sharded)
            for name, parameter in whole.items():
                found = cast(DTensor, sharded[name]).full_tensor()
                self.require_close(found, parameter, 1e-5, "sharded", f"sharded, '{name}' moved differently than whole")

    def test_skips(self) -> None:
        """If the optimizer declares `_step_supports_amp_scaling`, a step whose `found_inf` is 1.0 changes neither weights
        nor state, even if gradients are NaN or infinite, and one whose `found_inf` is 0.0 is a usual step."""
        self._require_skips(_parameters(), _parameters())
        if self.built().shards:
            with _mesh() as mesh:
                self._require_skips(_sharded(mesh), _sharded(mesh))

    def _require_skips(self, first: dict[str, nn.Parameter], second: dict[str, nn.Parameter]) -> None:
        """Require that steps over `first`, some of which are skipped, are steps over `second`, of which none is."""
        skipping, usual = (self.built().build(parameters, SETTINGS) for parameters in (first, second))
        if not getattr(skipping, "_step_supports_amp_scaling", False):
            return
        for gradient in (math.nan, math.inf, math.nan):  # the first step has no state yet
            weights, state = _copies(first), _state(skipping, first)
            for parameter in first.values():
                parameter.grad = torch.full_like(parameter, gradient)
            _step_with(skipping, found_inf=1.0)
            given = f"in a step with found_inf 1.0 and gradients of {gradient}"
            for name, weight in weights.items():
                self.require(torch.equal(_whole(first[name]), weight), "skips", f"'{name}' moved {given}")
            found = _state(skipping, first)
            for name, value in state.items():
                self.require(name in found and torch.equal(found[name], value), "skips", f"{name} changed {given}")
            _set_gradients(skipping, first)
            _step_with(skipping, found_inf=0.0)
            _step(usual, second)
            for name, parameter in second.items():
                same = torch.equal(_whole(first[name]), _whole(parameter))
                self.require(same, "skips", f"'{name}' moved differently after a skipped step and with found_inf 0.0")

    def _require_refusal(self, optimizer: Optimizer, sharded: dict[str, nn.Parameter]) -> None:
        try:
            optimizer.build(sharded, SETTINGS)
        except SoundOmniError as error:
            self.require("\n" not in str(error), "sharded", "sharded parameters are refused in several lines; expected one")
        else:
            self.require(False, "sharded", "shards is False, but build took sharded parameters; expected it to raise SpecError")


@contextmanager
def _mesh() -> Iterator[DeviceMesh]:
    """Yield a mesh of only this process, in its own group unless there is one."""
    opened = not dist.is_initialized()
    if opened:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield DeviceMesh("cpu", [dist.get_rank()])
    finally:
        if opened:
            dist.destroy_process_group()


def _parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(noise(index, *shape)) for index, (name, shape) in enumerate(SHAPES.items())}


def _sharded(mesh: DeviceMesh) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for name, p in _parameters().items()}


def _whole(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()


def _copies(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: _whole(parameter).clone() for name, parameter in parameters.items()}


def _state(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of the tensors of the state, by names for messages."""
    kept = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    return {
        f"'{key}' of '{name}'": _whole(value).clone()
        for name, state in kept.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _loss(parameters: dict[str, nn.Parameter]) -> Tensor:
    return torch.stack([parameter.square().sum() for parameter in parameters.values()]).sum()


def _step(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], *, missing: str | None = None) -> None:
    _set_gradients(optimizer, parameters, missing=missing)
    optimizer.step()


def _set_gradients(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], *, missing: str | None = None) -> None:
    optimizer.zero_grad(set_to_none=True)
    _loss({name: parameter for name, parameter in parameters.items() if name != missing}).backward()  # type: ignore[no-untyped-call]


def _step_with(optimizer: torch.optim.Optimizer, *, found_inf: float) -> None:
    optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def _moved(moved: bool) -> str:
    return "moved" if moved else "stayed"
