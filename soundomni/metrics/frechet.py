"""Fréchet distance between two sets of embeddings, each treated as a Gaussian.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (NeurIPS 2017), eq. 6; on audio embeddings Kilgour et al.,
"Fréchet Audio Distance" (Interspeech 2019). Its value depends on the network that gave the embeddings, and it is biased
upwards for small sets: only compare numbers from the same network and the same number of clips.

Shape letters: N, M rows, F features, R min(rows, F).
"""

from __future__ import annotations

import numpy as np

from soundomni.metrics.feature_sets import check_feature_sets


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), with unbiased covariances; symmetric and at least 0.

    With Σ = RᵀR from a QR decomposition of the centered rows, the trace of the root is the sum of the singular values
    of R_a R_bᵀ. No covariance is formed and no root of a rounding error is taken, so sets with fewer rows than features
    are as exact as others.

    Args:
        a: `[N, F]`.
        b: `[M, F]`.

    Raises:
        DataError: a set has fewer than two rows, or numbers that are not finite.
        ValueError: the arrays are not matrices with the same F.
    """
    a, b = check_feature_sets("Fréchet distance", a, b)
    factors = [_factor(rows) for rows in (a, b)]
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    spreads = sum(float((factor**2).sum()) for factor in factors)
    shared = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    return max(0.0, shift + spreads - 2.0 * shared)


def _factor(rows: np.ndarray) -> np.ndarray:
    """Return a triangular `[R, F]` whose Gram matrix is the covariance of the rows."""
    return np.asarray(np.linalg.qr((rows - rows.mean(0)) / np.sqrt(len(rows) - 1), mode="r"))
