"""Numbers such as the length of a clip as features (Stable Audio, Evans et al. 2024, section 3.1).

Shape letters: B numbers, F feature dimensions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec
from soundomni.experts.sizes import require_positive


class NumberEncoder(Encoder):
    """Maps a number u between `least` and `most`, scaled to [0, 1], to u and sin(2π w u) and cos(2π w u): one token.

    The frequencies w are learned; they begin as normal draws with standard deviation 1. The connector is the linear layer that
    follows.

    Args:
        least, most: range of the number; others are refused.
        num_frequencies: number of frequencies; F is twice as many, and one more.
    """

    def __init__(self, *, least: float = 0.0, most: float = 512.0, num_frequencies: int = 128) -> None:
        super().__init__()
        require_positive("number", {"num_frequencies": num_frequencies})
        if not (math.isfinite(least) and math.isfinite(most) and least < most):
            raise SpecError(f"number: least is {least:g} and most is {most:g}; expected finite numbers, least below most")
        self._spec = FeatureSpec(feature_dim=2 * num_frequencies + 1, source="number")
        self.least, self.most = least, most
        self.frequencies = nn.Parameter(torch.empty(num_frequencies))
        nn.init.normal_(self.frequencies)

    @property
    def spec(self) -> FeatureSpec:
        """Numbers, and F."""
        return self._spec

    def num_tokens(self, num_samples: int) -> int:
        """Return 1."""
        return 1

    def read(self, source: str) -> np.ndarray:
        """Return the number, float32 `[1, 1]`. Raise DataError for a text that is not a number, or one out of range."""
        try:
            number = float(source)
        except ValueError:
            raise DataError(f"'{source}' is not a number; expected one from {self.least:g} to {self.most:g}") from None
        if not self.least <= number <= self.most:
            raise DataError(f"the number {number:g} is out of range; expected one from {self.least:g} to {self.most:g}")
        return np.asarray([[number]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, 1]` into `[B, 1, F]`."""
        precise = torch.promote_types(self.frequencies.dtype, torch.float32)  # in half precision, large numbers would collide
        share = ((waveform[:, :, :1] - self.least) / (self.most - self.least)).to(precise)  # [B, 1, 1]
        angles = 2 * math.pi * share * self.frequencies.to(precise)
        return torch.cat([share, angles.sin(), angles.cos()], dim=-1).to(self.frequencies.dtype)
