"""Nearest rows against a search of every pair."""

import numpy as np
import pytest

from soundomni.metrics.nearest import nearest_rows


@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (7, 30), (600, 40)])
def test_the_nearest_row_is_that_of_a_search_of_every_pair(queries: int, rows: int) -> None:
    rng = np.random.default_rng(queries)
    asked, known = (rng.normal(-40, 20, (count, 9)).astype(np.float32) for count in (queries, rows))
    table = np.sqrt(((asked[:, None].astype(np.float64) - known[None]) ** 2).mean(-1))
    places, distances = nearest_rows(asked, known)
    assert (places == table.argmin(1)).all()
    np.testing.assert_allclose(distances, table.min(1), rtol=1e-12)


def test_each_row_looks_for_another_one() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 4))
    table = np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(-1)) + np.diag(np.full(300, np.inf))
    places, distances = nearest_rows(rows, rows, skip_own=True)
    assert (places == table.argmin(1)).all()
    np.testing.assert_allclose(distances, table.min(1), rtol=1e-12)


def test_the_distance_of_a_copy_is_exactly_0_even_far_from_the_origin() -> None:
    rows = np.random.default_rng(0).normal(1e6, 1.0, (50, 5))
    places, distances = nearest_rows(rows, rows)
    assert (places == np.arange(50)).all() and (distances == 0.0).all()


@pytest.mark.parametrize(
    ("queries", "rows", "skip_own"),
    [((3, 2), (3, 4), False), ((3,), (3, 3), False), ((3, 2), (0, 2), False), ((1, 2), (1, 2), True), ((2, 2), (3, 2), True)],
)
def test_sets_without_a_nearest_row_are_refused(queries: tuple[int, ...], rows: tuple[int, ...], skip_own: bool) -> None:
    with pytest.raises(ValueError, match="expected"):
        nearest_rows(np.zeros(queries), np.zeros(rows), skip_own=skip_own)
