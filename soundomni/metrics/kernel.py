"""Kernel distance between two sets of embeddings: the maximum mean discrepancy, without assumptions about their
distribution.

Kernel audio distance: Chung et al., "KAD: No More FAD!" (arXiv 2502.15602, 2025), section 3: a Gaussian kernel whose
bandwidth is the median distance within the reference set. The estimate is the unbiased one of Gretton et al., "A Kernel
Two-Sample Test" (JMLR 2012), eq. 3: unlike the Fréchet distance it needs no more clips than features. The Gaussian
kernel is chosen before the cubic one of KID because its value does not depend on the scale of the embeddings, which
differs between networks.

Shape letters: N, M rows, F features.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.errors import DataError
from soundomni.metrics.feature_sets import check_feature_sets

SCALE = 100.0
"""Factor of the discrepancy, as in the paper's results."""


def kernel_distance(generated: np.ndarray, reference: np.ndarray) -> float:
    """Return 100 · MMD² with k(x, y) = exp(−|x − y|² / 2σ²), σ the median distance between two clips of the reference.

    Args:
        generated: `[N, F]`.
        reference: `[M, F]`.

    Returns:
        about 0 for two draws from one distribution, for which it may fall below 0; at most 200.

    Raises:
        DataError: a set has fewer than two rows or numbers that are not finite, or more than half of the reference is
            the same clip.
        ValueError: the arrays are not matrices with the same F.
    """
    x, y = check_feature_sets("kernel distance", generated, reference)
    within = _squared_distances(y, y)
    variance = float(np.median(np.sqrt(within[np.triu_indices(len(y), 1)]))) ** 2
    if variance == 0.0:
        raise DataError("kernel distance: most clips of the reference have the same embedding; expected clips that differ")

    def similarity(squared: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-squared / (2.0 * variance)))

    discrepancy = (
        _mean_of_pairs(similarity(_squared_distances(x, x)))
        + _mean_of_pairs(similarity(within))
        - 2.0 * float(similarity(_squared_distances(x, y)).mean())
    )
    return SCALE * discrepancy


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances `[N, M]`; row by row, because the expanded square would lose small ones to
    rounding."""
    return np.stack([((row - y) ** 2).sum(1) for row in x])


def _mean_of_pairs(similarity: np.ndarray) -> float:
    """Return the mean over pairs of two different rows."""
    count = len(similarity)
    return float((similarity.sum() - np.trace(similarity)) / (count * (count - 1)))
