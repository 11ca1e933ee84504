"""What the samplers of diffusion models do besides the steps of their peers: noise of each clip's own, and its limits."""

import pytest
import torch
from diffusion_flows import generators, noise, solve, velocity

from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import PartialTarget
from soundomni.core.representation import Representation
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.flow import DDIMSampler, DPMpp2MSampler, DPMpp2MSDESampler, DPMpp3MSDESampler, DPMppSampler, NoiseSchedule, PingPongSampler

ALL = [DPMpp2MSampler, DPMpp2MSDESampler, DPMpp3MSDESampler, DDIMSampler, PingPongSampler]
EVEN = NoiseSchedule(spacing="even")
LOW = NoiseSchedule(spacing="exponential", sigma_min=0.01)
MEAN, STD = 1.5, 0.4


def to_point(data):
    return lambda values, timesteps, *, first=0: (values - data) / timesteps[:, None, None]


def to_gaussian(values, timesteps, *, first=0):
    """E[ε − x0 | x_t] for x0 ~ N(MEAN, STD²)."""
    t = timesteps[:, None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (values - (1 - t) * MEAN)


@pytest.mark.parametrize("spacing", ["even", "cosine", "log-snr", "exponential"])
@pytest.mark.parametrize("sampler", ALL)
def test_with_all_data_in_one_point_every_sampler_is_exact(sampler, spacing):
    data = noise(7)
    for steps in (1, 2, 3, 4, 9):
        made = solve(sampler(num_steps=steps, schedule=NoiseSchedule(spacing=spacing)), noise(), to_point(data))
        torch.testing.assert_close(made, data, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "sampler",
    [
        DPMpp2MSampler(num_steps=60, schedule=LOW),
        DPMpp2MSDESampler(num_steps=200, schedule=LOW),
        DPMpp3MSDESampler(num_steps=100, schedule=LOW),
        DDIMSampler(num_steps=300),
        DDIMSampler(num_steps=400, eta=1.0),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_reaches_the_marginal(sampler):
    drawn = [torch.Generator().manual_seed(1)]
    start = Representation.of_latents(torch.randn(1, 8, 5000, dtype=torch.float64, generator=drawn[0]))
    made = sampler.sample(to_gaussian, start, generators=drawn).values
    assert made.mean().item() == pytest.approx(MEAN, abs=0.01) and made.std().item() == pytest.approx(STD, abs=0.012)


def test_two_orders_without_noise_are_dpmpp():
    expected = solve(DPMppSampler(num_steps=9), noise())
    assert torch.equal(solve(DPMpp2MSampler(num_steps=9, schedule=EVEN), noise()), expected)
    assert torch.equal(solve(DPMpp2MSDESampler(num_steps=9, schedule=EVEN, eta=0.0), noise()), expected)


def test_the_third_order_is_closer_than_the_second():
    """Without noise all solve one equation, whose solution is known, from the first level of the schedule."""
    schedule, errors = NoiseSchedule(spacing="exponential", sigma_min=0.02, sigma_max=50.0), []
    start, first = noise() + 1, schedule.starts_at
    scale = ((1 - first) ** 2 * STD**2 + first**2) ** 0.5
    solution = MEAN + STD / scale * (first * start - (1 - first) * MEAN)
    for sampler in (DDIMSampler, DPMpp2MSampler, DPMpp3MSDESampler):
        more = {"eta": 0.0} if sampler is DPMpp3MSDESampler else {}
        made = solve(sampler(num_steps=60, schedule=schedule, **more), start, to_gaussian)
        errors.append((made - solution).abs().max().item())
    assert errors[0] > 4 * errors[1] and max(errors) < 0.05


@pytest.mark.parametrize("sampler", [DPMpp2MSDESampler, DPMpp3MSDESampler, DDIMSampler, PingPongSampler])
def test_a_clip_does_not_depend_on_padding_or_on_others(sampler):
    more = {"eta": 1.0} if sampler is DDIMSampler else {}
    chosen, start, frames = sampler(num_steps=5, **more), torch.randn(3, 2, 6).double(), (6, 2, 5)
    batch = Representation(start, torch.tensor(frames), Representation.of_latents(start).spec)
    together = chosen.sample(velocity, batch, generators=[torch.Generator().manual_seed(clip) for clip in range(3)]).values
    for clip, count in enumerate(frames):
        alone = Representation.of_latents(start[clip : clip + 1, :, :count])
        made = chosen.sample(velocity, alone, generators=[torch.Generator().manual_seed(clip)]).values
        assert torch.equal(together[clip : clip + 1, :, :count], made)


def test_the_noise_is_the_same_in_every_type():
    made = solve(PingPongSampler(num_steps=4), noise(), lambda values, timesteps, *, first=0: 0 * values)
    single = solve(PingPongSampler(num_steps=4), noise().float(), lambda values, timesteps, *, first=0: 0 * values)
    torch.testing.assert_close(single.double(), made, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", ALL)
def test_without_fresh_noise_no_generator_is_needed(sampler):
    start = Representation.of_latents(noise())
    if sampler is PingPongSampler:
        with pytest.raises(ValueError):
            sampler().sample(velocity, start)
        return
    quiet = {} if sampler is DPMpp2MSampler else {"eta": 0.0}
    drawn = generators()
    before = [one.get_state() for one in drawn]
    made = sampler(num_steps=3, **quiet).sample(velocity, start, generators=drawn).values
    assert torch.equal(made, sampler(num_steps=3, **quiet).sample(velocity, start).values)
    assert all(torch.equal(one.get_state(), state) for one, state in zip(drawn, before, strict=True))


@pytest.mark.parametrize("sampler", ALL)
def test_known_frames_are_shown_clean(sampler):
    values, known = noise(3).float(), torch.tensor([[True, False, False, True], [False, False, True, False]])
    target = PartialTarget(values=values, known=known)

    def predict(shown, timesteps, *, first=0):
        assert (timesteps[known] == 0).all() and (timesteps[~known] > 0).all()
        assert torch.equal(shown.transpose(1, 2)[known], values.transpose(1, 2)[known])
        return (shown - 7.0) / timesteps.clamp_min(1e-3)[:, None]

    made = target.show(solve(sampler(num_steps=4), target.show(noise().float()), target.hold(predict)))
    assert torch.equal(made.transpose(1, 2)[known], values.transpose(1, 2)[known])
    torch.testing.assert_close(made.transpose(1, 2)[~known], torch.full((5, 3), 7.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ALL)
def test_holds_no_state(sampler):
    chosen = sampler(num_steps=3)
    state = dict(vars(chosen))
    first = solve(chosen, noise())
    assert torch.equal(solve(chosen, noise()), first) and vars(chosen) == state


def test_a_spec_sets_the_schedule():
    schedule = {"spacing": "exponential", "sigma_min": 0.03}
    sampler = registry.build("sampler", Slot("dpmpp-3m-sde", {"num_steps": 8, "schedule": schedule}))
    assert sampler.schedule == NoiseSchedule(spacing="exponential", sigma_min=0.03)
    with pytest.raises(SpecError, match="schedule.*sigma_mim.*Did you mean 'sigma_min'"):
        registry.build("sampler", Slot("dpmpp-3m-sde", {"schedule": {"spacing": "exponential", "sigma_mim": 0.03}}))


@pytest.mark.parametrize(
    ("sampler", "arguments", "error"),
    [
        (DPMpp2MSampler, {"num_steps": 0}, "num_steps is 0; expected at least 1"),
        (DPMpp2MSDESampler, {"eta": -0.1}, "eta is -0.1; expected a finite number from 0 up, with 0 for no fresh noise"),
        (DPMpp3MSDESampler, {"s_noise": float("inf")}, "s_noise is inf; expected a finite number from 0 up"),
        (DDIMSampler, {"eta": 1.5}, "eta is 1.5; expected a number from 0 to 1, with 0 for no fresh noise"),
    ],
)
def test_refuses_wrong_numbers(sampler, arguments, error):
    with pytest.raises(SpecError, match=error):
        sampler(**arguments)
