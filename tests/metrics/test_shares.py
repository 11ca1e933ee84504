"""The interval of a share against scipy, and at its ends."""

import pytest
import scipy.stats

from soundomni.metrics.shares import wilson_interval


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 200), (200, 200), (190, 200), (3, 7)])
def test_equals_scipy(successes: int, count: int) -> None:
    expected = scipy.stats.binomtest(successes, count).proportion_ci(method="wilson")
    low, high = wilson_interval(successes, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= low <= successes / count <= high <= 1.0


def test_the_interval_of_none_and_of_all_holds_the_share_exactly() -> None:
    for count in range(1, 400):
        assert wilson_interval(0, count)[0] == 0.0 and wilson_interval(count, count)[1] == 1.0


def test_what_is_no_share() -> None:
    for successes, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="not a share"):
            wilson_interval(successes, count)
