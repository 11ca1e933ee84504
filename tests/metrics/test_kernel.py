"""The kernel distance against its definition, its limits and its lack of bias."""

import numpy as np
import pytest

from soundomni.core.errors import DataError
from soundomni.metrics.kernel import kernel_distance


def test_equals_the_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), 0.5 + rng.standard_normal((4, 3))
    distances = sorted(float(np.linalg.norm(y[i] - y[j])) for i in range(4) for j in range(i))
    variance = ((distances[2] + distances[3]) / 2) ** 2

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * variance)))

    within_x = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(100 * (within_x + within_y - 2 * between))


def test_two_points_each_by_hand() -> None:
    # σ = 1: the pair of the reference has exp(-1/2), the far pair 1 as it is one and the same point, nothing between them
    reference, far = np.array([[0.0], [1.0]]), np.array([[1e6], [1e6]])
    assert kernel_distance(far, reference) == pytest.approx(100 * (1 + np.exp(-0.5)))


def test_scale_and_place_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((30, 4)), 1.0 + rng.standard_normal((20, 4))
    assert kernel_distance(1e-3 * x + 5.0, 1e-3 * y + 5.0) == pytest.approx(kernel_distance(x, y), rel=1e-9)


def test_is_zero_on_average_for_one_distribution_and_grows_with_the_difference() -> None:
    rng = np.random.default_rng(2)
    same = [kernel_distance(rng.standard_normal((12, 3)), rng.standard_normal((12, 3))) for _ in range(400)]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(400)
    x = rng.standard_normal((100, 3))
    distances = [kernel_distance(x + shift, rng.standard_normal((100, 3))) for shift in (0.5, 1.0, 2.0)]
    assert distances == sorted(distances) and distances[0] > 1


def test_sets_that_cannot_be_compared() -> None:
    good = np.random.default_rng(0).standard_normal((4, 3))
    with pytest.raises(DataError, match="a set of 1 clip"):
        kernel_distance(good[:1], good)
    with pytest.raises(DataError, match="most clips of the reference have the same embedding"):
        kernel_distance(good, np.ones((4, 3)))
    with pytest.raises(ValueError, match="with the same F"):
        kernel_distance(good, good[:, :1])
