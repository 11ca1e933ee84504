"""Several modalities in one model: latents and codes that are made, codes that are only given, and an encoder.

Shape letters: D latent dimensions, K codebooks, H hidden dimensions, N tokens, T frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TOKENIZER, clip, pack

from soundomni.core.assembly.build import build_model, build_sampler
from soundomni.core.assembly.modality import frame_places
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.sampling import AudioSlots, sample_audio
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.sequence import PackedBatch, Role, Sample, Segment, SegmentTable, next_position
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec, Slot, Spec
from soundomni.core.writing.segments import SegmentWriter

RATE = 1000
HARMONIC = {"sample_rate": RATE, "num_harmonics": 2, "pitch_range": [150, 240]}
LATENTS = ModalitySpec(
    codec=Slot("mdct", {"sample_rate": RATE, "frame_size": 16}),
    connector=Slot("linear"),
    objective=Slot("flow-matching"),
    sampler=Slot("euler", {"num_steps": 2}),
    guidance=GuidanceSpec(scale=2.0),
    normalize="global",
    positions="shared",
)
CODES = ModalitySpec(
    codec=Slot("harmonic-codes", {**HARMONIC, "num_codebooks": 3, "codebook_size": 5, "frame_size": 16}),
    connector=Slot("codes"),
    objective=Slot("masked"),
    sampler=Slot("maskgit", {"iterations": [3, 2]}),
    guidance=GuidanceSpec(scale=1.5),
)
GIVEN = ModalitySpec(
    codec=Slot("harmonic-codes", {**HARMONIC, "num_codebooks": 2, "codebook_size": 4, "frame_size": 20}), connector=Slot("codes")
)
HEARD = ModalitySpec(
    encoder=Slot("log-mel", {"sample_rate": RATE, "n_fft": 64, "hop_length": 16, "num_mels": 8, "feature_dim": 16}),
    connector=Slot("mlp"),
)
MODALITIES = {"mel": HEARD, "fine": CODES, "latent": LATENTS, "rough": GIVEN}
"""Two of the role of codes; the order is not that of the roles."""
LOSSES = ("ce", "masked", "velocity")
MADE = ("fine", "latent")
WORDS = st.sampled_from(["", "one", "two three four", "five zero five"])
GUIDANCE = GuidanceSpec(scale=2.5, interval=(0.2, 0.9), renormalize="global")


def model_spec(router: str = "modality", modalities: dict[str, ModalitySpec] = MODALITIES) -> ModelSpec:
    return ModelSpec(
        backbone=Slot("mot", {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "qk_norm": "all"}),
        router=Slot(router),
        modalities=dict(modalities),
    )


def make_model(router: str = "modality", modalities: dict[str, ModalitySpec] = MODALITIES) -> UnifiedModel:
    """A model in float64 whose every parameter is random, fitted on noise."""
    model = build_model(model_spec(router, modalities), vocab_size=TOKENIZER.vocab_size, seed=1)
    model.executor = "reference"
    waveform = torch.from_numpy(np.stack([clip(seed, 160) for seed in range(4)]))
    batch = PackedBatch.from_samples([])
    for name, spec in modalities.items():
        if spec.codec is not None:
            clips = replace(batch.of(name), waveform=waveform, lengths=torch.full((4,), 160), seeds=(0, 1, 2, 3))
            model.modalities[name].fit([clips])
    torch.manual_seed(0)
    with torch.no_grad():
        for modality in model.each():
            for parameter in modality.connector.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double()


MODELS = {name: make_model(name) for name in ("modality", "dense", "top-k")}
MODEL = MODELS["modality"]
WRITER: SegmentWriter = segment_writer(MODEL, model_spec(), tokenizer=TOKENIZER)


def sounding(segment: Segment, seed: int) -> Segment:
    return segment.with_waveform(clip(seed, segment.num_samples))


KINDS: dict[str, Callable[[int, int], Segment]] = {
    "text": lambda seed, samples: WRITER.text("two one"),
    "answer": lambda seed, samples: WRITER.text("three four", loss=True),
    "mel": lambda seed, samples: sounding(WRITER.features(samples), seed),
    "rough": lambda seed, samples: sounding(WRITER.context(samples, of="rough"), seed),
    "fine": lambda seed, samples: sounding(WRITER.target(samples, of="fine"), seed),
    "fine in part": lambda seed, samples: sounding(WRITER.target(samples, of="fine", made=(1, 2)), seed),
    "fine given": lambda seed, samples: sounding(WRITER.context(samples, of="fine"), seed),
    "latent": lambda seed, samples: sounding(WRITER.target(samples, of="latent"), seed),
    "latent in part": lambda seed, samples: sounding(WRITER.target(samples, of="latent", made=(1, 2)), seed),
    "latent given": lambda seed, samples: sounding(WRITER.context(samples, of="latent"), seed),
}


SUBSETS = [kinds for count in range(6) for kinds in combinations(("answer", *MODALITIES), count)] + [tuple(KINDS)]


@st.composite
def documents(draw: st.DrawFn) -> Sample:
    """A document of any segments in any order, some of several modalities."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    seed = draw(st.integers(0, 1000))
    segments = tuple(KINDS[kind](seed + i, draw(st.integers(20, 90))) for i, kind in enumerate(kinds))
    return Sample(key=str(seed), segments=segments, seed=seed, group=draw(st.sampled_from(["a/x", "b/y"])))


def losses(model: UnifiedModel, batch: PackedBatch) -> dict[str, tuple[float, float]]:
    return {name: (total.item(), count.item()) for name, (total, count) in model(batch).items()}


def predictions(model: UnifiedModel, batch: PackedBatch) -> dict[str, torch.Tensor]:
    """What leaves the backbone of text, and what is predicted for each modality that is made, by token."""
    layout = model.plan(batch.table)
    entered = {modality.name: modality.enter(batch.of(modality.name)).hidden for modality in model.each()}
    streams, _ = model.backbone(layout.place({"text": model.backbone.embed(batch.text_ids), **entered}, 16), layout)
    made = {modality.name: modality.connector.leave(layout.take(streams, modality.name)) for modality in model.all_made}
    return {"text": model.backbone.head(layout.take(streams, "text")), **made}


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=8, deadline=None)
@given(samples=st.lists(documents(), min_size=1, max_size=5))
def test_packed_equals_each_document_on_its_own(name: str, samples: list[Sample]) -> None:
    model = MODELS[name]
    with torch.no_grad():
        together, found = losses(model, pack(samples)), predictions(model, pack(samples))
        single = [losses(model, pack([one])) for one in samples]
        alone = [predictions(model, pack([one])) for one in samples]
    for loss in LOSSES:
        assert together[loss][1] == sum(one[loss][1] for one in single)
        assert together[loss][0] == pytest.approx(sum(one[loss][0] for one in single), rel=1e-6, abs=1e-9)
    for modality, values in found.items():
        torch.testing.assert_close(values, torch.cat([one[modality] for one in alone]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=8, deadline=None)
@given(samples=st.lists(documents(), max_size=5))
def test_losses_are_counted_before_they_are_computed_and_those_of_groups_add_up(name: str, samples: list[Sample]) -> None:
    model, batch = MODELS[name], pack(samples)
    with torch.no_grad():
        computed = losses(model, batch.broken_down())
    whole = {loss: term for loss, term in computed.items() if "/" not in loss}
    assert model.count_terms(batch) == {loss: count for loss, (_, count) in whole.items()}
    assert tuple(whole) == model.loss_names
    for loss in LOSSES:
        parts = [term for key, term in computed.items() if key.startswith(f"{loss}/")]
        assert sum(count for _, count in parts) == whole[loss][1]
        assert sum(total for total, _ in parts) == pytest.approx(whole[loss][0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("present", SUBSETS, ids=lambda kinds: "+".join(kinds) or "nothing")
def test_a_batch_without_some_modalities_gives_every_parameter_a_gradient(name: str, present: Sequence[str]) -> None:
    model = MODELS[name]
    model.zero_grad(set_to_none=True)
    batch = pack([Sample(key=kind, segments=(KINDS[kind](3, 60),), seed=3) for kind in present])
    sum(total for total, _ in model(batch).values()).backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert [key for key, parameter in trained.items() if parameter.grad is None] == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in trained.values() if parameter.grad is not None)
    moved = {modality: any(bool(p.grad.any()) for p in model.modalities[modality].connector.parameters()) for modality in MODALITIES}
    expected = {modality: any(kind.startswith(modality) for kind in present) for modality in MODALITIES}
    expected["rough"] = False  # nothing is learned from a clip that nothing follows
    assert {modality: moved[modality] for modality in MADE} == {modality: expected[modality] for modality in MADE}
    model.zero_grad(set_to_none=True)


def test_what_follows_a_given_clip_of_codes_depends_on_it() -> None:
    samples = [Sample(key="x", segments=(KINDS["rough"](seed, 60), KINDS["fine"](3, 60)), seed=3) for seed in (1, 2)]
    first, second = (losses(MODEL, pack([sample])) for sample in samples)
    assert first["masked"][1] == second["masked"][1] and first["masked"][0] != second["masked"][0]


@settings(max_examples=15, deadline=None)
@given(samples=st.lists(documents(), max_size=4))
def test_modalities_of_one_role_are_stored_apart_and_come_back_in_order(samples: list[Sample]) -> None:
    batch = pack(samples)
    stored = MODEL.stored(batch.table)
    layout = MODEL.plan(batch.table)
    roles = {"text": Role.TEXT} | {modality.name: modality.role for modality in MODEL.each()}
    assert set(stored.runs) == set(roles)
    counts = {name: int(batch.of(name).num_frames.sum()) for name in MODALITIES} | {"text": len(batch.text_ids)}
    assert {name: end - first for name, (_, first, end) in stored.runs.items()} == counts
    for stream in range(len(MODEL.router.streams)):
        runs = sorted(run[1:] for run in stored.runs.values() if run[0] == stream)
        assert all(end <= first for (_, end), (first, _) in pairwise(runs)), "no two runs overlap"
    blocks = {name: torch.randn(count, 4) for name, count in counts.items()}
    streams = layout.place(blocks, 4)
    assert [len(stream) for stream in streams] == list(stored.stream_lengths)
    for name, block in blocks.items():
        assert torch.equal(layout.take(streams, name), block)
        tokens = stored.order[sum(stored.stream_lengths[: stored.runs[name][0]]) :][stored.runs[name][1] : stored.runs[name][2]]
        assert (np.diff(tokens) > 0).all(), "in the order of the batch"


@pytest.mark.parametrize("of", MADE)
@settings(max_examples=8, deadline=None)
@given(
    before=st.lists(st.tuples(WORDS, st.sampled_from(["", "mel", "rough", "latent given", "fine given"])), min_size=1, max_size=3),
    frames=st.lists(st.integers(2, 7), min_size=3, max_size=3),
    t=st.floats(0.05, 1.0),
)
def test_a_cached_slot_equals_the_whole_sequence(of: str, before: list[tuple[str, str]], frames: list[int], t: float) -> None:
    modality, rng = MODEL.made(of), torch.Generator().manual_seed(1)
    contexts = [
        (*([WRITER.text(words)] if words else []), *([KINDS[kind](i, 50)] if kind else [])) for i, (words, kind) in enumerate(before)
    ]
    ratio = modality.codec.spec.downsampling_ratio
    slots = [WRITER.target((count - 1) * ratio, of=of) for count in frames[: len(before)]]
    most = max(slot.num_frames for slot in slots)
    if of == "fine":
        values = torch.randint(-1, 5, (len(slots), 3, most), generator=rng)
    else:
        values = torch.randn(len(slots), 16, most, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        cache = make_cache(MODEL, contexts, room=most + 2)
        audio = AudioSlots(MODEL, cache, slots, positions=[next_position(context) for context in contexts])
        for _ in range(2):  # a slot is rewritten at every step: the second call must not see the first
            cached = audio.predict(values, torch.full((len(slots), most), t).double())
        for row, (context, slot) in enumerate(zip(contexts, slots, strict=True)):
            own, count = values[row : row + 1, :, : slot.num_frames], slot.num_frames
            filled = slot.with_waveform(np.zeros((1, slot.num_samples), np.float32))
            batch = pack([Sample(key="x", segments=(*context, filled))])
            layout = MODEL.plan(batch.table)
            places = frame_places(np.asarray([count]), count, MODEL.device)
            given_clips = {m.name: m.enter_context(batch.of(m.name)) for m in MODEL.each() if m.name != of and len(batch.of(m.name))}
            mine = modality.enter_frames(own, torch.full((1, count), t).double(), places)
            clips = batch.of(of)
            if len(clips) > 1:  # a given clip of the same modality comes first
                first = PackedBatch.from_samples([Sample(key="x", segments=context)])
                mine = torch.cat([modality.enter_context(double_clips(first).of(of)), mine])
            blocks = {"text": MODEL.backbone.embed(batch.text_ids), **given_clips, of: mine}
            streams, _ = MODEL.backbone(layout.place(blocks, 16), layout)
            output = modality.leave(layout.take(streams, of)[-count:], places, own)
            whole = modality.objective.predicted(output, own, torch.full((1, count), t).double())
            torch.testing.assert_close(cached[row : row + 1, :, :count].double(), whole.double(), rtol=1e-5, atol=1e-5)


def double_clips(batch: PackedBatch) -> PackedBatch:
    return replace(batch, clips={name: replace(clips, waveform=clips.waveform.double()) for name, clips in batch.clips.items()})


@st.composite
def requests(draw: st.DrawFn, of: str) -> AudioRequest:
    """A clip to make: some context, some negative prompt, and now and then frames that are given or varied."""
    spec = MODEL.made(of).codec.spec
    slot = WRITER.target(draw(st.integers(1, 6)) * spec.downsampling_ratio, of=of)
    words, avoided, frames = draw(WORDS), draw(WORDS), slot.num_frames
    context = (*([WRITER.text(words)] if words else []), *([KINDS["rough"](7, 50)] if draw(st.booleans()) else []))
    request = AudioRequest(
        context=context, negative=(WRITER.text(avoided),) if avoided else (), slot=slot, seed=draw(st.integers(0, 2**63 - 1))
    )
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 4, (3, frames), generator=generator) if of == "fine" else torch.randn(16, frames, generator=generator)
    if (kind := draw(st.sampled_from(["", "known", "varied"]))) == "known":
        mask = draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
        return replace(request, known=values, known_mask=torch.tensor(mask))
    return replace(request, varied=values) if kind else request


@pytest.mark.parametrize("of", MADE)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_clip_is_made_the_same_in_a_batch(of: str, data: st.DataObject) -> None:
    batch = data.draw(st.lists(requests(of), min_size=2, max_size=3))
    sampler = build_sampler(MODALITIES[of].sampler)  # type: ignore[arg-type]
    # a norm over a whole clip is a sum in float32, whose last bit depends on how far the batch is padded
    guidance = replace(GUIDANCE, renormalize="none") if of == "latent" else GUIDANCE
    make = partial(sample_audio, MODEL, sampler=sampler, begin=0.7)
    together, limited = make(batch, guidance=guidance), make(batch, guidance=GUIDANCE)
    for row, request in enumerate(batch):
        made = together.values[row, :, : request.num_frames]
        assert torch.equal(made, make([request], guidance=guidance).values[0])
        alone = make([request], guidance=GUIDANCE).values[0]
        torch.testing.assert_close(limited.values[row, :, : request.num_frames], alone, rtol=1e-5, atol=1e-5)
        assert not together.values[row, :, request.num_frames :].any()
        if request.known is not None:
            assert torch.equal(made[:, request.known_mask], request.known[:, request.known_mask])


def omni(model: UnifiedModel = MODEL, spec: ModelSpec | None = None) -> SoundOmni:
    return SoundOmni(model, Spec(model=spec or model_spec()), TOKENIZER)


@pytest.mark.parametrize("of", MADE)
def test_generate_makes_the_modality_that_is_named_the_same_in_a_batch(of: str) -> None:
    model = omni()
    together = model.generate(["one", "two three", "four"], seconds=0.1, seeds=[3, 4, 5], of=of)
    for prompt, seed, made in zip(["one", "two three", "four"], [3, 4, 5], together, strict=True):
        (alone,) = model.generate(prompt, seconds=0.1, seeds=seed, of=of)
        assert np.array_equal(alone.waveform, made.waveform) and made.waveform.shape == (1, 100) and np.isfinite(made.waveform).all()
    assert not np.array_equal(together[0].waveform, together[1].waveform)
    given_clip = together[0]
    kept = model.generate("five", seconds=0.1, seeds=9, of=of, known=Kept(given_clip, [(0.0, 0.06)]))[0]
    whole = model.reconstruct(given_clip, of=of).waveform
    np.testing.assert_allclose(kept.waveform[:, :32], whole[:, :32], atol=1e-4)


def test_the_first_modality_that_is_made_is_meant_if_none_is_named() -> None:
    model = omni()
    first = model.generate("one", seconds=0.1, seeds=3)[0].waveform
    assert np.array_equal(first, model.generate("one", seconds=0.1, seeds=3, of="fine")[0].waveform)
    assert not np.array_equal(first, model.generate("one", seconds=0.1, seeds=3, of="latent")[0].waveform)
    with pytest.raises(SpecError, match="the model makes fine, latent, not 'rough'") as caught:
        model.generate("one", seconds=0.1, of="rough")
    assert "\n" not in str(caught.value)


def test_losses_of_one_objective_in_two_modalities_carry_the_names_of_the_modalities() -> None:
    other = replace(CODES, codec=Slot("harmonic-codes", {**HARMONIC, "num_codebooks": 2, "codebook_size": 4, "frame_size": 20}))
    model = make_model("modality", {"fine": CODES, "latent": LATENTS, "rough": other})
    assert model.loss_names == ("ce", "fine.masked", "velocity", "rough.masked")
    writer = segment_writer(model, model_spec("modality", {"fine": CODES, "latent": LATENTS, "rough": other}), tokenizer=TOKENIZER)
    samples = [
        Sample(key=of, segments=(writer.text("one"), sounding(writer.target(60, of=of), 1)), seed=i, group=f"{of}/x")
        for i, of in enumerate(("fine", "rough"))
    ]
    batch = pack(samples)
    found = losses(model, batch.broken_down())
    assert {name: count for name, (_, count) in found.items() if "/" not in name} == model.count_terms(batch)
    assert found["fine.masked"][1] == 5 and found["rough.masked"][1] == 4 and found["velocity"][1] == 0
    for of in ("fine", "rough"):
        assert found[f"{of}.masked/{of}/x"] == pytest.approx(found[f"{of}.masked"])


def test_a_batch_with_clips_of_another_modality_is_refused() -> None:
    without = {name: one for name, one in MODALITIES.items() if name != "rough"}
    model = make_model("modality", without)
    batch = pack([Sample(key="x", segments=(KINDS["text"](0, 0), KINDS["rough"](1, 60)))])
    for attempt in (model, lambda given_batch: model.plan(given_batch.table)):
        with pytest.raises(ValueError, match="clips of modality 'rough', which the model does not have; it has text, mel, fine, latent"):
            attempt(batch)
    for of, message in (("rough", "does not have 'rough' among what it takes: fine, latent"), ("mel", "'mel'")):
        writer = segment_writer(model, model_spec("modality", without), tokenizer=TOKENIZER)
        with pytest.raises(SpecError, match=message):
            writer.context(60, of=of)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"fine": "x", "latent": "x"}, "modality 'x' has segments of several roles; expected one role"),
        ({"fine": "fine", "latent": "fine"}, "modality 'fine' has segments of several roles; expected one role"),
        ({"fine": "x"}, "the batch has clips of modality 'x', which the model does not have; it has text, "),
        ({"latent": "fine"}, "modality 'fine' has segments of role latent; expected codes, as in the model"),
        ({"fine": "latent"}, "modality 'latent' has segments of role codes; expected latent, as in the model"),
    ],
)
def test_a_modality_has_one_role(named: dict[str, str], message: str) -> None:
    segments = [replace(KINDS[kind](1, 60), of=name) for kind, name in named.items()]
    with pytest.raises(ValueError, match=message):
        MODEL.plan(SegmentTable.from_samples([segments]))
