"""Exponential moving average of trained parameters (Polyak and Juditsky 1992), in fp32, sharded like them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from soundomni.train.parallel import reshard


class EMA:
    """Averages of the trained parameters, of the part `kept` of a model that has one; frozen ones do not need any.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the initial weights are soon forgotten.

    Args:
        model: its current parameters are the first averages.
        decay: the largest decay, in (0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.averages = {name: p.detach().to(torch.float32, copy=True) for name, p in _trained(model).items()}
        device = next((_local(average).device for average in self.averages.values()), torch.device("cpu"))
        self._updates = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def updates(self) -> int:
        """Number of updates so far. It is counted on the device, so reading it waits."""
        return int(self._updates)

    @updates.setter
    def updates(self, number: int) -> None:
        self._updates.fill_(number)

    @torch.no_grad()
    def update(self, model: nn.Module, *, skipped: Tensor | None = None) -> None:
        """Move the averages towards the parameters by one step, unless `skipped`, 0-dim on their device, is 1.0."""
        taken = torch.ones_like(self._updates) if skipped is None else 1.0 - skipped.double()
        decay = ((1.0 + self._updates) / (10.0 + self._updates)).clamp(max=self.decay)
        weight = ((1.0 - decay) * taken).float()  # at 0, the averages stay
        self._updates += taken
        parameters = _trained(model)
        averages = [_local(average) for average in self.averages.values()]
        current = [_local(parameters[name].detach()).float() for name in self.averages]
        torch._foreach_lerp_(averages, current, [weight] * len(averages))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Let `model` compute with the averages in this context.

        It takes memory for one more tensor, not one more model.
        """
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        reshard(model)  # gathered parameters that a forward pass left behind would otherwise outlive the exchange
        parameters = _trained(model)
        for name, average in self.averages.items():
            mine, theirs = _local(average), _local(parameters[name].detach())
            held = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(held)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    kept = {id(p) for p in getattr(model, "kept", model).parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in kept}


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local
