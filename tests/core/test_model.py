"""The unified model: packed = unpacked, cached = uncached; losses counted before they are computed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import MODELS, TOKENIZER, clip, contexts_of, heard, model_spec, one_forward, pack, rule, slot

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import SpecError
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.sampling import AudioSlots
from soundomni.core.sequence import Attend, PackedBatch, PositionRule, Role, Sample, Segment, audio_segment, next_position, text_segment


def latent_segment(model: UnifiedModel, seed: int, samples: int, attend: Attend, positions: PositionRule) -> Segment:
    bare = audio_segment(
        role=Role.LATENT,
        attend=attend,
        num_frames=model.made().codec.spec.num_frames(samples),
        num_samples=samples,
        boundary_ids=(TOKENIZER.audio_bos, TOKENIZER.audio_eos),
        positions=positions,
    )
    return bare.with_waveform(clip(seed, samples))


def text(words: str, *, loss: bool = False) -> Segment:
    return text_segment(TOKENIZER.encode(words), bos=TOKENIZER.bos, eos=TOKENIZER.eos, loss=loss)


def sample(model: UnifiedModel, name: str, seed: int) -> Sample:
    """A document of one of five kinds, chosen by the seed."""
    rng = np.random.default_rng(seed)
    samples = int(rng.integers(20, 90))
    audible = heard(clip(seed, samples))
    target = latent_segment(model, seed, samples, Attend.NOISE, rule(name))
    kinds: list[tuple[Segment, ...]] = [
        (text("one two"), target),
        (*audible, text("three four five", loss=True)),
        (target,),
        (text("zero"), latent_segment(model, seed + 1, 40, Attend.FULL, rule(name)), target, text("two", loss=True)),
        (*audible, text("five"), target),
    ]
    return Sample(key=str(seed), segments=kinds[seed % len(kinds)], seed=seed)


def losses(model: UnifiedModel, batch: PackedBatch) -> dict[str, tuple[float, float]]:
    return {name: (total.item(), count.item()) for name, (total, count) in model(batch).items()}


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=12, deadline=None)
@given(seeds=st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True))
def test_packed_equals_unpacked(name: str, seeds: list[int]) -> None:
    model = MODELS[name]
    samples = [sample(model, name, seed) for seed in seeds]
    together = losses(model, pack(samples))
    alone = [losses(model, pack([one])) for one in samples]
    for loss in ("ce", "velocity"):
        assert together[loss][1] == sum(one[loss][1] for one in alone)
        assert together[loss][0] == pytest.approx(sum(one[loss][0] for one in alone), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=10, deadline=None)
@given(seeds=st.lists(st.integers(0, 60), max_size=5, unique=True))
def test_losses_are_counted_before_they_are_computed(name: str, seeds: list[int]) -> None:
    model = MODELS[name]
    batch = pack([sample(model, name, seed) for seed in seeds])
    counted = model.count_terms(batch)
    computed = losses(model, batch)
    assert counted == {loss: count for loss, (_, count) in computed.items()}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("kinds", [[], [2], [1], [0, 3]])
def test_every_trainable_parameter_has_a_gradient_whatever_the_batch_holds(name: str, kinds: list[int]) -> None:
    model = copy.deepcopy(MODELS[name])
    sum(total for total, _ in model(pack([sample(model, name, seed) for seed in kinds])).values()).backward()
    lacking = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=8, deadline=None)
@given(
    words=st.lists(st.sampled_from(["", "one", "two three four", "five zero five"]), min_size=1, max_size=4),
    frames=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    t=st.floats(0.0, 1.0),
)
def test_cached_and_batched_predictions_equal_the_whole_sequence_alone(name: str, words: list[str], frames: list[int], t: float) -> None:
    model = MODELS[name]
    contexts = contexts_of(model, words)
    frames = frames[: len(words)]
    with torch.no_grad():
        cache = make_cache(model, contexts, room=max(frames) + 2)
        slots = AudioSlots(
            model,
            cache,
            [slot(count, rule(name)) for count in frames],
            positions=[next_position(context) for context in contexts],
        )
        values = torch.randn(len(words), 16, max(frames), dtype=torch.float64)
        for _ in range(2):  # a slot is rewritten at every step: the second call must not see the first
            cached = slots.predict(values, torch.full((len(words), max(frames)), t).double())
        for row, context in enumerate(contexts):
            at = torch.full((1, frames[row]), t)
            whole = one_forward(model, context, values[row : row + 1, :, : frames[row]], at, rule(name))
            torch.testing.assert_close(cached[row : row + 1, :, : frames[row]], whole, rtol=1e-7, atol=1e-8)


def test_a_noise_target_is_not_seen_by_what_follows() -> None:
    model = MODELS["modality"]
    context, after = text("one"), text("three four", loss=True)
    results = []
    for seed in (1, 2):
        target = latent_segment(model, seed, 40, Attend.NOISE, PositionRule.SHARED)
        results.append(losses(model, pack([Sample(key="x", segments=(context, target, after), seed=seed)])))
    assert results[0]["velocity"] != results[1]["velocity"]
    assert results[0]["ce"][0] == pytest.approx(results[1]["ce"][0], rel=1e-12)


@pytest.mark.parametrize("part", ["und", "gen", "embedding", "encoder", "connectors"])
def test_freezing_a_part_freezes_just_that_part(part: str) -> None:
    unfitted = model_spec(normalize="none")
    free = build_model(unfitted, vocab_size=TOKENIZER.vocab_size)
    frozen = build_model(replace(unfitted, freeze=[part]), vocab_size=TOKENIZER.vocab_size)
    before = {name for name, p in free.named_parameters() if p.requires_grad}
    after = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert after < before
    sum(
        total for total, _ in frozen(PackedBatch.from_samples([sample(frozen, "modality", 0), sample(frozen, "modality", 1)])).values()
    ).backward()
    assert {name for name, p in frozen.named_parameters() if p.grad is not None} == after


def test_freezing_something_that_does_not_exist_is_a_mistake_in_the_spec() -> None:
    with pytest.raises(SpecError, match="unknown part 'generation'"):
        build_model(replace(model_spec(), freeze=["generation"]), vocab_size=TOKENIZER.vocab_size)


def test_the_same_seed_builds_the_same_model() -> None:
    first, second, other = (build_model(model_spec(), vocab_size=TOKENIZER.vocab_size, seed=s).state_dict() for s in (5, 5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
