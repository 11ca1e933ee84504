"""Layers that the networks of critics consist of: weight-normalized convolutions (Salimans and Kingma 2016) and leaky
ReLU.

Shape letters: B clips, C channels of a layer, L positions of a layer in one or two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.2


def normalized(convolution: nn.Module) -> nn.Module:
    """Return the convolution with a weight-normalized weight."""
    made: nn.Module = weight_norm(convolution)
    return made


def run(layers: Iterable[nn.Module], values: Tensor, slope: float = SLOPE) -> list[Tensor]:
    """Run `[B, C, L...]` through convolutions, each followed by leaky ReLU, and return what each of them gives."""
    features = []
    for layer in layers:
        values = functional.leaky_relu(layer(values), slope)
        features.append(values)
    return features
