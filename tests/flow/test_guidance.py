"""Classifier-free guidance and its renormalisation against their formulas."""

import pytest
import torch

from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import PartialTarget, guided
from soundomni.core.representation import Representation
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.flow import EulerSampler


class Branches:
    """Two fixed predictions; remembers how many branches were asked for."""

    def __init__(self, batch=3, dim=4, frames=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.conditional, self.unconditional = torch.randn(2, batch, dim, frames, generator=generator)
        self.asked = []

    def __call__(self, values, timesteps, count, *, first=0):
        self.asked.append(count)
        return torch.stack([self.conditional, self.unconditional][:count])


def at(*timesteps):
    return torch.tensor(timesteps)


def test_the_formula():
    branches = Branches()
    out = guided(branches, GuidanceSpec(scale=3.0))(torch.zeros(3, 4, 5), at(0.5, 0.5, 0.5))
    expected = branches.unconditional + 3.0 * (branches.conditional - branches.unconditional)
    torch.testing.assert_close(out, expected)
    assert branches.asked == [2]


def test_a_scale_of_one_asks_for_the_conditional_branch_alone():
    branches = Branches()
    out = guided(branches, GuidanceSpec(scale=1.0, renormalize="global"))(torch.zeros(3, 4, 5), at(0.5, 0.5, 0.5))
    assert torch.equal(out, branches.conditional) and branches.asked == [1]


def test_outside_the_interval_only_the_conditional_branch_counts():
    branches = Branches()
    predict = guided(branches, GuidanceSpec(scale=2.0, interval=(0.2, 0.6)))
    expected = 2.0 * branches.conditional - branches.unconditional
    out = predict(torch.zeros(3, 4, 5), at(0.9, 0.1, 0.61))
    assert torch.equal(out, branches.conditional) and branches.asked == [1]
    out = predict(torch.zeros(3, 4, 5), at(0.2, 0.6, 0.7))  # both ends belong to it
    torch.testing.assert_close(out[:2], expected[:2])
    assert torch.equal(out[2], branches.conditional[2]) and branches.asked == [1, 2]


def test_the_interval_is_on_shifted_time():
    branches = Branches(batch=1)
    sampler = EulerSampler(num_steps=4, shift=3.0)  # at 1, 0.9, 0.75, 0.5
    sampler.sample(
        guided(branches, GuidanceSpec(scale=2.0, interval=(0.7, 0.95))), Representation.of_latents(torch.zeros(1, 4, 5)), generators=[]
    )
    assert branches.asked == [1, 2, 2, 1]


def test_a_timestep_per_frame_guides_per_frame():
    branches = Branches(batch=1, frames=2)
    predict = guided(branches, GuidanceSpec(scale=2.0, interval=(0.2, 1.0)))
    out = predict(torch.zeros(1, 4, 2), torch.tensor([[0.0, 0.5]]))
    assert torch.equal(out[..., 0], branches.conditional[..., 0])
    torch.testing.assert_close(out[..., 1], (2.0 * branches.conditional - branches.unconditional)[..., 1])


@pytest.mark.parametrize("least", [0.0, 0.6])
def test_global_renormalization_is_per_clip_over_valid_frames(least):
    branches = Branches()
    lengths = (5, 3, 4)
    valid = torch.arange(5) < torch.tensor(lengths)[:, None]
    for prediction in (branches.conditional, branches.unconditional):
        prediction.masked_fill_(~valid[:, None], float("nan"))
    branches.unconditional[2] = branches.conditional[2]  # not steered: nothing to shrink
    out = guided(branches, GuidanceSpec(scale=4.0, renormalize="global", renormalize_min=least), valid=valid)(
        torch.zeros(3, 4, 5), at(0.5, 0.5, 0.5)
    )
    for i, n in enumerate(lengths):
        c, u = branches.conditional[i, :, :n].double(), branches.unconditional[i, :, :n].double()
        v = u + 4.0 * (c - u)
        factor = min(1.0, max(least, float(c.norm() / v.norm())))
        torch.testing.assert_close(out[i, :, :n].double(), v * factor, atol=1e-5, rtol=1e-5)


def test_global_renormalization_never_mixes_clips():
    together = Branches()
    predict = guided(together, GuidanceSpec(scale=5.0, renormalize="global"))(torch.zeros(3, 4, 5), at(0.3, 0.3, 0.3))
    for i in range(3):
        alone = Branches()
        alone.conditional, alone.unconditional = together.conditional[i : i + 1], together.unconditional[i : i + 1]
        out = guided(alone, GuidanceSpec(scale=5.0, renormalize="global"))(torch.zeros(1, 4, 5), at(0.3))
        torch.testing.assert_close(out[0], predict[i])


def test_channel_renormalization_is_per_token():
    branches = Branches()
    out = guided(branches, GuidanceSpec(scale=4.0, renormalize="channel", renormalize_min=0.3))(torch.zeros(3, 4, 5), at(0.5, 0.5, 0.5))
    steered = branches.unconditional + 4.0 * (branches.conditional - branches.unconditional)
    for i in range(3):
        for t in range(5):
            c, v = branches.conditional[i, :, t], steered[i, :, t]
            torch.testing.assert_close(out[i, :, t], v * (c.norm() / v.norm()).clamp(0.3, 1.0))


def test_a_vanishing_prediction_stays_finite():
    branches = Branches()
    branches.conditional.zero_()
    branches.unconditional.zero_()
    for kind in ("global", "channel"):
        out = guided(branches, GuidanceSpec(scale=2.0, renormalize=kind))(torch.zeros(3, 4, 5), at(0.5, 0.5, 0.5))
        assert (out == 0).all()


def test_guidance_moves_a_gaussian_as_computed_by_hand():
    """Both branches straight flows to a point: guidance then aims at u + g·(c − u)."""
    start = torch.randn(2, 3, 4, dtype=torch.float64)

    def branches(values, timesteps, count, *, first=0):
        t = timesteps[:, None, None]
        return torch.stack([(values - 1.0) / t, (values - 0.25) / t][:count])

    made = EulerSampler(num_steps=6).sample(guided(branches, GuidanceSpec(scale=3.0)), Representation.of_latents(start), generators=[])
    torch.testing.assert_close(made.values, torch.full_like(start, 0.25 + 3.0 * 0.75))


def test_holding_known_frames_works_around_guidance():
    branches = Branches(batch=1, dim=2, frames=3)
    target = PartialTarget(values=torch.ones(1, 2, 3), known=torch.tensor([[True, False, False]]))
    predict = target.hold(guided(branches, GuidanceSpec(scale=2.0)))
    start = Representation.of_latents(target.show(torch.zeros(1, 2, 3)))
    made = target.show(EulerSampler(num_steps=1).sample(predict, start, generators=[]).values)
    assert (made[..., 0] == 1).all()
    torch.testing.assert_close(made[..., 1:], -(2 * branches.conditional - branches.unconditional)[..., 1:])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"interval": (0.7, 0.3)}, "low <= high"),
        ({"renormalize": "gobal"}, "Did you mean 'global'"),
        ({"renormalize_min": 1.5}, "a number from 0 to 1"),
    ],
)
def test_refuses_wrong_guidance(arguments, told):
    with pytest.raises(SpecError, match=told):
        guided(Branches(), GuidanceSpec(scale=2.0, **arguments))
