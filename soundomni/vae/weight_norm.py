"""Weight normalization (Salimans and Kingma 2016) removed from a network for inference, and restored for training.

A normalized weight is w = g·v / |v|, with a norm for each index of the first dimension. Folded, only w is stored and
nothing is computed per call. Restored, v = w and g = |w|: different parameters that compute the same function.

Shape letters: N the first dimension of a weight, K one or more others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

MAGNITUDE = "parametrizations.weight.original0"
DIRECTION = "parametrizations.weight.original1"
"""torch's names of g and v in the state dict of a module."""


def split_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Map `[N, K...]` to g `[N, 1...]` and v `[N, K...]`, with g·v / |v| the weight.

    A row of zeros has no direction: it becomes a row of ones with the magnitude 0.
    """
    rest = tuple(range(1, weight.dim()))
    magnitude = weight.double().square().sum(rest, keepdim=True).sqrt()
    return magnitude.to(weight.dtype), torch.where(magnitude > 0, weight, torch.ones_like(weight))


@torch.no_grad()
def fold_weight_norm(network: nn.Module) -> tuple[str, ...]:
    """Replace g and v of every normalized submodule by the weight that they make, in place; outputs are bit-identical.

    Returns:
        the names of these submodules, for `restore_weight_norm`.
    """
    names = [name for name, module in network.named_modules() if is_parametrized(module, "weight")]
    for name in names:
        module = network.get_submodule(name)
        trained = bool(module.get_parameter(DIRECTION).requires_grad)
        remove_parametrizations(module, "weight", leave_parametrized=True)
        folded: Any = module.weight
        del module.weight  # without gradients it was left as a buffer
        module.weight = nn.Parameter(folded, requires_grad=trained)
    return tuple(names)


@torch.no_grad()
def restore_weight_norm(network: nn.Module, names: Iterable[str]) -> None:
    """Split the weights of the named submodules into g and v again, in place; outputs stay the same up to rounding.

    Make the optimizer afterwards, because the parameters are new.
    """
    for name in names:
        module = network.get_submodule(name)
        weight = module.get_parameter("weight")
        trained, values = weight.requires_grad, split_weight(weight.detach())
        weight_norm(module)
        for key, value in zip((MAGNITUDE, DIRECTION), values, strict=True):
            module.get_parameter(key).copy_(value).requires_grad_(trained)
