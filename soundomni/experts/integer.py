"""Whole numbers as learned embeddings, as stable-audio-tools has them.

Shape letters: B numbers, F feature dimensions.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.limits import MOST_VOCABULARY
from soundomni.core.representation import FeatureSpec
from soundomni.experts.number import read_number
from soundomni.experts.sizes import require_positive

LARGEST = 2**24
"""Up to here, float32 tells whole numbers apart."""


class IntegerEncoder(Encoder):
    """Maps a whole number to an embedding of its own, which is learned: one token.

    Numbers that are close to each other have nothing in common, unlike those of `number`: for tempos, keys or years of which there
    are enough examples each.

    Args:
        least, most: range of the number; others are refused.
        feature_dim: feature dimensions F.
        clamp: take the nearest number of the range for others instead of refusing them, as stable-audio-tools does.
    """

    def __init__(self, *, least: int = 0, most: int = 512, feature_dim: int = 768, clamp: bool = False) -> None:
        super().__init__()
        require_positive("integer", {"feature_dim": feature_dim})
        if not -LARGEST <= least <= most <= LARGEST:
            raise SpecError(f"integer: least is {least} and most is {most}; expected least up to most, within ±{LARGEST:,}")
        if most - least >= MOST_VOCABULARY:
            raise SpecError(f"integer: least is {least} and most is {most}; expected at most {MOST_VOCABULARY:,} numbers. Use number")
        self._spec = FeatureSpec(feature_dim=feature_dim, source="number")
        self.least, self.most, self.clamp = least, most, clamp
        self.embedding = nn.Embedding(most - least + 1, feature_dim)

    @property
    def spec(self) -> FeatureSpec:
        """Numbers, and F."""
        return self._spec

    def num_tokens(self, num_samples: int) -> int:
        """Return 1."""
        return 1

    def read(self, source: str) -> np.ndarray:
        """Return the number, float32 `[1, 1]`. Raise DataError for a text that is not a whole number, or one out of range."""
        number = read_number(source, least=self.least, most=self.most, clamp=self.clamp)
        if not number.is_integer():
            raise DataError(f"the number {number:g} is not whole; expected one such as {round(number)}, from {self.least} to {self.most}")
        return np.asarray([[number]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, 1]` into `[B, 1, F]`."""
        index = (waveform[:, 0, :1].round() - self.least).long()  # [B, 1]
        features: Tensor = self.embedding(index.clamp(0, self.most - self.least))
        return features
