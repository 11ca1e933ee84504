"""Clips that are added to the one that is made: in packed training, in generation, and what does not fit.

Shape letters: K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_aligned import ACOUSTIC, MEL, RATE, SEMANTIC, TOKENS, aligned_model, aligned_spec, aligned_writer
from tiny_models import TOKENIZER, clip

from soundomni import Kept, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.errors import DataError, SpecError
from soundomni.core.inference.sampling import AudioSlots, make_cache, sample_audio
from soundomni.core.interfaces import Encoding, Item, Predict, Sampler
from soundomni.core.representation import HIDDEN, Representation
from soundomni.core.sequence import PackedBatch, Sample, next_position
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import DataSpec, GuidanceSpec, MixtureEntry, ModalitySpec, SegmentTemplate, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.core.writing.tasks import build_tasks
from soundomni.train.memory.activations import measure_step
from soundomni.train.memory.typical_batch import typical_batch

SPEC = aligned_spec()
MODEL = aligned_model(SPEC)
OMNI = SoundOmni(MODEL, Spec(model=SPEC), TOKENIZER)
TASKS = build_tasks({"semantic": [SegmentTemplate(audio="target", of="semantic")]})
GUIDED = GuidanceSpec(scale=3.0)


def sample(seconds: float, seed: int, task: str = "generate", model: Any = MODEL, spec: Any = SPEC, **dropout: object) -> Sample:
    """One clip, read."""
    samples = round(seconds * RATE)
    writer = aligned_writer(model, spec, **dropout)
    item = Item(key=str(seed), num_samples=samples, sample_rate=RATE, captions=("one two",))
    planned = writer.plan(item, TASKS[task], seed=seed, key=str(seed))
    return writer.fill(planned, clip(seed, samples), RATE)  # type: ignore[arg-type]


def losses(model: Any, batch: PackedBatch) -> dict[str, float]:
    with torch.no_grad():
        return {name: float(total) for name, (total, _) in model(batch).items()}


def test_a_sample_holds_the_aligned_clips_without_tokens_for_them() -> None:
    text, target = sample(0.1, 0).segments
    assert [other.modality for other in target.aligned] == ["semantic", "mel"]
    assert target.num_frames == 13 and {other.num_frames for other in target.aligned} == {13}
    assert all(other.waveform is not None for other in target.aligned)
    batch = PackedBatch.from_samples([sample(0.1, 0), sample(0.05, 1, modalities={"mel": 1.0})])
    assert batch.table.num_tokens == 2 * text.length + (13 + 2) + (7 + 2)
    assert batch.of("semantic").added_to == (("acoustic", 0), ("acoustic", 1)) and batch.of("mel").added_to == (("acoustic", 0),)
    assert batch.of("acoustic").added_to == ()


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_packed_losses_are_those_of_each_sample_by_itself(data: st.DataObject) -> None:
    """Other samples, with or without aligned clips, change nothing."""
    samples = []
    for seed in range(data.draw(st.integers(2, 4))):
        left_out = dict.fromkeys(data.draw(st.sets(st.sampled_from(["semantic", "mel", "text"]))), 1.0)
        samples.append(sample(data.draw(st.integers(1, 120)) / RATE, seed, modalities=left_out))
    together = losses(MODEL, PackedBatch.from_samples(samples))
    apart = [losses(MODEL, PackedBatch.from_samples([one])) for one in samples]
    for name, total in together.items():
        assert total == pytest.approx(sum(one[name] for one in apart), rel=1e-4, abs=1e-4)


def test_what_is_added_is_the_sum_of_the_connectors() -> None:
    """The losses with aligned clips are those of frames to which the others were added by hand."""
    one = sample(0.1, 3)
    batch, bare = (PackedBatch.from_samples([s]) for s in (one, without_aligned(one)))
    added = sum(MODEL.modalities[name].enter_context(batch.of(name)) for name in ("semantic", "mel"))
    acoustic = MODEL.made()
    enter = acoustic.enter
    acoustic.enter = lambda clips: (lambda own: replace(own, hidden=own.hidden + added))(enter(clips))  # type: ignore[method-assign]
    try:
        expected = losses(MODEL, bare)
    finally:
        del acoustic.enter
    assert losses(MODEL, batch) == pytest.approx(expected, rel=1e-5)
    assert losses(MODEL, bare) != pytest.approx(expected, rel=1e-3)


def without_aligned(one: Sample) -> Sample:
    return replace(one, segments=tuple(replace(segment, aligned=()) for segment in one.segments))


def test_all_connectors_learn_and_take_part_without_clips() -> None:
    for batch in ([sample(0.1, 0)], [sample(0.1, 0, modalities={"semantic": 1.0, "mel": 1.0})], []):
        MODEL.zero_grad()
        torch.stack([total for total, _ in MODEL(PackedBatch.from_samples(batch)).values()]).sum().backward()
        assert all(p.grad is not None for p in MODEL.parameters() if p.requires_grad)
    MODEL.zero_grad()
    MODEL(PackedBatch.from_samples([sample(0.1, 0)]))["masked"][0].backward()
    for name in ("semantic", "mel"):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in MODEL.modalities[name].connector.parameters())


def test_dropout_leaves_them_out_singly_and_together_and_shifts_no_other_draw() -> None:
    def kept(**dropout: object) -> list[tuple[str, ...]]:
        return [tuple(one.modality for one in sample(0.02, seed, **dropout).segments[-1].aligned) for seed in range(200)]

    singly = kept(modalities={"semantic": 0.5})
    assert 60 < singly.count(("mel",)) < 140 and set(singly) == {("mel",), ("semantic", "mel")}
    assert set(kept(latent=0.5, features=0.5)) == {(), ("mel",), ("semantic",), ("semantic", "mel")}
    together = kept(together={"semantic+mel": 0.5})
    assert set(together) == {(), ("semantic", "mel")} and 60 < together.count(()) < 140
    for seed in range(20):
        plain, dropped = (sample(0.1, seed, "continue", modalities={"text": 0.5, "semantic": share}) for share in (0.0, 0.7))
        assert len(plain.segments) == len(dropped.segments)
        assert np.array_equal(plain.segments[-1].known, dropped.segments[-1].known)  # type: ignore[arg-type]


@pytest.mark.parametrize("router", ["dense", "modality"])
def test_cached_prediction_is_that_of_the_whole_sequence(router: str) -> None:
    """The loss of the prediction of a slot behind a cached prompt is that of the training batch."""
    spec = aligned_spec(router)
    model = aligned_model(spec)
    one = sample(0.1, 5, model=model, spec=spec)
    batch = PackedBatch.from_samples([one])
    query = model.made().corrupt(batch.of("acoustic"))
    *context, slot = one.segments
    with torch.no_grad():
        cache = make_cache(model, [tuple(context)], room=slot.length)
        slots = AudioSlots(model, cache, [slot], positions=[next_position(tuple(context))], added=model.aligned_frames([slot]))
        found, _ = model.made().objective.loss(slots.predict(query.inputs, query.timesteps), query)["masked"]
    assert float(found) == pytest.approx(losses(model, batch)["masked"], rel=1e-5)


def requests(seeds: Sequence[int], seconds: float = 0.1) -> list[Any]:
    builder = OMNI.requests(seconds)
    given = [{"semantic": Audio(clip(seed, 120), RATE), "mel": Audio(clip(seed, 240), 2 * RATE)} for seed in seeds]
    return [builder.request("one", seed=seed, given=each) for seed, each in zip(seeds, given, strict=True)]


class Once(Sampler):
    """Asks for one prediction, at the start, and keeps it."""

    takes = "logits"
    num_steps = 1

    def num_evaluations(self, start: Representation) -> int:
        return 1

    def sample(self, predict: Predict, start: Representation, **rest: Any) -> Representation:
        self.prediction = predict(start.values, torch.ones(len(start.values)))
        return start.with_values(start.values.clamp_min(0))


def predictions(request: Any, scale: float) -> torch.Tensor:
    sampler = Once()
    sample_audio(MODEL, [request], sampler=sampler, guidance=GuidanceSpec(scale=scale))
    return sampler.prediction


def test_guidance_steers_away_from_what_is_predicted_without_them() -> None:
    (request,) = requests([4])
    bare = replace(request, context=(), slot=replace(request.slot, aligned=()))
    conditional, unconditional = predictions(request, 1.0), predictions(bare, 1.0)
    expected = unconditional + 3.0 * (conditional - unconditional)
    torch.testing.assert_close(predictions(request, 3.0), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(conditional, predictions(replace(bare, context=request.context), 1.0), atol=1e-3)


def test_batched_clips_are_those_made_one_by_one() -> None:
    made = partial(OMNI.generate, guidance_scale=2.0)
    clips = [Audio(clip(seed, 100), RATE) for seed in range(3)]
    texts, seeds = ["one", "two", ""], [3, 4, 5]
    together = made(texts, seconds=0.1, seeds=seeds, given={"semantic": clips})
    for text, seed, semantic, expected in zip(texts, seeds, clips, together, strict=True):
        (found,) = made(text, seconds=0.1, seeds=seed, given={"semantic": semantic})
        assert np.allclose(found.waveform, expected.waveform, atol=1e-5)
    (other,) = made("one", seconds=0.1, seeds=3, given={"semantic": clips[1]})
    (none,) = made("one", seconds=0.1, seeds=3)
    assert not np.allclose(other.waveform, together[0].waveform) and not np.allclose(none.waveform, together[0].waveform)


def test_a_representation_serves_as_its_audio_does() -> None:
    clips = np.stack([clip(seed, 100) for seed in range(2)])
    made = MODEL.modalities["semantic"].codec.encode(torch.from_numpy(clips), torch.tensor([100, 100]))
    handed_on, heard = (
        OMNI.generate(["one", "two"], seconds=0.1, given={"semantic": each})
        for each in (made, [Audio(waveform, RATE) for waveform in clips])
    )
    each_alone = [Representation(made.values[i : i + 1], made.lengths[i : i + 1], made.spec, made.frame_counts[i : i + 1]) for i in (0, 1)]
    listed = OMNI.generate(["one", "two"], seconds=0.1, given={"semantic": each_alone})
    for first, second, third in zip(handed_on, heard, listed, strict=True):
        assert np.array_equal(first.waveform, second.waveform) and np.array_equal(first.waveform, third.waveform)


def test_one_given_clip_is_read_once_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, calls = MODEL.modalities["semantic"].codec, []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda *args, **rest: calls.append(1) or encode(*args, **rest))
    OMNI.generate(["one", "two", "three"], seconds=0.1, given={"semantic": Audio(clip(0, 100), RATE)})
    assert len(calls) == 1


def test_kept_parts_stay_and_the_rest_follows_what_is_added() -> None:
    kept = Kept(Audio(clip(9, 50), RATE), [(0.0, 0.05)])
    request, other = (
        OMNI.requests(0.1).request("one", seed=1, kept=kept, given={"semantic": Audio(clip(seed, 100), RATE)}) for seed in (0, 1)
    )
    sampler = OMNI._sampler("acoustic", None)
    first, second = (sample_audio(MODEL, [each], sampler=sampler, guidance=GUIDED).values for each in (request, other))
    known = request.known_mask
    assert known is not None and known.any() and not known.all()
    assert torch.equal(first[0, :, known], request.known[:, known]) and torch.equal(second[0, :, known], request.known[:, known])  # type: ignore[index]
    assert not torch.equal(first, second)


def test_a_modality_may_be_made_and_added() -> None:
    """Groups of losses add up to the whole, although some of its clips are only added."""
    both = replace(ACOUSTIC, guidance=GuidanceSpec(), aligned=["semantic"])
    semantic = replace(SEMANTIC, objective=Slot("masked"), sampler=Slot("maskgit", {"iterations": [2]}))
    spec = aligned_spec(acoustic=both, semantic=semantic)
    model = aligned_model(spec)
    samples = [
        replace(sample(0.1, 0, model=model, spec=spec), group="a"),
        replace(sample(0.08, 1, "semantic", model=model, spec=spec), group="b"),
        replace(sample(0.05, 2, model=model, spec=spec), group="b"),
    ]
    batch = PackedBatch.from_samples(samples)
    assert model.count_terms(batch) == {"ce": 0.0, "acoustic.masked": 13.0 + 7.0, "semantic.masked": 10.0}
    found = losses(model, batch.broken_down())
    for name in ("acoustic.masked", "semantic.masked"):
        assert found[name] == pytest.approx(found[f"{name}/a"] + found[f"{name}/b"], rel=1e-5) and found[name] > 0
    assert found["semantic.masked/a"] == 0


def test_abilities_say_what_can_be_given() -> None:
    assert OMNI.abilities().made[0].aligned == ("semantic", "mel")


HALF = Slot("hubert-kmeans", {**TOKENS, "frames_per_second": RATE / 16})
LAPPED = ModalitySpec(codec=Slot("mdct", {"sample_rate": RATE, "frame_size": 8}), connector=Slot("linear"))
ONE_EACH = "acoustic.aligned names 'semantic', which needs one token for each frame, but a clip of 1250 frames takes "
OTHER_ONE_EACH = ONE_EACH + "12.. tokens in 'semantic'"
COARSE = replace(MEL, encoder=Slot("log-mel", {**MEL.encoder.init_args, "hop_length": 4}))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        *(
            ("acoustic", replace(ACOUSTIC, objective=Slot("autoregressive", {"order": order}), sampler=Slot("next-token")), ONE_EACH)
            for order in ("flat", "levels", "delay", "frames")
        ),
        *(
            ("semantic", replace(SEMANTIC, objective=Slot("autoregressive", {"order": order}), sampler=Slot("next-token")), OTHER_ONE_EACH)
            for order in ("flat", "levels", "delay", "frames")
        ),
        ("semantic", replace(SEMANTIC, codec=HALF), "acoustic.aligned names 'semantic', with 62.5 frames per second; 'acoustic' has 125. "),
        ("semantic", LAPPED, "acoustic.aligned names 'semantic', with 1 extra frames per clip; 'acoustic' has 0"),
        ("mel", COARSE, r"acoustic.aligned names 'mel', with 1 tokens for a clip of 0.009 s; 'acoustic' has 2"),
    ],
)
def test_rates_that_differ_are_refused_when_the_model_is_built(name: str, other: ModalitySpec, expected: str) -> None:
    with pytest.raises(SpecError, match=f"model.modalities.{expected}"):
        aligned_model(aligned_spec(**{name: other}))


@pytest.mark.parametrize(
    ("aligned", "expected"),
    [
        (["codes"], r"model.modalities.codes.aligned\[0\] is 'codes'; expected one of latent, features"),
        (["latent", "latnet"], r"codes.aligned\[1\] is 'latnet'; expected one of latent, features. Did you mean 'latent'"),
        (["latent", "latent"], r"codes.aligned\[1\] is 'latent', which is there already"),
    ],
)
def test_names_are_checked_when_the_spec_is_read(aligned: list[str], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        load_spec(["mixed"], [("model.modalities.codes.aligned", str(aligned))])


def test_only_what_is_made_has_aligned_clips() -> None:
    with pytest.raises(SpecError, match=r"features.aligned\[0\] is 'codes', but clips of 'features' are never made"):
        load_spec(["mixed"], [("model.modalities.features.aligned", "['codes']")])


def other_codec() -> Representation:
    codes = torch.zeros(1, 1, 13, dtype=torch.int64)
    return Representation(codes, torch.tensor([13]), replace(MODEL.modalities["semantic"].codec.spec, codebook_sizes=(500,)), (13,))


def codes_like(value: float, *, levels: int = 1, frames: int = 13) -> Representation:
    """Frames of the right codec whose last value is another."""
    values = torch.zeros(1, levels, frames, dtype=torch.tensor(value).dtype)
    values[..., -1] = value
    return Representation(values, torch.tensor([frames]), MODEL.modalities["semantic"].codec.spec, (frames,))


@pytest.mark.parametrize(
    ("given", "error", "expected"),
    [
        (lambda: {"semantik": Audio(clip(0, 100), RATE)}, SpecError, "given names 'semantik'.*semantic, mel. Did you mean 'semantic'"),
        (lambda: {"semantic": Audio(clip(0, 90), RATE)}, DataError, "given 'semantic' lasts 0.09 s; expected at least 0.1 s"),
        (lambda: {"semantic": [Audio(clip(0, 100), RATE)] * 2}, SpecError, r"given\['semantic'\] has length 2; expected 1"),
        (lambda: {"semantic": other_codec()}, DataError, r"codebook_sizes is \(500,\); the model's codec has \(9,\)"),
        (lambda: {"semantic": codes_like(9)}, DataError, "given 'semantic' has a code that is not in its codebook"),
        (lambda: {"semantic": codes_like(-1)}, DataError, "given 'semantic' has a code that is not in its codebook"),
        (lambda: {"semantic": codes_like(HIDDEN)}, DataError, "given 'semantic' has a code that is not in its codebook"),
        (
            lambda: {"semantic": codes_like(1.0)},
            DataError,
            "given 'semantic' is torch.float32 with 1 values per frame; expected int64 with 1",
        ),
        (lambda: {"semantic": codes_like(1, levels=2)}, DataError, "given 'semantic' is torch.int64 with 2 values per frame"),
        (lambda: {"semantic": codes_like(1, frames=12)}, DataError, "given 'semantic' lasts 12 frames; expected at least 13"),
        (lambda: {"mel": other_codec()}, DataError, "the model hears this modality. Give it as audio"),
        (lambda: ["semantic"], DataError, "given is .* expected a mapping of modalities to clips"),
        (lambda: {"semantic": "x.wav"}, DataError, "x.wav"),
    ],
)
def test_what_cannot_be_given_is_one_line(given: Callable[[], Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected) as raised:
        OMNI.generate("one", seconds=0.1, given=given())
    assert "\n" not in str(raised.value)


def test_encoded_clips_of_one_codec_cannot_be_added_to_others() -> None:
    encoding = Encoding(spec=MODEL.made().codec.spec, codec="soundstream")
    with pytest.raises(SpecError, match="task 'generate' adds clips of 'semantic', but those of data.datasets.mine are encoded"):
        aligned_writer(MODEL, SPEC).check_encoded(TASKS["generate"], encoding, name="mine")


def test_memory_of_a_step_counts_the_clips_that_are_added() -> None:
    data = DataSpec(datasets={"mine": MixtureEntry(source=Slot("toy-sounds"), tasks={"generate": 1.0})}, tokens_per_batch=300)
    with torch.device("meta"):
        model = build_model(SPEC, vocab_size=TOKENIZER.vocab_size)
    sizes = typical_batch(model, SPEC, data, seconds=0.4)
    count = sizes.samples["mine/generate"]
    hosts = tuple(("acoustic", i) for i in range(count))
    assert count > 1 and sizes.clips["semantic"].added_to == sizes.clips["mel"].added_to == hosts
    found = measure_step(model, sizes, bf16=False, sharded=False, recompute=False)
    with torch.device("meta"):
        bare = build_model(aligned_spec(acoustic=replace(ACOUSTIC, aligned=[])), vocab_size=TOKENIZER.vocab_size)
    less = measure_step(bare, typical_batch(bare, aligned_spec(), data, seconds=0.4), bf16=False, sharded=False, recompute=False)
    assert found.kept > less.kept and found.batch > less.batch
