"""Nearest neighbors of rows in another set of rows.

Shape letters: N queries, M rows to search, F features.
"""

from __future__ import annotations

import numpy as np

_QUERIES = 256  # rows of the table of distances that are in memory at once


def nearest_rows(queries: np.ndarray, rows: np.ndarray, *, skip_own: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return for each query the place of its nearest row, int64 `[N]`, and the distance, float64 `[N]`.

    Args:
        queries: float `[N, F]`.
        rows: float `[M, F]`.
        skip_own: the queries are the rows, and each looks for another one.

    Returns:
        the distance is the root of the mean squared difference of the features: exactly 0 for an equal row. Of several
        rows at the same distance it is usually the first one.

    Raises:
        ValueError: the arrays are not matrices with the same F, or there is no row to find.

    >>> places, distances = nearest_rows(np.array([[0.0, 1.0]]), np.array([[3.0, 5.0], [0.0, 2.0]]))
    >>> int(places[0]), round(float(distances[0]), 3)
    (1, 0.707)
    """
    if np.ndim(queries) != 2 or np.ndim(rows) != 2 or queries.shape[1] != rows.shape[1] or queries.shape[1] == 0:
        raise ValueError(f"the sets are {np.shape(queries)} and {np.shape(rows)}; expected [N, F] and [M, F] with the same F")
    if len(rows) < 1 + skip_own or (skip_own and len(queries) != len(rows)):
        raise ValueError(f"{len(queries)} queries in {len(rows)} rows; expected another row for each query")
    places = np.empty(len(queries), np.int64)
    squares = np.einsum("mf,mf->m", rows, rows, dtype=np.float64)
    wide = rows.astype(np.float64)
    for start in range(0, len(queries), _QUERIES):
        block = queries[start : start + _QUERIES].astype(np.float64)
        order = squares - 2.0 * block @ wide.T  # the squared distance, less what is the same for all rows
        if skip_own:
            order[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        places[start : start + len(block)] = order.argmin(axis=1)
    # the difference itself is not rounded, so that the distance of a copy is exactly 0
    found = [np.square(query.astype(np.float64) - wide[place]).mean() for query, place in zip(queries, places, strict=True)]
    return places, np.sqrt(np.array(found, dtype=np.float64))
