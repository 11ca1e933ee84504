"""Sampling audio and text: batched = single, given frames are kept, and what a model refuses to make or hear.

Shape letters: D latent dimensions, T frames.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_models import MODELS, RATE, TOKENIZER, clip, contexts_of, greedy, heard, model_spec, one_forward, rule, slot, writer

from soundomni.core.assembly.build import build_sampler
from soundomni.core.errors import DataError, SoundOmniError, SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.decoding import sample_text
from soundomni.core.inference.editing import Kept, known_frames
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.inference.variation import beginning
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import Representation
from soundomni.core.sequence import PositionRule, context_length
from soundomni.core.spec.schema import GuidanceSpec, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.flow import XPrediction

WORDS = st.sampled_from(["", "one", "two three four", "five zero five"])
GUIDANCE = GuidanceSpec(scale=2.5, interval=(0.2, 0.9), renormalize="global")
PROJECTED = GuidanceSpec(scale=4.0, rescale=0.7, parallel=0.2, norm_threshold=3.0)


@st.composite
def audio_requests(draw: st.DrawFn) -> AudioRequest:
    """A clip to make: some context, some negative prompt, and now and then frames that are given."""
    frames, seed = draw(st.integers(1, 9)), draw(st.integers(0, 2**63 - 1))
    context, negative = contexts_of(MODELS["modality"], [draw(WORDS), draw(WORDS)])
    request = AudioRequest(context=context, negative=negative, slot=slot(frames, PositionRule.SHARED), seed=seed)
    if draw(st.booleans()):
        return request
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=frames, max_size=frames)))
    return replace(request, known=torch.randn(16, frames, generator=torch.Generator().manual_seed(3)), known_mask=mask)


def make(name: str, batch: Sequence[AudioRequest], sampler: str = "heun", guidance: GuidanceSpec = GUIDANCE) -> Representation:
    built = build_sampler(Slot(sampler, {"num_steps": 3}))
    batch = [replace(request, slot=slot(request.num_frames, rule(name))) for request in batch]
    return sample_audio(MODELS[name], batch, sampler=built, guidance=guidance)


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=8, deadline=None)
@given(requests=st.lists(audio_requests(), min_size=2, max_size=4))
def test_batched_audio_equals_single(name: str, requests: list[AudioRequest]) -> None:
    together = make(name, requests)
    for row, request in enumerate(requests):
        alone = make(name, [request])
        frames = request.num_frames
        torch.testing.assert_close(together.values[row : row + 1, :, :frames], alone.values, rtol=1e-5, atol=1e-5)
        assert not together.values[row, :, frames:].any() and together.lengths[row] == frames


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m-sde", "ddim", "ddim-cfgpp", "pingpong"])
@settings(max_examples=4, deadline=None)
@given(requests=st.lists(audio_requests(), min_size=2, max_size=3))
def test_batched_audio_equals_single_with_noise_of_its_own_and_projected_guidance(sampler: str, requests: list[AudioRequest]) -> None:
    together = make("modality", requests, sampler, PROJECTED)
    for row, request in enumerate(requests):
        alone = make("modality", [request], sampler, PROJECTED)
        torch.testing.assert_close(together.values[row : row + 1, :, : request.num_frames], alone.values, rtol=1e-5, atol=1e-5)


def test_what_is_rescaled_is_what_the_network_gives() -> None:
    """A network that predicts the data: one step from pure noise ends on them, with the deviation of the conditional prediction."""
    model = deepcopy(MODELS["modality"])
    model.made().objective = XPrediction()
    context, negative = contexts_of(model, ["one", ""])
    request = AudioRequest(context=context, negative=negative, slot=slot(5, PositionRule.SHARED), seed=3)
    deviations = []
    for guidance in (GuidanceSpec(), GuidanceSpec(scale=90.0), GuidanceSpec(scale=90.0, rescale=1.0)):
        made = sample_audio(model, [request], sampler=build_sampler(Slot("euler", {"num_steps": 1})), guidance=guidance)
        deviations.append(made.values.std(1))
    torch.testing.assert_close(deviations[2], deviations[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(deviations[1], deviations[0], rtol=1e-2)


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=6, deadline=None)
@given(clips=st.lists(st.tuples(st.integers(20, 90), WORDS), min_size=1, max_size=4), count=st.integers(1, 6))
def test_batched_text_equals_single_and_greedy_decoding_of_the_whole_sequence(name: str, clips: list[tuple[int, str]], count: int) -> None:
    model = MODELS[name]
    contexts = [heard(clip(length, length)) + ((writer().text(words),) if words else ()) for length, words in clips]
    together = sample_text(model, contexts, tokenizer=TOKENIZER, max_new_tokens=count)
    for context, ids in zip(contexts, together, strict=True):
        assert sample_text(model, [context], tokenizer=TOKENIZER, max_new_tokens=count) == [ids]
        assert ids == greedy(model, context, count)


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "midpoint", "rk4", "dpmpp", "dpmpp-2m", "dpmpp-3m-sde", "ddim", "ddim-cfgpp", "pingpong"]
)
@settings(max_examples=5, deadline=None)
@given(requests=st.lists(audio_requests(), min_size=1, max_size=3))
def test_given_frames_come_back_exactly(sampler: str, requests: list[AudioRequest]) -> None:
    made = make("modality", requests, sampler)
    for row, request in enumerate(requests):
        if request.known is not None and request.known_mask is not None:
            values = made.values[row, :, : request.num_frames]
            assert torch.equal(values[:, request.known_mask], request.known[:, request.known_mask])


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=6, deadline=None)
@given(request=audio_requests())
def test_given_frames_are_shown_clean_to_the_others_as_in_the_whole_sequence(name: str, request: AudioRequest) -> None:
    """Euler's method by hand, the whole sequence computed at every step, with timestep 0 at given frames."""
    assume(request.known is not None)
    assert request.known is not None and request.known_mask is not None
    noise = torch.randn(request.num_frames, 16, generator=torch.Generator().manual_seed(request.seed)).T
    values = torch.where(request.known_mask, request.known, noise)[None]
    for t, after in pairwise(torch.linspace(1, 0, 4).tolist()):
        timesteps = torch.full((1, request.num_frames), t).masked_fill(request.known_mask, 0.0)
        with torch.no_grad():
            velocity = one_forward(MODELS[name], request.context, values.double(), timesteps, rule(name)).float()
        values = torch.where(request.known_mask, values, values + (after - t) * velocity)
    made = make(name, [request], "euler", GuidanceSpec()).values
    torch.testing.assert_close(made, values, rtol=1e-5, atol=1e-5)


def omni(max_tokens: int | None = None) -> SoundOmni:
    spec = Spec(model=model_spec(sampler=Slot("euler", {"num_steps": 2}), guidance=GuidanceSpec(scale=2.0)))
    return SoundOmni(MODELS["modality"], spec, TOKENIZER, max_tokens=max_tokens)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 200),
    spans=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 200)).map(sorted), min_size=1, max_size=3),
)
def test_known_frames_are_those_that_nothing_outside_the_spans_changes(samples: int, spans: list[list[int]]) -> None:
    spans = [span for span in spans if span[0] < span[1] <= samples]
    assume(spans)
    codec = MODELS["modality"].made().codec
    inside = np.zeros(samples, dtype=bool)
    for start, end in spans:
        inside[start:end] = True
    first, second = (torch.from_numpy(np.where(inside, clip(0, samples), clip(seed, samples)))[None] for seed in (1, 2))
    lengths = torch.tensor([samples])
    same = (codec.encode(first, lengths).values == codec.encode(second, lengths).values).all(1)[0].numpy()
    seconds = [(start / RATE, end / RATE) for start, end in spans]
    if not same.any() or same.all():
        with pytest.raises(SpecError, match="nothing is left to make" if same.all() else "no whole frame"):
            known_frames(seconds, codec.spec, num_samples=samples, num_given=samples)
    else:
        assert (known_frames(seconds, codec.spec, num_samples=samples, num_given=samples) == same).all()


def test_a_clip_is_continued_and_a_gap_is_filled() -> None:
    model = omni()
    given_clip = Audio(clip(5, 160), RATE)
    whole = model.reconstruct(given_clip).waveform
    beginning, both_ends = Kept(given_clip, [(0.0, 0.16)]), Kept(given_clip, [(0.0, 0.05), (0.1, 0.16)])
    continued, filled, free = model.generate(["one"] * 3, seconds=0.32, seeds=[4, 4, 4], known=[beginning, both_ends, None])
    assert continued.waveform.shape == (1, 320)
    np.testing.assert_allclose(continued.waveform[:, :144], whole[:, :144], atol=1e-4)
    np.testing.assert_allclose(filled.waveform[:, :32], whole[:, :32], atol=1e-4)
    np.testing.assert_allclose(filled.waveform[:, 128:144], whole[:, 128:144], atol=1e-4)
    assert np.abs(filled.waveform[:, 64:96] - whole[:, 64:96]).max() > 0.01
    (alone,) = model.generate(["one"], seconds=0.32, seeds=4)
    np.testing.assert_allclose(free.waveform, alone.waveform, atol=1e-4)


@pytest.mark.parametrize("strength", [1e-5, 1e-20, 1e-200, 5e-324])
def test_the_slightest_strength_gives_the_clip_back(strength: float) -> None:
    model = omni()
    given_clip = Audio(clip(5, 160), RATE)
    (varied,) = model.generate(["one"], seconds=0.16, vary=given_clip, strength=strength, num_steps=3)
    np.testing.assert_allclose(varied.waveform, model.reconstruct(given_clip).waveform, atol=1e-3)


def test_a_variant_starts_from_the_clip_noised_in_part() -> None:
    model = omni()
    given_clip = Audio(clip(5, 160), RATE)
    settings_ = {"seconds": 0.16, "seeds": [4, 9], "vary": [given_clip, given_clip]}
    first, second = model.generate(["one", "two"], strength=0.4, num_steps=3, guidance_scale=1.0, **settings_)
    (context,) = contexts_of(model.model, ["one"])
    clean = model.model.made().encode(torch.from_numpy(given_clip.waveform)[None], torch.tensor([160])).values.double()
    noise = torch.randn(clean.shape[-1], 16, generator=torch.Generator().manual_seed(4)).T[None]
    begin = beginning(model.model, clean[0].float(), 0.4, slot=writer().target(160)).timestep
    values = (1 - begin) * clean + begin * noise
    for t, after in pairwise((begin, begin * 2 / 3, begin / 3, 0.0)):
        with torch.no_grad():
            velocity = one_forward(model.model, context, values, torch.full((1, clean.shape[-1]), t), rule("shared"))
        values = values + (after - t) * velocity
    made = Representation(values, torch.tensor([clean.shape[-1]]), model.model.made().codec.spec)
    np.testing.assert_allclose(first.waveform, model.model.made().decode(made)[0, :, :160].float().numpy(), atol=1e-4)
    assert np.abs(first.waveform - second.waveform).max() > 0.01


def test_the_strength_of_a_variant_leads_from_the_clip_to_one_made_from_the_prompt_alone() -> None:
    model = omni()
    given_clip = Audio(clip(5, 160), RATE)
    whole = model.reconstruct(given_clip).waveform
    made = [model.generate(["one"], seconds=0.16, vary=[given_clip], strength=s)[0].waveform for s in (1e-4, 0.3, 0.6, 1.0)]
    distances = [float(np.square(one - whole).mean()) for one in made]
    assert distances == sorted(distances) and distances[0] < 1e-4 * distances[-1]
    (free,) = model.generate(["one"], seconds=0.16)
    np.testing.assert_allclose(made[-1], free.waveform, atol=1e-5)


def test_a_variant_keeps_what_is_kept() -> None:
    model = omni()
    given_clip = Audio(clip(5, 320), RATE)
    whole = model.reconstruct(given_clip).waveform
    (made,) = model.generate(["one"], seconds=0.32, vary=[given_clip], strength=0.8, known=[Kept(given_clip, [(0.0, 0.16)])])
    np.testing.assert_allclose(made.waveform[:, :144], whole[:, :144], atol=1e-4)
    assert np.abs(made.waveform[:, 176:] - whole[:, 176:]).max() > 0.01


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"strength": 0.2}, "strength is 0.2, but there is no clip to vary. Pass the clip as vary, or leave strength out"),
        ({"strength": 0.5}, "there is no clip to vary"),
        ({"vary": []}, "vary has length 0; expected 1, one for each prompt"),
        (
            {"vary": [Audio(clip(0, 100), RATE)], "strength": 0.0},
            "strength is 0; expected a number above 0 (the clip as it is) and at most 1",
        ),
        ({"vary": [Audio(clip(0, 100), RATE)], "strength": float("nan")}, "strength is nan; expected a number above 0"),
        ({"vary": [Audio(clip(0, 100), RATE)], "strength": 1.5}, "strength is 1.5; expected a number above 0"),
        ({"seconds": float("inf")}, "seconds is inf; expected a number above 0 and at most 86,400"),
        ({"seconds": float("nan")}, "seconds is nan; expected a number above 0"),
        ({"guidance_scale": float("nan")}, "the guidance scale is nan; expected a number from"),
        ({"guidance_scale": float("inf")}, "the guidance scale is inf; expected a number from"),
        ({"negative_prompt": "two", "guidance_scale": 1.0}, "a negative prompt does nothing"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"num_steps": 10**12}, "num_steps is 1000000000000; expected at most"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"seeds": -1}, "the seed is -1; expected a whole number from 0"),
        ({"seeds": [2**63]}, "the seed is 9223372036854775808; expected a whole number from 0"),
        ({"seeds": [1, 2]}, "seeds has length 2; expected 1, one for each prompt"),
        (
            {"prompts": ["one", "two"], "seeds": 2**63 - 1},
            "the seed is 9223372036854775807, and 2 seeds count up from it; expected at most 9223372036854775806. Set a smaller seed",
        ),
        ({"known": []}, "known has length 0; expected 1, one for each prompt"),
        (
            {"known": [Kept(Audio(clip(0, 100), RATE), [(0.0, 0.2)])]},
            "the span to keep is (0.0, 0.2); expected (from, to) with 0 <= from < to <= 0.1 s",
        ),
        ({"known": [Kept(Audio(clip(0, 100), RATE), [(0.05, 0.05)])]}, "0 <= from < to <= 0.1 s"),
        ({"known": [Kept(Audio(clip(0, 100), RATE), [(0.0, float("nan"))])]}, "0 <= from < to <= 0.1 s"),
        ({"known": [Kept(Audio(clip(0, 100), RATE), [(0.0, 1e308)])]}, "0 <= from < to <= 0.1 s"),
        ({"known": [Kept(Audio(clip(0, 100), RATE), [(0.001, 0.01)])]}, "no whole frame"),
        ({"known": [Kept(Audio(clip(0, 100), RATE), [])]}, "no whole frame"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(settings_: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(SpecError) as refused:
        omni().generate(**{"prompts": ["one"], "seconds": 0.2, **settings_})
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("settings_", [{"max_new_tokens": 0}, {"max_new_tokens": 10**9}, {"batch_size": 0}])
def test_what_cannot_be_said_is_refused(settings_: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(SpecError, match="expected at"):
        omni().describe([Audio(clip(0, 50), RATE)], **settings_)


def test_clips_beyond_the_length_of_training_are_refused_and_what_is_said_to_fit_fits() -> None:
    text = context_length((writer().text("one two"),))
    model = omni(max_tokens=text + 2 + 21)  # 20 hops of 16 samples, and the frame that closes the overlap
    expected = rf"0.321 s of audio and a prompt of {text} tokens take {text + 24} tokens; .* at most {text + 23}\. Ask for at most 0.32 s"
    with pytest.raises(DataError, match=expected):
        model.generate(["one two"], seconds=0.321)
    assert model.generate(["one two"], seconds=0.32)[0].waveform.shape == (1, 320)
    assert omni().generate(["one two"], seconds=0.321)[0].waveform.shape == (1, 321)
    with pytest.raises(DataError, match="Shorten the prompt"):
        model.generate(["one two three " * 40], seconds=0.016)
    with pytest.raises(DataError, match="Shorten the negative prompt"):
        model.generate(["one"], seconds=0.016, negative_prompt="one two three " * 40)


@pytest.mark.parametrize("question", [None, "two three"])
def test_hearing_beyond_the_length_of_training_is_refused_and_what_is_said_to_fit_fits(question: str | None) -> None:
    encoder = MODELS["modality"].all_heard[0].encoder
    assert encoder is not None
    asked = context_length((writer().text(question),)) if question else 0
    longest = max(n for n in range(1, 301) if encoder.num_tokens(n) == encoder.num_tokens(300))
    model = omni(max_tokens=encoder.num_tokens(longest) + 2 + asked + 1)
    assert len(model.describe([Audio(clip(0, longest), RATE)], question=question)) == 1
    beyond = next(n for n in range(longest, 2000) if encoder.num_tokens(n) > encoder.num_tokens(longest))
    with pytest.raises(DataError, match=rf"Cut the clip to at most {(beyond - 1) / RATE:g} s"):
        model.describe([Audio(clip(0, beyond), RATE)], question=question)
    with pytest.raises(DataError, match="Shorten the question"):
        model.describe([Audio(clip(0, 50), RATE)], question="one two three " * 40)


def test_a_text_ends_where_the_sample_is_as_long_as_in_training() -> None:
    clips = [Audio(clip(seed, length), RATE) for seed, length in ((1, 30), (2, 90))]
    free = omni().describe(clips, max_new_tokens=8)
    contexts = [omni().contexts.clip(one, None) for one in clips]
    ids = sample_text(MODELS["modality"], contexts, tokenizer=TOKENIZER, max_new_tokens=8)
    limit = context_length(contexts[1]) + 2
    rooms = [limit - context_length(context) for context in contexts]
    expected = [TOKENIZER.decode(one[:room]) for one, room in zip(ids, rooms, strict=True)]
    assert omni(limit).describe(clips, max_new_tokens=8) == expected
    assert len(ids[1]) > 2 and expected[1] != free[1]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: object) -> None:
    with pytest.raises(SoundOmniError, match=f"no device '{device}' here; expected one of: cpu"):
        SoundOmni.from_pretrained(str(tmp_path), device=device)
