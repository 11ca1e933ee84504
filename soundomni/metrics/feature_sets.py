"""Shared code for distances between sets of embeddings: the check of their inputs.

Shape letters: N, M rows, F features.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.errors import DataError, amount

LEAST_ROWS = 2


def check_feature_sets(name: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets as float64 `[N, F]` and `[M, F]`.

    Raises:
        DataError: a set has fewer than two rows, or numbers that are not finite.
        ValueError: the arrays are not matrices with the same F.
    """
    if np.ndim(a) != 2 or np.ndim(b) != 2 or np.shape(a)[1] != np.shape(b)[1] or np.shape(a)[1] == 0:
        raise ValueError(f"{name}: the sets are {np.shape(a)} and {np.shape(b)}; expected [N, F] and [M, F] with the same F")
    sets = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    for rows in sets:
        if len(rows) < LEAST_ROWS:
            raise DataError(f"{name}: a set of {amount(len(rows), 'clip')} has no spread to compare; expected at least {LEAST_ROWS} clips")
        if not np.isfinite(rows).all():
            raise DataError(f"{name}: an embedding holds NaN or infinity; expected finite numbers")
    return sets
