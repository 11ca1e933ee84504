"""Learning-rate schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from soundomni.core.spec.schema import ScheduleSpec
from soundomni.train.learning_rate import learning_rate


def rates(kind: str, *, warmup: int, total: int, steps: int) -> list[float]:
    schedule = ScheduleSpec(kind=kind, warmup_steps=warmup, min_lr=0.1)  # type: ignore[arg-type]
    return [learning_rate(step, schedule=schedule, peak=2.0, total_steps=total) for step in range(steps)]


@pytest.mark.parametrize("kind", ["constant", "cosine", "inverse"])
def test_warm_up_is_linear_and_reaches_the_peak(kind: str) -> None:
    assert rates(kind, warmup=4, total=12, steps=5)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_constant() -> None:
    assert rates("constant", warmup=0, total=3, steps=9) == [2.0] * 9


def test_cosine_ends_at_the_least_rate_and_stays_there() -> None:
    found = rates("cosine", warmup=2, total=10, steps=13)
    expected = [0.1 + 1.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert found[2:11] == pytest.approx(expected)
    assert found[10:] == pytest.approx([0.1] * 3)


def test_inverse_square_root() -> None:
    found = rates("inverse", warmup=4, total=10, steps=16)
    assert found[3] == pytest.approx(2.0)
    assert found[15] == pytest.approx(1.0)  # four times the warm-up: half the rate


@given(kind=st.sampled_from(["constant", "cosine", "inverse"]), warmup=st.integers(0, 20), step=st.integers(0, 200))
@hypothesis_settings(max_examples=60, deadline=None)
def test_no_rate_is_above_the_peak_or_below_zero(kind: str, warmup: int, step: int) -> None:
    schedule = ScheduleSpec(kind=kind, warmup_steps=warmup, min_lr=1e-3)  # type: ignore[arg-type]
    assert 0.0 < learning_rate(step, schedule=schedule, peak=1.0, total_steps=100) <= 1.0
