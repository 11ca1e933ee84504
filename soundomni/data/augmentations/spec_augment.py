"""Hiding stripes of what the model hears (Park et al. 2019, "SpecAugment").

Shape letters: T tokens, F feature dimensions.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Augmentation
from soundomni.data.augmentations.checks import check_probability


class SpecAugment(Augmentation):
    """Zeroes stripes of the features of clips that the model hears: some tokens, and some dimensions of all tokens.

    It masks the features that an encoder, such as log-mel, gives the model, not the clip itself; clips that the model
    makes stay as they are. The number of stripes is fixed. The width of each is drawn uniformly from 0 to the largest,
    then its place.

    Args:
        time_masks: number of stripes of tokens.
        longest: largest share of the tokens that one stripe covers.
        feature_masks: number of stripes of feature dimensions.
        widest: largest share of the dimensions that one stripe covers.
        probability: probability of changing a clip.

    Raise SpecError for a number of masks below 0, or for a share or probability that is not from 0 to 1.
    """

    def __init__(
        self, *, time_masks: int = 2, longest: float = 0.05, feature_masks: int = 2, widest: float = 0.1, probability: float = 1.0
    ) -> None:
        for name, count in (("time_masks", time_masks), ("feature_masks", feature_masks)):
            if not 0 <= count <= 100:
                raise SpecError(f"spec-augment: {name} is {count}; expected 0 to 100")
        for name, share in (("longest", longest), ("widest", widest)):
            if not 0.0 <= share <= 1.0:
                raise SpecError(f"spec-augment: {name} is {share:g}; expected a share from 0 to 1")
        check_probability("spec-augment", probability)
        self.time_masks, self.longest = time_masks, longest
        self.feature_masks, self.widest = feature_masks, widest
        self.probability = probability

    def mask(self, num_tokens: int, feature_dim: int, draws: np.random.Generator) -> np.ndarray | None:
        """Return the stripes, bool `[T, F]`, or None for a clip that stays as it is."""
        if draws.random() >= self.probability:
            return None
        times = _stripes(num_tokens, self.time_masks, self.longest, draws)
        features = _stripes(feature_dim, self.feature_masks, self.widest, draws)
        masked: np.ndarray = times[:, None] | features
        return masked


def _stripes(size: int, count: int, largest: float, draws: np.random.Generator) -> np.ndarray:
    """Return which of `size` places are covered by stripes, bool `[size]`."""
    covered = np.zeros(size, dtype=np.bool_)
    for _ in range(count):
        width = int(draws.integers(int(largest * size), endpoint=True))
        first = int(draws.integers(size - width, endpoint=True))
        covered[first : first + width] = True
    return covered
