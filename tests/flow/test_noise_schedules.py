"""Noise schedules: where published samplers take their steps."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.flow import NoiseSchedule, sampling_timesteps
from soundomni.flow.noise_schedules import log_snr

SCHEDULES = [
    NoiseSchedule(spacing="even", shift=2.5),
    NoiseSchedule(spacing="cosine"),
    NoiseSchedule(spacing="log-snr"),
    NoiseSchedule(spacing="log-snr", log_snr=(-6.2, 2.0)),
    NoiseSchedule(spacing="exponential"),
    NoiseSchedule(spacing="exponential", sigma_min=0.01, sigma_max=100.0, rho=2.0),
]


@settings(max_examples=200, deadline=None)
@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 150), begin=st.one_of(st.just(1.0), st.floats(1e-4, 0.9999)))
def test_timesteps_fall_from_the_beginning_to_zero(schedule, steps, begin):
    times = schedule.timesteps(steps, begin)
    assert len(times) == steps + 1 and times[-1] == 0.0
    assert times[0] == (schedule.starts_at if begin == 1.0 else begin)
    assert all(before > after for before, after in pairwise(times))


def test_only_finite_noise_starts_below_one():
    starts = [schedule.starts_at for schedule in SCHEDULES]
    assert starts == [1.0, 1.0, 1.0, 1.0, 500 / 501, 100 / 101]


def test_even_steps_are_those_of_the_other_samplers():
    assert SCHEDULES[0].timesteps(7, 0.8) == sampling_timesteps(7, 2.5, 0.8)


def test_cosine_steps_are_even_in_the_angle():
    for begin in (1.0, 0.6):
        times = SCHEDULES[1].timesteps(8, begin)
        angles = [math.atan2(time, 1 - time) for time in times]
        assert angles == pytest.approx([angles[0] * (1 - step / 8) for step in range(9)], abs=1e-12)


def test_other_steps_are_even_in_the_noise_ratio():
    inner = [log_snr(time) for time in SCHEDULES[2].timesteps(8)[1:-1]]
    assert inner == pytest.approx([-6 + step for step in range(1, 8)])
    all_but_the_last = [log_snr(time) for time in SCHEDULES[4].timesteps(5)[:-1]]
    first, last = -math.log(500), -math.log(0.3)
    assert all_but_the_last == pytest.approx([first + (last - first) * step / 4 for step in range(5)])


def test_a_variation_below_the_range_takes_even_steps():
    for schedule in (SCHEDULES[2], SCHEDULES[4]):
        assert schedule.timesteps(4, 0.08) == pytest.approx((0.08, 0.06, 0.04, 0.02, 0.0))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"spacing": "cosin"}, "schedule.spacing is 'cosin'; expected even, cosine, log-snr or exponential. Did you mean 'cosine'?"),
        ({"spacing": "even", "rho": 2.0}, "schedule.rho is 2.0, but the spacing 'even' does not use it. Remove it, or set"),
        ({"spacing": "log-snr", "log_snr": (2.0, -6.0)}, r"schedule.log_snr is \[2.0, -6.0\]; expected two finite numbers"),
        ({"spacing": "exponential", "sigma_min": 0.0}, "schedule.sigma_min is 0.0; expected a finite number above 0"),
        ({"spacing": "exponential", "sigma_max": 0.1}, "schedule.sigma_max is 0.1; expected a finite number above sigma_min, 0.3"),
        ({"spacing": "exponential", "rho": math.nan}, "schedule.rho is nan; expected a finite number above 0"),
        ({"spacing": "even", "shift": -1.0}, "schedule.shift is -1.0; expected a number above 0"),
    ],
)
def test_refuses_settings_that_make_no_sense(settings, error):
    with pytest.raises(SpecError, match=error):
        NoiseSchedule(**settings)
