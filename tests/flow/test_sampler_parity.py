"""The samplers of diffusion models take the steps of k-diffusion and stable-audio-tools, in double precision.

The peers see the same flow in their own variables, and get the noise that our samplers draw.
"""

import math

import pytest
import torch
from diffusion_flows import Draws, denoiser, noise, solve, v_network, velocity
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.inference.guidance import compared
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.flow import (
    DDIMCFGppSampler,
    DDIMSampler,
    DPMpp2MSampler,
    DPMpp2MSDESampler,
    DPMpp3MSDESampler,
    DPMppSampler,
    EulerSampler,
    NoiseSchedule,
    PingPongSampler,
)
from soundomni.flow.v_prediction import VPrediction

NEAR = {"atol": 1e-9, "rtol": 1e-9}
SIGMAS = [(0.3, 500.0, 1.0), (0.01, 100.0, 1.0), (0.03, 7.0, 2.5)]


@pytest.fixture(scope="module", autouse=True)
def double():
    """The peers make their schedules in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def k():
    from k_diffusion import sampling

    return sampling


@pytest.fixture(scope="module")
def tools():
    from stable_audio_tools.inference import sampling

    return sampling


def exponential(sigma_min, sigma_max, rho):
    return NoiseSchedule(spacing="exponential", sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 60), low=st.floats(0.001, 1.0), ratio=st.floats(1.5, 1e5), rho=st.floats(0.3, 4.0))
def test_exponential_schedules(k, steps, low, ratio, rho):
    sigmas = k.get_sigmas_polyexponential(steps, low, low * ratio, rho)
    found = torch.tensor(exponential(low, low * ratio, rho).timesteps(steps))
    torch.testing.assert_close(found, sigmas / (1 + sigmas), atol=1e-12, rtol=1e-12)
    if steps > 1:
        even = torch.tensor(exponential(low, low * ratio, 1.0).timesteps(steps))
        sigmas = k.get_sigmas_exponential(steps, low, low * ratio)
        torch.testing.assert_close(even, sigmas / (1 + sigmas), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 5, 40])
@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        (DPMpp2MSampler, "sample_dpmpp_2m", {}),
        *[
            (sampler, theirs, {"eta": eta, "s_noise": s_noise})
            for sampler, theirs in ((DPMpp2MSDESampler, "sample_dpmpp_2m_sde"), (DPMpp3MSDESampler, "sample_dpmpp_3m_sde"))
            for eta, s_noise in ((0.0, 1.0), (1.0, 1.0), (0.4, 1.1))
        ],
    ],
)
def test_solvers_of_k_diffusion(k, ours, theirs, more, sigmas, steps):
    levels = k.get_sigmas_polyexponential(steps, *sigmas)
    drawn = {"noise_sampler": Draws()} if more else {}
    expected = getattr(k, theirs)(denoiser, noise() * sigmas[1], levels, disable=True, **more, **drawn)
    found = solve(ours(num_steps=steps, schedule=exponential(*sigmas), **more), noise())
    torch.testing.assert_close(found, expected, **NEAR)


def test_one_step_of_k_diffusion(k):
    """It predicts the data once; k-diffusion's stochastic samplers fail there, as they then have no width of a step."""
    expected = k.sample_dpmpp_2m(denoiser, noise() * 500, k.get_sigmas_polyexponential(1, 0.3, 500), disable=True)
    for ours in (DPMpp2MSampler, DPMpp2MSDESampler, DPMpp3MSDESampler):
        torch.testing.assert_close(solve(ours(num_steps=1), noise()), expected, **NEAR)


@pytest.mark.parametrize("begin", [0.9995, 0.7, 0.3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(DPMpp2MSampler, "sample_dpmpp_2m"), (DPMpp2MSDESampler, "sample_dpmpp_2m_sde"), (DPMpp3MSDESampler, "sample_dpmpp_3m_sde")],
)
def test_variations_of_k_diffusion(k, ours, theirs, begin):
    """A variation is the clip plus noise times the first level, which takes the place of the schedule's own."""
    clip, first = noise(3), begin / (1 - begin)
    levels = k.get_sigmas_polyexponential(9, 0.2, first)
    drawn = {} if ours is DPMpp2MSampler else {"noise_sampler": Draws()}
    expected = getattr(k, theirs)(denoiser, clip + noise() * first, levels, disable=True, **drawn)
    sampler = ours(num_steps=9, schedule=exponential(0.2, 500.0, 1.0))
    found = solve(sampler, (1 - begin) * clip + begin * noise(), begin=begin)
    torch.testing.assert_close(found, expected, **NEAR)


def test_all_of_sample_k(tools):
    """From the noise to the result, with their own wrapper around a network that predicts v."""
    expected = tools.sample_k(v_network, noise(), steps=12, sampler_type="dpmpp-2m", sigma_min=0.3, sigma_max=500, device="cpu")
    torch.testing.assert_close(solve(DPMpp2MSampler(num_steps=12), noise()), expected, **NEAR)
    for steps in (1, 2, 25):
        expected = tools.sample_k(v_network, noise(), steps=steps, sampler_type="v-ddim", sigma_max=1.0, device="cpu")
        torch.testing.assert_close(solve(DDIMSampler(num_steps=steps), noise()), expected, **NEAR)
    high, clip = 0.6, noise(3)
    expected = tools.sample_k(v_network, noise(), clip, steps=7, sampler_type="v-ddim", sigma_max=high, device="cpu")
    data, fresh = math.cos(math.pi / 2 * high), math.sin(math.pi / 2 * high)
    begin = fresh / (data + fresh)
    found = solve(DDIMSampler(num_steps=7), (1 - begin) * clip + begin * noise(), begin=begin)
    torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize(("scale", "scale_phi"), [(1.0, 0.0), (0.6, 0.0), (6.0, 0.7)])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
def test_cfgpp_with_a_network_of_stable_audio_tools(tools, interval, scale, scale_phi):
    """A whole run from noise, and a variation, of their diffusion transformer, which gives its prediction without a prompt as well."""
    from stable_audio_tools.models.dit import DiffusionTransformer

    torch.manual_seed(0)
    network = DiffusionTransformer(io_channels=3, embed_dim=64, cond_token_dim=8, depth=1, num_heads=1, diffusion_objective="v").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    condition, objective = torch.randn(2, 6, 8), VPrediction()

    def branches(values, timesteps, count, *, first=0):
        per_frame = timesteps[:, None].expand(-1, values.shape[-1])
        shown, at = objective.shown(values, per_frame), objective.shown_times(per_frame)[:, 0]
        outputs = [network(shown, at, cross_attn_cond=prompt) for prompt in (condition, 0 * condition)[:count]]
        return torch.stack([objective.predicted(output, values, per_frame) for output in outputs])

    own = tuple(math.sin(level) / (math.sin(level) + math.cos(level)) for level in (math.asin(sigma) for sigma in interval))
    compare = compared(branches, GuidanceSpec(scale=scale, rescale=scale_phi, interval=own), objective=objective)
    asked = {"cross_attn_cond": condition, "cfg_scale": scale, "scale_phi": scale_phi, "cfg_interval": interval}
    for high, clip in ((1.0, None), (0.6, noise(3))):
        data, fresh = math.cos(math.pi / 2 * high), math.sin(math.pi / 2 * high)
        begin = 1.0 if clip is None else fresh / (data + fresh)
        start = noise() if clip is None else (1 - begin) * clip + begin * noise()
        with torch.no_grad():
            expected = tools.sample_k(network, noise(), clip, steps=7, sampler_type="v-ddim-cfgpp", sigma_max=high, device="cpu", **asked)
            found = solve(DDIMCFGppSampler(num_steps=7), start, begin=begin, compare=compare)
        torch.testing.assert_close(found, expected, **NEAR)
        if scale == 1.0:
            plain = solve(DDIMSampler(num_steps=7), start, lambda *given, **more: compare(*given, **more)[0], begin=begin)
            torch.testing.assert_close(found, plain, **NEAR)


def test_cfgpp_needs_both_predictions():
    with pytest.raises(ValueError, match="compare is None; expected the guided prediction and the one that it steers away from"):
        solve(DDIMCFGppSampler(), noise())


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(tools, monkeypatch, steps, eta):
    monkeypatch.setattr(torch, "randn_like", Draws())
    expected = tools.sample(v_network, noise(), steps, eta)
    torch.testing.assert_close(solve(DDIMSampler(num_steps=steps, eta=eta), noise()), expected, **NEAR)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 50])
@pytest.mark.parametrize(("ours", "theirs"), [(DDIMSampler, "euler"), (DPMpp2MSampler, "dpmpp"), (PingPongSampler, "pingpong")])
def test_all_of_sample_rf(tools, monkeypatch, ours, theirs, steps):
    monkeypatch.setattr(torch, "randn_like", Draws())
    expected = tools.sample_rf(velocity, noise(), steps=steps, sampler_type=theirs, device="cpu")
    found = solve(ours(num_steps=steps, schedule=NoiseSchedule(spacing="log-snr")), noise())
    torch.testing.assert_close(found, expected, **NEAR)


def test_variations_of_sample_rf(tools):
    """Their first level of a variation has a guard of 1e-6 against the logarithm of zero, which ours does not need."""
    clip, begin = noise(3), 0.6
    expected = tools.sample_rf(velocity, noise(), clip, steps=8, sampler_type="dpmpp", sigma_max=begin, device="cpu")
    sampler = DPMpp2MSampler(num_steps=8, schedule=NoiseSchedule(spacing="log-snr"))
    found = solve(sampler, (1 - begin) * clip + begin * noise(), begin=begin)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    times = torch.tensor(sampler.schedule.timesteps(8, begin))
    expected = tools.sample_flow_dpmpp(velocity, (1 - begin) * clip + begin * noise(), sigmas=times)
    torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_even_steps_of_rectified_flows(tools, monkeypatch, steps):
    even = NoiseSchedule(spacing="even")
    for ours, theirs in (
        (EulerSampler(num_steps=steps), tools.sample_discrete_euler),
        (DDIMSampler(num_steps=steps, schedule=even), tools.sample_discrete_euler),
        (DPMppSampler(num_steps=steps), tools.sample_flow_dpmpp),
        (DPMpp2MSampler(num_steps=steps, schedule=even), tools.sample_flow_dpmpp),
        (PingPongSampler(num_steps=steps, schedule=even), tools.sample_flow_pingpong),
    ):
        monkeypatch.setattr(torch, "randn_like", Draws())
        torch.testing.assert_close(solve(ours, noise()), theirs(velocity, noise(), steps=steps), **NEAR)
