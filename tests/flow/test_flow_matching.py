"""The flow matching objective against its formulas."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.flow import FlowMatching, XPrediction
from soundomni.flow.masked import Masked
from soundomni.flow.v_prediction import VPrediction

SPEC = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=4, latent_dim=3)


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def clips(lengths, *, seed=0, padding=0):
    values = torch.randn(len(lengths), 3, max(lengths) + padding, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor(lengths)
    beyond = torch.arange(values.shape[-1]) >= lengths[:, None]
    return Representation(values.masked_fill(beyond[:, None], float("nan")), lengths, SPEC)


def corrupt(objective, clean, *, seeds, known=None, noise=None):
    batch, frames = clean.values.shape[0], clean.values.shape[2]
    known = torch.zeros(batch, frames, dtype=torch.bool) if known is None else known
    noise = torch.ones(batch, dtype=torch.bool) if noise is None else noise
    return objective.corrupt(clean, known=known, noise=noise, generators=generators(seeds))


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_corrupts_as_the_formulas_say(timesteps, shift):
    objective = FlowMatching(timesteps=timesteps, mean=0.3, std=0.7, shift=shift)
    clean = clips([5, 8])
    query = corrupt(objective, clean, seeds=[1, 2])
    for i, (seed, n) in enumerate(zip((1, 2), (5, 8), strict=True)):
        (generator,) = generators([seed])
        if timesteps == "uniform":
            t = 1 - torch.rand((), generator=generator).item()
        else:
            t = 1 / (1 + math.exp(-0.3 - 0.7 * torch.randn((), generator=generator).item()))
        t = shift * t / (1 + (shift - 1) * t)
        epsilon, data = torch.randn(3, n, generator=generator), clean.values[i, :, :n]
        torch.testing.assert_close(query.timesteps[i, :n], torch.full((n,), t))
        torch.testing.assert_close(query.inputs[i, :, :n], (1 - t) * data + t * epsilon)
        torch.testing.assert_close(query.targets[i, :, :n], epsilon - data)
        assert query.loss_mask[i].tolist() == [True] * n + [False] * (8 - n)
    assert query.inputs.isfinite().all() and query.targets.isfinite().all()
    assert (query.timesteps[0, 5:] == 0).all() and (query.inputs[0, :, 5:] == 0).all()


def test_known_frames_and_context_stay_clean_without_loss():
    clean = clips([6, 6, 4])
    known = torch.zeros(3, 6, dtype=torch.bool)
    known[0, :2] = True
    query = corrupt(FlowMatching(), clean, seeds=[1, 2, 3], known=known, noise=torch.tensor([True, False, True]))
    assert query.loss_mask.sum(1).tolist() == [4, 0, 4]
    assert torch.equal(query.inputs[0, :, :2], clean.values[0, :, :2]) and torch.equal(query.inputs[1], clean.values[1])
    assert ((query.timesteps > 0) == query.loss_mask).all()
    assert not torch.equal(query.inputs[0, :, 2:], clean.values[0, :, 2:])


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), padding=st.integers(0, 4), seed=st.integers(0, 50))
def test_a_clip_is_corrupted_alike_in_any_batch(lengths, padding, seed):
    objective, seeds = FlowMatching(shift=2.0), range(seed, seed + len(lengths))
    clean = clips(lengths, seed=seed, padding=padding)
    together = corrupt(objective, clean, seeds=seeds)
    for i, n in enumerate(lengths):
        one = Representation(clean.values[i : i + 1, :, :n], torch.tensor([n]), SPEC)
        alone = corrupt(objective, one, seeds=[seeds[i]])
        for name in ("inputs", "timesteps", "targets", "loss_mask"):
            assert torch.equal(getattr(together, name)[i, ..., :n], getattr(alone, name)[0])


def test_loss_is_the_squared_error_over_counted_frames():
    query = corrupt(FlowMatching(), clips([5, 2]), seeds=[1, 2])
    prediction = torch.randn(2, 3, 5)
    total, count = FlowMatching().loss(prediction, query)["velocity"]
    expected = sum(((prediction[i, :, t] - query.targets[i, :, t]) ** 2).mean() for i, n in enumerate((5, 2)) for t in range(n))
    torch.testing.assert_close(total, expected)
    assert count == 7


def test_what_does_not_count_has_no_gradient_even_where_it_is_not_a_number():
    query = corrupt(FlowMatching(), clips([5, 2]), seeds=[1, 2])
    prediction = torch.randn(2, 3, 5)
    prediction[1, :, 2:] = float("nan")
    prediction.requires_grad_()
    total, _ = FlowMatching().loss(prediction, query)["velocity"]
    total.backward()
    assert total.isfinite() and prediction.grad.isfinite().all()
    assert (prediction.grad[1, :, 2:] == 0).all() and (prediction.grad[0] != 0).all()


def test_a_batch_without_targets_has_zero_loss_and_still_a_gradient():
    query = corrupt(FlowMatching(), clips([4]), seeds=[1], noise=torch.tensor([False]))
    prediction = torch.randn(1, 3, 4, requires_grad=True)
    total, count = FlowMatching().loss(prediction, query)["velocity"]
    total.backward()
    assert total == 0 and count == 0 and (prediction.grad == 0).all()
    empty = Representation(torch.zeros(0, 3, 1), torch.zeros(0, dtype=torch.int64), SPEC)
    assert corrupt(FlowMatching(), empty, seeds=[]).inputs.shape == (0, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "median", "share"),
    [
        ({}, 0.5, 0.3173),
        ({"shift": 3.0}, 0.75, None),
        ({"timesteps": "uniform"}, 0.5, None),
        ({"mean": 1.0, "std": 0.5}, 1 / (1 + math.exp(-1)), None),
    ],
)
def test_timesteps_are_distributed_as_named(arguments, median, share):
    clean = Representation(torch.zeros(4000, 3, 1), torch.ones(4000, dtype=torch.int64), SPEC)
    times = corrupt(FlowMatching(**arguments), clean, seeds=range(4000)).timesteps[:, 0]
    assert times.median().item() == pytest.approx(median, abs=0.02)
    if share is not None:  # beyond one standard deviation of the normal
        edge = 1 / (1 + math.exp(-1))
        assert ((times > edge) | (times < 1 - edge)).float().mean().item() == pytest.approx(share, abs=0.03)
    if arguments.get("timesteps") == "uniform":
        assert times.quantile(0.25).item() == pytest.approx(0.25, abs=0.03) and times.min() > 0


def test_refuses_wrong_arguments():
    with pytest.raises(SpecError, match="Did you mean 'uniform'"):
        FlowMatching(timesteps="unifrom")
    with pytest.raises(SpecError, match="std is .*; expected a finite number above 0"):
        FlowMatching(std=0.0)
    with pytest.raises(SpecError, match="shift is .*; expected a number above 0"):
        FlowMatching(shift=-1.0)
    codes = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=4, codebook_sizes=(9, 9, 9))
    with pytest.raises(SpecError, match="codes"):
        corrupt(FlowMatching(), Representation(torch.zeros(1, 3, 2, dtype=torch.int64), torch.tensor([2]), codes), seeds=[1])


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform"])
def test_quantiles_are_those_of_the_drawn_timesteps(timesteps):
    objective = FlowMatching(timesteps=timesteps, mean=0.3, std=0.7, shift=2.0)
    clean = clips([2] * 2000)
    known, noise = torch.zeros(2000, 2, dtype=torch.bool), torch.ones(2000, dtype=torch.bool)
    drawn = corrupt(objective, clean, seeds=range(2000)).timesteps[:, 0].sort().values
    places = [(i + 0.5) / 2000 for i in range(2000)]
    spread = objective.corrupt_at(clean, known=known, noise=noise, generators=generators(range(2000)), quantiles=places)
    assert (spread.timesteps[:, 0].diff() > 0).all()
    assert (spread.timesteps[:, 0] - drawn).abs().max() < 0.06, "the two distributions are one"
    again = objective.corrupt_at(clean, known=known, noise=noise, generators=generators(range(2000)), quantiles=places)
    assert torch.equal(again.inputs, spread.inputs)
    torch.testing.assert_close(spread.inputs, clean.values + spread.timesteps[:, None] * spread.targets)


@pytest.mark.parametrize(
    ("objective", "on_circle"),
    [(FlowMatching(shift=3.0), False), (XPrediction(), False), (VPrediction(timesteps="uniform"), True)],
    ids=["flow", "x", "v"],
)
def test_all_clips_come_to_a_chosen_timestep(objective, on_circle):
    """In the units of the objective: v-prediction mixes by cosine and sine, as stable-audio-tools does in its validation."""
    clean, known, noise = clips([6, 3]), torch.zeros(2, 6, dtype=torch.bool), torch.tensor([True, True])
    by_quantile = objective.corrupt_at(clean, known=known, noise=noise, generators=generators([1, 2]), quantiles=[0.5, 0.5])
    for timestep in (0.1, 0.9):
        angle = math.pi / 2 * timestep
        alpha, sigma = (math.cos(angle), math.sin(angle)) if on_circle else (1 - timestep, timestep)
        query = objective.corrupt_to(clean, known=known, noise=noise, generators=generators([1, 2]), timestep=timestep)
        valid = query.loss_mask[:, None]
        data = clean.values.masked_fill(~valid, 0.0)
        expected = (alpha * data + sigma * (by_quantile.targets + data)).masked_fill(~valid, 0.0)
        shown = objective.shown(query.inputs, query.timesteps).masked_fill(~valid, 0.0)
        torch.testing.assert_close(shown, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(objective.shown_times(query.timesteps)[query.loss_mask], torch.full((9,), timestep))


def test_a_corruption_of_ones_own_has_no_timesteps_to_choose():
    class Own(FlowMatching):
        def corrupt(self, clean, *, known, noise, generators):
            return super().corrupt(clean, known=known, noise=noise, generators=generators)

    clean, known, noise = clips([4]), torch.zeros(1, 4, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    assert FlowMatching().has_timesteps and not Own().has_timesteps and not Masked().has_timesteps
    with pytest.raises(TypeError, match="Own does not let timesteps be chosen"):
        Own().corrupt_to(clean, known=known, noise=noise, generators=generators([1]), timestep=0.5)


def test_a_corruption_of_ones_own_is_the_one_that_is_measured():
    class Own(FlowMatching):
        def corrupt(self, clean, *, known, noise, generators):
            query = super().corrupt(clean, known=known, noise=noise, generators=generators)
            return replace(query, inputs=query.inputs + 1)

    clean, known, noise = clips([4, 4]), torch.zeros(2, 4, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    at = Own().corrupt_at(clean, known=known, noise=noise, generators=generators([1, 2]), quantiles=[0.2, 0.7])
    assert torch.equal(at.inputs, corrupt(Own(), clean, seeds=[1, 2]).inputs)


@pytest.mark.parametrize("objective", [FlowMatching(shows_known=True), VPrediction(shows_known=True)], ids=["flow", "v"])
def test_a_clip_of_the_context_enters_in_training_as_in_generation(objective):
    """With hints, all of its frames are known in both."""
    clean = clips([5, 5])
    query = corrupt(objective, clean, seeds=[1, 2], noise=torch.tensor([False, True]))
    seen = torch.cat([objective.shown(query.inputs, query.timesteps), query.hints], dim=1)
    assert torch.equal(seen[:1], objective.given(clean)[:1])
    assert not query.hints[1].any() and not query.loss_mask[0].any()
