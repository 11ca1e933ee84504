"""Rescaled and projected guidance against their formulas, and against a network of stable-audio-tools."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import check_guidance, guided
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.flow import FlowMatching, Masked, XPrediction

SHAPE = (3, 4, 5)
LENGTHS = (5, 3, 4)


class Cosine(FlowMatching):
    """The network sees x = α·x0 + σ·ε with α = cos and σ = sin of one angle, and gives α·ε − σ·x0."""

    @staticmethod
    def place(timesteps):
        angle = torch.atan2(timesteps, 1 - timesteps)[:, None]
        return torch.cos(angle), torch.sin(angle)

    def predicted(self, output, inputs, timesteps, *, first=0):
        alpha, sigma = self.place(timesteps)
        shown = inputs * (alpha + sigma)
        return sigma * shown + alpha * output - (alpha * shown - sigma * output)

    def native(self, prediction, inputs, timesteps, *, first=0):
        alpha, sigma = self.place(timesteps)
        times = timesteps[:, None]
        return alpha * (inputs + (1 - times) * prediction) - sigma * (inputs - times * prediction)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(*of_clips):
    return torch.tensor(of_clips, dtype=torch.float64)


def branches(conditional, unconditional):
    return lambda values, timesteps, count, *, first=0: torch.stack([conditional, unconditional][:count])


def steered(conditional, unconditional, values, timesteps, guidance, **given):
    return guided(branches(conditional, unconditional), guidance, **given)(values, timesteps)


CONDITIONAL, UNCONDITIONAL, VALUES = drawn(3, *SHAPE, seed=3)
AT = times(0.9, 0.4, 0.1)
VALID = torch.arange(SHAPE[2]) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("objective", [None, FlowMatching(), XPrediction(), Cosine()])
def test_defaults_change_nothing(objective):
    plain = UNCONDITIONAL + 3.0 * (CONDITIONAL - UNCONDITIONAL)
    assert torch.equal(steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, GuidanceSpec(scale=3.0), objective=objective, valid=VALID), plain)


def test_of_what_is_off_nothing_is_computed():
    """Without rescaling, an objective is never asked what the network gave."""

    class Silent(FlowMatching):
        def native(self, prediction, inputs, timesteps, *, first=0):
            raise AssertionError("nothing asks for it")

    for guidance in (GuidanceSpec(scale=2.0), GuidanceSpec(scale=2.0, parallel=0.0), GuidanceSpec(rescale=0.7)):
        steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, guidance, objective=Silent())
    low = GuidanceSpec(scale=2.0, rescale=0.7, interval=(0.0, 0.05))
    assert torch.equal(steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, low, objective=Silent()), CONDITIONAL)


@pytest.mark.parametrize("parallel", [0.0, 0.3])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_projection_clip_by_clip(parallel, threshold):
    guidance = GuidanceSpec(scale=4.0, parallel=parallel, norm_threshold=threshold)
    found = steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, guidance, valid=VALID)
    for clip, frames in enumerate(LENGTHS):
        t = float(AT[clip])
        x, c, u = (part[clip, :, :frames].flatten() for part in (VALUES, CONDITIONAL, UNCONDITIONAL))
        clean, change = x - t * c, (x - t * c) - (x - t * u)
        if threshold:
            change = change * min(1.0, threshold / float(change.norm()))
        along = change @ clean / (clean @ clean) * clean
        wanted = clean + 3.0 * (change - along + parallel * along)
        torch.testing.assert_close(found[clip, :, :frames].flatten(), (x - wanted) / t, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("objective", [FlowMatching(), XPrediction(), Cosine()])
def test_only_the_orthogonal_part_of_the_change_stays(objective):
    found = steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, GuidanceSpec(scale=5.0, parallel=0.0), objective=objective)
    clean, moved = VALUES - AT[:, None, None] * CONDITIONAL, VALUES - AT[:, None, None] * found
    products = ((moved - clean) * clean).sum((1, 2))
    torch.testing.assert_close(products, torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_high_threshold_is_plain_guidance():
    plain = steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, GuidanceSpec(scale=5.0))
    limited = steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, GuidanceSpec(scale=5.0, norm_threshold=1e6))
    torch.testing.assert_close(limited, plain)


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("objective", [None, FlowMatching(), XPrediction(), Cosine()])
def test_rescaling_is_that_of_the_networks_own_output(objective, share):
    """With all of it rescaled, every frame of the output has the deviation of the conditional one."""
    objective = objective or FlowMatching()
    per_frame = AT[:, None].expand(-1, SHAPE[2])
    found = steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, GuidanceSpec(scale=6.0, rescale=share), objective=objective)
    plain = UNCONDITIONAL + 6.0 * (CONDITIONAL - UNCONDITIONAL)
    wanted, own, got = (objective.native(one, VALUES, per_frame).double() for one in (CONDITIONAL, plain, found))
    expected = share * own * (wanted.std(1, keepdim=True) / own.std(1, keepdim=True)) + (1 - share) * own
    near = {"atol": 2e-5, "rtol": 2e-5} if isinstance(objective, XPrediction) else {}  # it computes in single precision
    torch.testing.assert_close(got, expected, **near)


def test_a_timestep_per_frame_and_a_known_frame_stay_finite():
    per_frame = AT[:, None].expand(-1, SHAPE[2]).clone()
    per_frame[:, 0] = 0.0
    guidance = GuidanceSpec(scale=3.0, parallel=0.2, norm_threshold=2.0, rescale=0.5)
    for objective in (FlowMatching(), XPrediction(), Cosine()):
        one, all_frames = (
            steered(CONDITIONAL, UNCONDITIONAL, VALUES, at, guidance, objective=objective, valid=per_frame > 0) for at in (AT, per_frame)
        )
        assert bool(all_frames.isfinite().all())
        torch.testing.assert_close(all_frames[..., 1:], one[..., 1:])


@pytest.mark.parametrize("momentum", [-0.75, -0.2, 0.5])
@pytest.mark.parametrize(("parallel", "threshold"), [(1.0, 0.0), (0.0, 2.5), (0.3, 1.0)])
def test_momentum_is_a_sum_of_the_changes_so_far(momentum, parallel, threshold):
    """Algorithm 1 of the paper, written out: after n steps, D_n + β·D_{n-1} + β²·D_{n-2} + … is what the norm and the projection limit."""
    guidance = GuidanceSpec(scale=4.0, parallel=parallel, norm_threshold=threshold, momentum=momentum)
    now, changes = {}, []
    predict, again = (guided(lambda *_, **__: torch.stack(now["branches"]), guidance, valid=VALID) for _ in range(2))
    for step, at in enumerate((0.9, 0.6, 0.4, 0.1)):
        conditional, unconditional, values = drawn(3, *SHAPE, seed=step)
        now["branches"] = conditional, unconditional
        found = predict(values, times(at, at, at))
        changes.append(at * (unconditional - conditional))
        for clip, frames in enumerate(LENGTHS):
            change = sum(momentum**age * one[clip, :, :frames] for age, one in enumerate(reversed(changes)))
            clean = (values - at * conditional)[clip, :, :frames]
            if threshold:
                change = change * min(1.0, threshold / float(change.norm()))
            along = (change * clean).sum() / clean.square().sum() * clean
            wanted = clean + 3.0 * (change - along + parallel * along)
            torch.testing.assert_close((values - at * found)[clip, :, :frames], wanted, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(again(values, times(at, at, at)), found), "another run begins without the changes of this one"


def test_only_guided_steps_are_remembered():
    guidance = GuidanceSpec(scale=4.0, momentum=-0.5, interval=(0.3, 0.7))
    predict = guided(branches(CONDITIONAL, UNCONDITIONAL), guidance)
    outside, inside, mixed = times(0.9, 0.9, 0.9), times(0.5, 0.5, 0.5), times(0.9, 0.5, 0.1)
    first = steered(CONDITIONAL, UNCONDITIONAL, VALUES, inside, GuidanceSpec(scale=4.0))
    assert torch.equal(predict(VALUES, outside), CONDITIONAL)
    torch.testing.assert_close(predict(VALUES, mixed)[1], first[1])
    found = predict(VALUES, inside)
    torch.testing.assert_close(found[::2], first[::2])
    assert not torch.allclose(found[1], first[1]), "only this clip had a guided step before"


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(-3, 15),
    parallel=st.floats(0, 1),
    threshold=st.sampled_from([0.0, 0.3, 5.0]),
    rescale=st.floats(0, 1),
    renormalize=st.sampled_from(["none", "global", "channel"]),
    low=st.sampled_from([0.0, 0.2]),
)
def test_no_clip_depends_on_another_or_on_padding(scale, parallel, threshold, rescale, renormalize, low):
    guidance = GuidanceSpec(
        scale=scale, parallel=parallel, norm_threshold=threshold, rescale=rescale, renormalize=renormalize, interval=(low, 1.0)
    )
    together = steered(CONDITIONAL, UNCONDITIONAL, VALUES, AT, guidance, objective=Cosine(), valid=VALID)
    for clip, frames in enumerate(LENGTHS):
        own = [part[clip : clip + 1, :, :frames] for part in (CONDITIONAL, UNCONDITIONAL, VALUES)]
        alone = steered(*own, AT[clip : clip + 1], guidance, objective=Cosine())
        torch.testing.assert_close(together[clip : clip + 1, :, :frames], alone, atol=1e-6, rtol=1e-6)


def test_without_any_difference_or_deviation_nothing_is_divided_by_zero():
    guidance = GuidanceSpec(scale=3.0, parallel=0.0, norm_threshold=1.0, rescale=1.0)
    same = steered(CONDITIONAL, CONDITIONAL, VALUES, AT, guidance)
    torch.testing.assert_close(same, CONDITIONAL)
    nothing = torch.zeros(SHAPE)
    assert torch.equal(steered(nothing, nothing, nothing, AT.float(), guidance), nothing)
    one_channel = CONDITIONAL[:, :1], UNCONDITIONAL[:, :1], VALUES[:, :1]
    found = steered(*one_channel, AT, GuidanceSpec(scale=3.0, rescale=1.0))
    torch.testing.assert_close(found, steered(*one_channel, AT, GuidanceSpec(scale=3.0)))


@pytest.mark.parametrize("scale_phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("kind", "objective"), [("v", Cosine()), ("rectified_flow", FlowMatching())])
def test_guidance_of_stable_audio_tools(kind, objective, scale_phi):
    from stable_audio_tools.models.dit import DiffusionTransformer

    torch.manual_seed(0)
    size = {"io_channels": 4, "embed_dim": 64, "cond_token_dim": 8, "depth": 1, "num_heads": 1}
    network = DiffusionTransformer(**size, diffusion_objective=kind).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    condition, at = drawn(3, 6, 8), times(0.9, 0.4, 0.1)
    ratio = torch.tan(math.pi / 2 * at) if kind == "v" else at / (1 - at)
    shown, place = drawn(*SHAPE, seed=1), ratio / (1 + ratio)
    norm = torch.cos(math.pi / 2 * at) + torch.sin(math.pi / 2 * at) if kind == "v" else torch.ones(3)
    values, per_frame = shown / norm[:, None, None], place[:, None].expand(-1, SHAPE[2])

    def network_branches(values, timesteps, count, *, first=0):
        prompts = [condition, torch.zeros_like(condition)][:count]
        outputs = [network(shown, at, cross_attn_cond=prompt) for prompt in prompts]
        return torch.stack([objective.predicted(output, values, per_frame) for output in outputs])

    with torch.no_grad():
        expected = network(shown, at, cross_attn_cond=condition, cfg_scale=6.0, scale_phi=scale_phi)
        found = guided(network_branches, GuidanceSpec(scale=6.0, rescale=scale_phi), objective=objective)(values, place)
    torch.testing.assert_close(objective.native(found, values, per_frame), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("rescale", 1.5, "guidance.rescale is 1.5; expected a number from 0 to 1, with 0 for plain guidance"),
        ("parallel", -0.1, "guidance.parallel is -0.1; expected a number from 0 to 1, with 1 for plain guidance"),
        ("norm_threshold", math.inf, "guidance.norm_threshold is inf; expected a finite number from 0 up, with 0 for plain guidance"),
        ("momentum", 1.0, "guidance.momentum is 1.0; expected a number above -1 and below 1, with 0 for plain guidance"),
        ("momentum", math.nan, "guidance.momentum is nan; expected a number above -1 and below 1"),
        ("norm_threshold", math.nan, "guidance.norm_threshold is nan; expected a finite number from 0 up"),
    ],
)
def test_refuses_wrong_values_by_their_keys(name, value, error):
    with pytest.raises(SpecError, match=f"^{error}"):
        guided(branches(CONDITIONAL, UNCONDITIONAL), replace(GuidanceSpec(), **{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "off"), [("rescale", 0.5, "0"), ("parallel", 0.0, "1"), ("norm_threshold", 2.0, "0"), ("momentum", 0.5, "0")]
)
def test_logits_cannot_be_rescaled_or_projected(name, value, off):
    guidance = GuidanceSpec(scale=2.0, **{name: value})
    with pytest.raises(SpecError, match=f"guidance.{name} is {value}, but the objective predicts logits; expected {off}. It only applies"):
        guided(branches(CONDITIONAL, UNCONDITIONAL), guidance, objective=Masked())
    with pytest.raises(SpecError, match="but the objective predicts the next token"):
        check_guidance(guidance, predicts="next-token")
