"""The Fréchet distance against closed forms and scipy, full rank and not."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError
from soundomni.metrics.frechet import frechet_distance


def rows(seed: int, count: int, features: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, features)) @ rng.standard_normal((features, features)) + rng.standard_normal(features)


def test_equals_the_definition_with_scipys_root() -> None:
    a, b = rows(0, 200, 6), rows(1, 150, 6)
    first, second = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_one_dimension_is_the_difference_of_means_and_deviations() -> None:
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [8.0]])
    assert frechet_distance(a, b) == pytest.approx((1 - 6) ** 2 + (np.sqrt(2) - np.sqrt(3)) ** 2)


def test_fewer_rows_than_features() -> None:
    a = rows(0, 5, 40)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 3.0) == pytest.approx(40 * 9.0)
    assert frechet_distance(a, a.mean(0) + 2.0 * (a - a.mean(0))) == pytest.approx(np.trace(np.cov(a.T)))
    flat, other = np.zeros((4, 4)), np.eye(4)
    flat[:, 0], other = [1, -1, 1, -1], np.outer([1, -1, 1, -1], [0, 1, 0, 0])
    assert frechet_distance(flat, other) == pytest.approx(8 / 3)  # spreads at right angles share nothing: both traces of 4/3 remain


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12), st.integers(1, 8))
def test_symmetric_not_negative_and_blind_to_rotations(seed: int, n: int, m: int, features: int) -> None:
    a, b = rows(seed, n, features), rows(seed + 1, m, features)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((features, features)))[0]
    distance = frechet_distance(a, b)
    assert distance >= 0.0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-8, abs=1e-8)
    assert frechet_distance(a @ turn + 7.0, b @ turn + 7.0) == pytest.approx(distance, rel=1e-8, abs=1e-8)


def test_float32_rows_are_measured_in_float64() -> None:
    a = (1000.0 + rows(0, 50, 3)).astype(np.float32)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_sets_that_cannot_be_compared() -> None:
    good = rows(0, 4, 3)
    with pytest.raises(DataError, match="a set of 1 clip"):
        frechet_distance(good, good[:1])
    with pytest.raises(DataError, match="NaN"):
        frechet_distance(good, np.where(good == good[0, 0], np.nan, good))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        frechet_distance(good, good[:, :2])
