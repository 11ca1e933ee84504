"""A variation stays as near to its clip as its strength says, also with a model that follows its prompt whatever it is shown.

Shape letters: B clips, D latent dimensions, T frames.
"""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import RATE, TOKENIZER, clip, contexts_of, model_spec, slot
from tiny_paths import CosinePath, SquarePath
from torch import Tensor

from soundomni.core.assembly.build import build_model, build_sampler
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.bounded_change import Bound, bounded
from soundomni.core.inference.clean_estimate import path_point
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.inference.variation import beginning
from soundomni.core.interfaces import Objective, Predict
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import Representation
from soundomni.core.sequence import PositionRule, Segment
from soundomni.core.spec.schema import GuidanceSpec, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.experts.connectors.linear import LinearConnector
from soundomni.flow import FlowMatching

SHAPE = (3, 4, 6)
LENGTHS = torch.tensor([6, 4, 5])
MADE = torch.arange(SHAPE[2]) < LENGTHS[:, None]


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * MADE[:, None]


def towards(target: Tensor, objective: Objective) -> Predict:
    """Return a prediction that stands for `target`, whatever it is shown."""

    def predict(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
        point = path_point(objective, float(timesteps[0]))
        return point.velocity_change(target - point.clean(values, torch.zeros_like(values)))

    return predict


def distances(values: Tensor, others: Tensor) -> Tensor:
    """Return the root of the mean squared difference of the frames of each clip, `[B]`."""
    return torch.stack([(a - b)[:, :n].square().mean().sqrt() for a, b, n in zip(values, others, LENGTHS, strict=True)])


@pytest.mark.parametrize("objective", [FlowMatching(), CosinePath(), SquarePath()], ids=lambda one: type(one).__name__)
@settings(max_examples=20, deadline=None)
@given(timestep=st.floats(0.02, 1.0), most=st.floats(0.01, 5.0), seed=st.integers(0, 99))
def test_an_estimate_stops_at_the_bound_on_its_way_from_the_clip(objective: Objective, timestep: float, most: float, seed: int) -> None:
    clips, target, values = drawn(seed), drawn(seed + 100), drawn(seed + 200)
    predict = towards(target, objective)
    bounds = [Bound(one[:, :n], most) for one, n in zip(clips, LENGTHS, strict=True)]
    times = torch.full((SHAPE[0],), timestep, dtype=torch.float64)
    found = path_point(objective, timestep).clean(values, bounded(predict, objective, bounds, made=MADE)(values, times))
    full = distances(target, clips)
    torch.testing.assert_close(distances(found, clips), full.clamp_max(most), rtol=1e-6, atol=1e-6)
    expected = clips + (target - clips) * (most / full).clamp_max(1.0)[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", ["euler", "heun", "midpoint", "rk4", "dpmpp"])
def test_every_sampler_ends_at_the_bound(sampler: str) -> None:
    clips, target = drawn(1), drawn(2)
    bounds = [Bound(one[:, :n], 0.3) for one, n in zip(clips, LENGTHS, strict=True)]
    predict = bounded(towards(target, FlowMatching()), FlowMatching(), bounds, made=MADE)
    start = Representation.of_latents(FlowMatching().noised(clips, drawn(3), 0.4))
    made = build_sampler(Slot(sampler, {"num_steps": 4})).sample(predict, start, generators=[], begin=0.4).values
    torch.testing.assert_close(distances(made, clips), torch.full((3,), 0.3, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_what_has_no_bound_or_lies_within_it_or_is_kept_does_not_change_at_all() -> None:
    clips, target, values = drawn(1), drawn(2), drawn(3)
    predict = towards(target, FlowMatching())
    times = torch.full((3,), 0.5, dtype=torch.float64)
    free = predict(values, times)
    assert bounded(predict, FlowMatching(), [None, None, None], made=MADE) is predict
    bounds = [None, Bound(clips[1, :, :4], 1e6), Bound(clips[2, :, :5], 0.1)]
    made = MADE.clone()
    made[2, :2] = False
    found = bounded(predict, FlowMatching(), bounds, made=made)(values, times)
    assert torch.equal(found[:2], free[:2])
    assert torch.equal(found[2, :, :2], free[2, :, :2]) and torch.equal(found[2, :, 5:], free[2, :, 5:])
    assert not torch.isclose(found[2, :, 2:5], free[2, :, 2:5]).any()


@cache
def stubborn() -> UnifiedModel:
    """Return a model that predicts clean values from its prompt only: what it is shown and the timestep have no weight."""
    own = model_spec()
    spec = replace(own, modalities={**own.modalities, "latent": replace(own.made, objective=Slot("x-prediction"))})
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, seed=1)
    torch.manual_seed(0)
    model.made().normalizer.fit([model.made().codec.encode(torch.randn(4, 1, 160), torch.full((4,), 160))])
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        connector = model.made().connector
        assert isinstance(connector, LinearConnector) and connector.time_and_place is not None
        for layer in (connector.inward, connector.time_and_place):
            for parameter in layer.parameters():
                parameter.zero_()
    return model.double()


def shared_slot(clip: Tensor) -> Segment:
    return slot(clip.shape[1], PositionRule.SHARED)


def varied(strength: float, latents: list[Tensor], *, scale: float = 1.0, words: str = "one two") -> list[Tensor]:
    """Return variants `[D, T]` of latents, made in one batch, which only has one timestep to begin at."""
    (context,) = contexts_of(stubborn(), [words])
    begins = [beginning(stubborn(), one, strength, slot=shared_slot(one)) for one in latents]
    requests = [
        AudioRequest(context=context, slot=shared_slot(one), seed=i, varied=one, most_change=begin.most_change)
        for i, (one, begin) in enumerate(zip(latents, begins, strict=True))
    ]
    made = sample_audio(
        stubborn(),
        requests,
        sampler=build_sampler(Slot("euler", {"num_steps": 3})),
        guidance=GuidanceSpec(scale=scale),
        begin=begins[0].timestep,
    )
    return [values[:, : one.shape[1]] for values, one in zip(made.values, latents, strict=True)]


def latents(seed: int, frames: int) -> Tensor:
    return 2.0 * torch.randn(16, frames, generator=torch.Generator().manual_seed(seed))


def change(made: Tensor, of: Tensor) -> float:
    return float((made - of).square().mean().sqrt())


@pytest.mark.parametrize("scale", [1.0, 4.0])
@settings(max_examples=8, deadline=None)
@given(strengths=st.tuples(st.floats(0.1, 0.99), st.floats(0.1, 0.99)).map(sorted), seed=st.integers(0, 20))
def test_a_model_that_ignores_the_clip_goes_as_far_as_the_strength_allows_and_no_further_than_its_prompt(
    scale: float, strengths: list[float], seed: int
) -> None:
    one = latents(seed, 9)
    full = change(varied(1.0, [one], scale=scale)[0], one)
    half = beginning(stubborn(), one, 0.5, slot=shared_slot(one)).most_change
    changes = [change(varied(strength, [one], scale=scale)[0], one) for strength in strengths]
    assert changes == pytest.approx([min(full, strength / (1.0 - strength) * half) for strength in strengths], rel=1e-4)


def test_a_bounded_variant_does_not_depend_on_its_batch() -> None:
    clips = [latents(1, 9), latents(2, 5), latents(3, 7)]
    together = varied(0.2, clips)
    bounds = [beginning(stubborn(), one, 0.2, slot=shared_slot(one)) for one in clips]
    for made, one, begin in zip(together, clips, bounds, strict=True):
        assert change(made, one) == pytest.approx(begin.most_change, rel=1e-4)
    torch.testing.assert_close(varied(0.2, clips[:1])[0], together[0], rtol=1e-5, atol=1e-5)


def test_strength_is_a_scale_even_with_a_model_that_ignores_the_clip() -> None:
    own = model_spec(sampler=Slot("euler", {"num_steps": 2}))
    made = replace(own.made, objective=Slot("x-prediction"))
    spec = Spec(model=replace(own, modalities={**own.modalities, "latent": made}))
    model, given_clip = SoundOmni(stubborn(), spec, TOKENIZER), Audio(clip(5, 160), RATE)
    whole = model.reconstruct(given_clip).waveform
    generate = partial(model.generate, "one", seconds=0.16, seeds=4, guidance_scale=3.0)
    made = {strength: generate(vary=given_clip, strength=strength)[0].waveform for strength in (0.1, 0.2, 0.4, 0.9, 1.0)}
    far = [float(np.sqrt(np.square(one - whole).mean())) for one in made.values()]
    assert far[0] < 0.6 * far[1] and far[1] < 0.6 * far[2] and far[2] < far[3] and far[1] < 0.3 * far[4]
    np.testing.assert_array_equal(made[1.0], generate()[0].waveform)
    np.testing.assert_array_equal(made[0.2], generate(vary=given_clip, strength=0.2)[0].waveform)
