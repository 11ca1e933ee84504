"""Numbers such as the length of a clip as features (Stable Audio, Evans et al. 2024, section 3.1).

Shape letters: B numbers, F feature dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec
from soundomni.experts.sizes import require_positive

LOWEST, HIGHEST = 0.5, 10_000.0
"""The fixed frequencies of Stable Audio 3 lie between these, evenly on a logarithmic scale."""


class NumberEncoder(Encoder):
    """Maps a number u between `least` and `most`, scaled to [0, 1], to u and sin(2π w u) and cos(2π w u): one token.

    The frequencies w are learned; they begin as normal draws with standard deviation 1. The connector is the linear layer that
    follows.

    With `features: fixed`, they are not learned but lie between 0.5 and 10000 on a logarithmic scale, and a number becomes cos(2π w u)
    and sin(2π w u), without u. Stable Audio 3 has these, and calls them "expo".

    Args:
        least, most: range of the number; others are refused.
        num_frequencies: number of frequencies; F is twice as many, and one more if they are learned.
        features: "learned" or "fixed".
        clamp: take the nearest number of the range for others instead of refusing them, as stable-audio-tools does.
    """

    def __init__(
        self,
        *,
        least: float = 0.0,
        most: float = 512.0,
        num_frequencies: int = 128,
        features: Literal["learned", "fixed"] = "learned",
        clamp: bool = False,
    ) -> None:
        super().__init__()
        require_positive("number", {"num_frequencies": num_frequencies})
        if not (math.isfinite(least) and math.isfinite(most) and least < most):
            raise SpecError(f"number: least is {least:g} and most is {most:g}; expected finite numbers, least below most")
        is_learned = features == "learned"
        self._spec = FeatureSpec(feature_dim=2 * num_frequencies + is_learned, source="number")
        self.least, self.most, self.num_frequencies, self.clamp = least, most, num_frequencies, clamp
        self.frequencies = nn.Parameter(torch.empty(num_frequencies)) if is_learned else None
        if self.frequencies is not None:
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
        number = read_number(source, least=self.least, most=self.most, clamp=self.clamp)
        return np.asarray([[number]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, 1]` into `[B, 1, F]`."""
        dtype = torch.float32 if self.frequencies is None else self.frequencies.dtype
        precise = torch.promote_types(dtype, torch.float32)  # in half precision, large numbers would collide
        share = ((waveform[:, :, :1] - self.least) / (self.most - self.least)).to(precise)  # [B, 1, 1]
        if self.frequencies is None:
            # the order of the products matters: angles reach 60,000, so float32 rounds them by up to 0.002
            angles = share.float() * fixed_frequencies(self.num_frequencies, share.device) * 2 * math.pi
            return torch.cat([angles.cos(), angles.sin()], dim=-1)
        angles = 2 * math.pi * share * self.frequencies.to(precise)
        return torch.cat([share, angles.sin(), angles.cos()], dim=-1).to(dtype)


def fixed_frequencies(count: int, device: torch.device) -> Tensor:
    """Return `[count]` float32 frequencies between LOWEST and HIGHEST, evenly on a logarithmic scale."""
    low, high = math.log(LOWEST), math.log(HIGHEST)
    return (torch.linspace(0, 1, count, device=device) * (high - low) + low).exp()


def read_number(source: str, *, least: float, most: float, clamp: bool) -> float:
    """Return the number that a text spells.

    Raise DataError if it is not one, or is out of range; with `clamp`, the nearest number of the range is returned instead.
    """
    expected = f"expected one from {least:g} to {most:g}"
    try:
        number = float(source)
    except ValueError:
        raise DataError(f"'{source}' is not a number; {expected}") from None
    if clamp and math.isfinite(number):
        return float(min(max(number, least), most))
    if not least <= number <= most:
        raise DataError(f"the number {number:g} is out of range; {expected}")
    return number
