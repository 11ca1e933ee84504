"""What the samplers of diffusion models do besides the steps of their peers: noise of each clip's own, and its limits."""

from itertools import pairwise

import pytest
import torch
from diffusion_flows import generators, noise, solve, velocity

from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import PartialTarget
from soundomni.core.representation import Representation
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.flow import DDIMSampler, DPMpp2MSampler, DPMpp2MSDESampler, DPMpp3MSDESampler, DPMppSampler, NoiseSchedule, PingPongSampler
from soundomni.flow.brownian_noise import BrownianNoise

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


SDE = [DPMpp2MSDESampler, DPMpp3MSDESampler]


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("sampler", SDE)
def test_a_brownian_path_is_the_same_for_any_number_of_steps(sampler, eta):
    """With all data in one point, every step is exact, so that runs meet where their timesteps do; independent noise parts them."""
    reached = {}
    for kind in ("brownian", "independent"):
        for steps in (4, 10, 31):
            seen = reached[kind, steps] = []
            chosen = sampler(num_steps=steps, schedule=LOW, eta=eta, noise=kind)
            solve(chosen, noise(), to_point(noise(7)), on_step=lambda index, values, seen=seen: seen.append(values))
    for place in (1, 2, 3):
        few, more, many = (reached["brownian", steps][place * (steps - 1) // 3 - 1] for steps in (4, 10, 31))
        torch.testing.assert_close(few, more, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(few, many, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(reached["independent", 4][place - 1], reached["independent", 10][3 * place - 1], atol=1e-3)


@pytest.mark.parametrize("sampler", SDE)
def test_more_steps_of_one_path_converge(sampler):
    schedule = NoiseSchedule(spacing="exponential", sigma_min=0.05, sigma_max=20.0)
    made = [solve(sampler(num_steps=steps, schedule=schedule, noise="brownian"), noise(), to_gaussian) for steps in (10, 30, 90, 600)]
    errors = [(one - made[-1]).abs().mean().item() for one in made[:-1]]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2] and errors[2] < 0.05, errors


def test_brownian_noise_is_normal_and_independent_between_steps():
    like, schedule = torch.zeros(1, 20, 1000, dtype=torch.float64), NoiseSchedule(spacing="exponential")
    path = BrownianNoise(like, [1000], [torch.Generator().manual_seed(3)], eta=1.0)
    times = (1.0, *schedule.timesteps(12)[:-1])
    steps = torch.stack([path.between(*pair).flatten() for pair in pairwise(times)])
    torch.testing.assert_close(steps @ steps.T / steps.shape[1], torch.eye(len(steps), dtype=torch.float64), atol=0.04, rtol=0)
    assert steps.mean(1).abs().max() < 0.03 and (steps**4).mean(1).sub(3).abs().max() < 0.3


@pytest.mark.parametrize("sampler", SDE)
def test_a_brownian_path_does_not_depend_on_padding_or_on_others(sampler):
    chosen, start, frames = sampler(num_steps=5, noise="brownian"), torch.randn(3, 2, 6).double(), (6, 2, 5)
    batch = Representation(start, torch.tensor(frames), Representation.of_latents(start).spec)
    together = chosen.sample(velocity, batch, generators=[torch.Generator().manual_seed(clip) for clip in range(3)]).values
    for clip, count in enumerate(frames):
        alone = Representation.of_latents(start[clip : clip + 1, :, :count])
        made = chosen.sample(velocity, alone, generators=[torch.Generator().manual_seed(clip)]).values
        assert torch.equal(together[clip : clip + 1, :, :count], made)


@pytest.mark.parametrize("sampler", SDE)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"noise": "brownan"}, "noise is 'brownan'; expected independent or brownian. Did you mean 'brownian'?"),
        *[
            ({"noise": "brownian", "eta": eta}, f"eta is {eta:g}; expected 0, or from 0.001 to 4, with brownian noise. Set noise to .*")
            for eta in (5.0, 1e-4, 1e-20, 5e-324)
        ],
    ],
)
def test_noise_that_cannot_be_is_refused(sampler, given, expected):
    with pytest.raises(SpecError, match=f"^{expected.replace('?', '[?]')}$"):
        sampler(**given)


@pytest.mark.parametrize("sampler", SDE)
@pytest.mark.parametrize("eta", [0.0, 1e-3, 4.0])
@pytest.mark.parametrize("begin", [1.0, 1e-6, 1e-100])
def test_brownian_noise_is_finite_wherever_steps_lie(sampler, eta, begin):
    for schedule in (EVEN, NoiseSchedule(spacing="exponential", sigma_min=1e-30, sigma_max=1e30)):
        for steps in (1, 2, 40):
            chosen = sampler(num_steps=steps, schedule=schedule, eta=eta, noise="brownian")
            made = chosen.sample(velocity, Representation.of_latents(noise()), generators=generators(), begin=begin).values
            assert made.isfinite().all()


def test_a_brownian_path_at_minus_infinity_and_again_elsewhere():
    """Asking in another order, or again, gives the same path; it begins at 0."""
    path, other = (BrownianNoise(noise(), [4, 4], generators(), eta=1.0) for _ in range(2))
    far = other.between(0.4, 0.2)
    first, second = path.between(1.0, 0.4), path.between(0.4, 0.2)
    assert torch.equal(second, far) and torch.equal(other.between(1.0, 0.4), first)
    taus = [((1 - t) / t) ** 2 for t in (0.4, 0.2)]
    whole = (taus[0] ** 0.5 * first + (taus[1] - taus[0]) ** 0.5 * second) / taus[1] ** 0.5
    torch.testing.assert_close(path.between(1.0, 0.2), whole, atol=1e-12, rtol=1e-12)
