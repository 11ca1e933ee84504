"""The Gaussian bottleneck of a variational autoencoder (Kingma and Welling 2014), as Stable Audio scales it.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST_STD = 1e-4


@dataclass(frozen=True)
class DiagonalGaussian:
    """Distribution of each latent number, as an encoder predicts it.

    Args:
        mean, std: `[B, D, T]`.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> DiagonalGaussian:
        """Return the distribution for `[B, 2·D, T]`: the mean, then s with std = softplus(s) + 1e-4.

        It is computed in at least float32, because bfloat16 would round the 1e-4 away.
        """
        mean, scale = parameters.to(torch.promote_types(parameters.dtype, torch.float32)).chunk(2, dim=1)
        return cls(mean, functional.softplus(scale) + LEAST_STD)

    def sample(self, noise: Tensor) -> Tensor:
        """Map `noise` `[B, D, T]` of unit variance to mean + std·noise."""
        return self.mean + self.std * noise

    def divergence(self) -> Tensor:
        """Return `[B, T]`: mean² + std² − log std² − 1, summed over D; twice the KL divergence from N(0, 1), as in the
        original."""
        variance = self.std.square()
        return (self.mean.square() + variance - variance.log() - 1.0).sum(1)
