"""Samplers on flows whose solution is known in closed form."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import PartialTarget
from soundomni.core.representation import Representation
from soundomni.flow import (
    DPMppSampler,
    EulerSampler,
    HeunSampler,
    MidpointSampler,
    RK4Sampler,
    sampling_timesteps,
    shift_timestep,
)

SAMPLERS = [EulerSampler, HeunSampler, MidpointSampler, RK4Sampler, DPMppSampler]
MEAN, STD = 1.5, 0.4


def gaussian_velocity(values, timesteps):
    """E[ε − x0 | x_t] for x0 ~ N(MEAN, STD²): the flow carries a standard normal z to MEAN + STD · z."""
    t = timesteps[:, None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (values - (1 - t) * MEAN)


class Counting:
    """Counts predictions and keeps the timesteps asked for."""

    def __init__(self, predict):
        self.predict, self.asked = predict, []

    def __call__(self, values, timesteps, *, first=0):
        assert timesteps.shape == (len(values),) and (timesteps == timesteps[0]).all()
        self.asked.append(timesteps[0].item())
        return self.predict(values, timesteps)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def bent_velocity(values, timesteps):
    """dx/dt = x² · cos(3t), so that 1/x + sin(3t)/3 stays as it is."""
    return values.square() * torch.cos(3 * timesteps)[:, None, None]


def solve(sampler, predict, start, **given):
    return sampler.sample(predict, Representation.of_latents(start), generators=[], **given).values


def measured_orders(sampler, steps, shift, velocity, start, solution):
    errors = []
    for factor in (1, 2, 4):
        made = solve(sampler(num_steps=steps * factor, shift=shift), velocity, start)
        errors.append((made - solution).abs().max().item())
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize(
    ("sampler", "order", "steps"),
    [(EulerSampler, 1, 200), (HeunSampler, 2, 100), (MidpointSampler, 2, 800), (RK4Sampler, 4, 160), (DPMppSampler, 2, 800)],
)
def test_order_of_convergence(sampler, order, steps, shift):
    start = noise(2, 3, 4)
    for measured in measured_orders(sampler, steps, shift, gaussian_velocity, start, MEAN + STD * start):
        # The midpoint method does better on this flow, where its second-order error cancels; DPM-Solver++ has h² · log(1 / h).
        assert order - 0.25 < measured < order + (1.1 if sampler is MidpointSampler else 0.25)
    if sampler is DPMppSampler:
        return  # made for flows that predict data, which the next is not
    start = 0.5 + noise(2, 3, 4).sigmoid()
    for measured in measured_orders(sampler, steps, shift, bent_velocity, start, 1 / (1 / start + math.sin(3.0) / 3)):
        assert order - 0.25 < measured < order + 0.25


def test_dpmpp_is_the_published_recursion():
    """Lu et al. 2022, algorithm 2, over α, σ, λ, with the first order where λ is infinite."""
    steps = 9
    times = [1 - i / steps for i in range(steps)] + [0.0]
    x = noise(2, 3, 4)
    data, widths = [], []
    for i, (s, t) in enumerate(pairwise(times)):
        ts = torch.full((2,), s, dtype=torch.float64)
        data.append(x - s * gaussian_velocity(x, ts))
        if i == steps - 1:
            x = data[-1]
            break
        lambdas = [math.log((1 - u) / u) if u < 1 else -1e9 for u in (s, t)]
        widths.append(lambdas[1] - lambdas[0])
        ratio = widths[-2] / widths[-1] if i else math.inf
        mixed = (1 + 1 / (2 * ratio)) * data[-1] - 1 / (2 * ratio) * data[-2] if i else data[-1]
        x = t / s * x - (1 - t) * (math.exp(-widths[-1]) - 1) * mixed
    torch.testing.assert_close(solve(DPMppSampler(num_steps=steps), gaussian_velocity, noise(2, 3, 4)), x, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "steps"), [(EulerSampler, 500), (HeunSampler, 50), (MidpointSampler, 50), (RK4Sampler, 15), (DPMppSampler, 60)]
)
def test_reaches_the_marginal(sampler, steps):
    made = solve(sampler(num_steps=steps), gaussian_velocity, noise(1, 8, 5000))
    assert made.mean().item() == pytest.approx(MEAN, abs=0.01) and made.std().item() == pytest.approx(STD, abs=0.01)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_known_clip_is_reached_exactly(sampler):
    """With all data in one point the path is straight, and every sampler is exact with any number of steps."""
    data, start = noise(2, 3, 4), noise(2, 3, 4) + 1
    for steps in (1, 2, 3, 7):
        made = solve(sampler(num_steps=steps, shift=3.0), lambda x, t: (x - data) / t[:, None, None], start)
        torch.testing.assert_close(made, data)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_counts_evaluations_and_never_asks_at_zero(sampler, steps):
    predict, seen = Counting(gaussian_velocity), []
    chosen = sampler(num_steps=steps)
    start = noise(2, 3, 4).float()
    before = start.clone()
    made = solve(chosen, predict, start, on_step=lambda index, values: seen.append((index, values)))
    assert len(predict.asked) == chosen.num_evaluations(Representation.of_latents(start))
    assert predict.asked[0] == 1.0 and min(predict.asked) > 0.0
    assert [index for index, _ in seen] == list(range(steps)) and torch.equal(seen[-1][1], made)
    assert made.dtype == torch.float32 and torch.equal(start, before)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_holds_no_state_and_treats_clips_alone(sampler):
    chosen, start = sampler(num_steps=5), noise(3, 2, 4)
    state = dict(vars(chosen))
    together = solve(chosen, gaussian_velocity, start)
    solve(chosen, gaussian_velocity, noise(1, 1, 1))
    assert vars(chosen) == state
    for i in range(3):
        torch.testing.assert_close(solve(chosen, gaussian_velocity, start[i : i + 1])[0], together[i], atol=0, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_frames_end_exactly_and_are_shown_clean(sampler):
    values = noise(2, 3, 6).float()
    known = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]], dtype=torch.bool)
    target, start = PartialTarget(values=values, known=known), noise(2, 3, 6).float() + 3

    def predict(shown, timesteps, *, first=0):
        assert timesteps.shape == (2, 6) and (timesteps[known] == 0).all() and (timesteps[~known] > 0).all()
        assert torch.equal(shown.transpose(1, 2)[known], values.transpose(1, 2)[known])
        t = timesteps.clamp_min(1e-3)[:, None]
        return (shown - 7.0) / t

    drift = []
    made = solve(
        sampler(num_steps=4),
        target.hold(predict),
        target.show(start),
        on_step=lambda _, x: drift.append((x - values).transpose(1, 2)[known]),
    )
    torch.testing.assert_close(torch.stack(drift), torch.zeros(4, 4, 3), atol=1e-5, rtol=0)
    shown = target.show(made)
    assert torch.equal(shown.transpose(1, 2)[known], values.transpose(1, 2)[known])
    torch.testing.assert_close(shown.transpose(1, 2)[~known], torch.full((8, 3), 7.0), atol=1e-4, rtol=0)


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 200), shift=st.floats(0.05, 20))
def test_schedule_falls_from_one_to_zero(steps, shift):
    times = sampling_timesteps(steps, shift)
    assert len(times) == steps + 1 and times[0] == 1.0 and times[-1] == 0.0
    assert all(a > b for a, b in pairwise(times))
    for index, time in enumerate(times):  # undoing the shift gives even steps
        assert shift_timestep(time, 1 / shift) == pytest.approx(1 - index / steps, abs=1e-9)


def test_shift_of_one_changes_nothing_and_three_is_the_formula():
    t = torch.linspace(0, 1, 7)
    torch.testing.assert_close(shift_timestep(t, 1.0), t)
    assert shift_timestep(0.5, 3.0) == pytest.approx(0.75)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_refuses_wrong_numbers_and_takes_only_named_ones(sampler):
    with pytest.raises(SpecError, match="num_steps is 0; expected at least 1"):
        sampler(num_steps=0)
    with pytest.raises(SpecError, match="shift is .*; expected a number above 0"):
        sampler(shift=0.0)
    assert [p.kind.name for p in inspect.signature(sampler).parameters.values()] == ["KEYWORD_ONLY"] * 2
