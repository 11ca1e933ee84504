"""Models whose tokens are drawn level by level, and models of runs: training is what sampling sees, and clips do not depend on others.

Shape letters: B clips, K levels, N tokens, T frames, P predicted numbers.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import RATE, TOKENIZER, clip, pack

from soundomni.core.assembly.build import build_model, build_sampler, check_sampler
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.next_token import TokenSlots, guided_tokens
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.interfaces import PredictLevels
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import HIDDEN
from soundomni.core.sequence import Context, PackedBatch, Sample, Segment
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.core.writing.segments import SegmentWriter

SIZE = 5
DEPTH = Slot("depth-codes", {"depth_dim": 8, "num_heads": 2})


def model_spec(objective: Slot, connector: Slot, levels: int, sampler: str = "next-token") -> ModelSpec:
    pitches = {"sample_rate": RATE, "num_harmonics": 2, "pitch_range": [150, 240], "codebook_size": SIZE, "frame_size": 16}
    codec = Slot("harmonic-codes", {**pitches, "num_codebooks": levels})
    codes = ModalitySpec(codec=codec, connector=connector, objective=objective, sampler=Slot(sampler))
    backbone = Slot("mot", {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "qk_norm": "all"})
    return ModelSpec(backbone=backbone, router=Slot("modality"), modalities={"codes": codes})


def make_model(objective: Slot, connector: Slot, levels: int) -> tuple[UnifiedModel, SegmentWriter]:
    """A model in float64 whose every parameter is random, and what writes its segments."""
    spec = model_spec(objective, connector, levels)
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, seed=1)
    model.executor = "reference"
    waveform = torch.from_numpy(np.stack([clip(seed, 160) for seed in range(4)]))
    clips = replace(PackedBatch.from_samples([]).of("codes"), waveform=waveform, lengths=torch.full((4,), 160), seeds=(0, 1, 2, 3))
    model.made().fit([clips])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.normal_(std=0.7)
    return model.double(), segment_writer(model, spec, tokenizer=TOKENIZER)


KINDS = {
    "frames": (Slot("autoregressive", {"order": "frames"}), DEPTH, 3),
    "delay": (Slot("autoregressive", {"order": "delay"}), DEPTH, 3),
    "upper": (Slot("autoregressive", {"order": "frames", "levels": [1, 3]}), DEPTH, 3),
    "runs": (Slot("autoregressive-runs", {"longest": 3}), Slot("codes"), 1),
}
MODELS = {name: make_model(*parts) for name, parts in KINDS.items()}


def codes_of(kind: str, frames: int, seed: int) -> np.ndarray:
    """Codes that often repeat."""
    drawn = np.random.default_rng(seed).integers(0, SIZE, (KINDS[kind][2], frames // 2 + 1))
    return drawn.repeat(2, axis=1)[:, seed % 2 :][:, :frames]


def target(kind: str, frames: int, seed: int = 0, known: int = 0) -> Segment:
    """A clip to make that is encoded already; its codec has one frame more than its samples fill."""
    segment = MODELS[kind][1].target((frames - 1) * 16, made=(known, frames) if known else None)
    return segment.with_values(codes_of(kind, frames, seed))


def whole(kind: str, context: Context, segment: Segment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What training predicts for a clip, `[1, P, N]`, the inputs that it is shown, `[1, K, N]`, and the tokens to predict."""
    model = MODELS[kind][0]
    batch = pack([Sample(key="x", segments=(*context, segment))])
    layout, entered = model.plan(batch.table), model.made().enter(batch.of("codes"))
    blocks = {"text": model.backbone.embed(batch.text_ids), "codes": entered.hidden}
    streams, _ = model.backbone(layout.place(blocks, 16), layout)
    query = entered.query
    assert query is not None and entered.places is not None
    return model.made().leave(layout.take(streams, "codes"), entered.places, query.inputs, query.ids), query.inputs, query.ids


@pytest.mark.parametrize("kind", ["frames", "delay", "upper"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_levels_drawn_one_after_the_other_have_the_logits_of_training_guided_level_by_level(kind: str, scale: float) -> None:
    model, writer = MODELS[kind]
    frames, context, negative = 4, (writer.text("one two"),), (writer.text("five"),)
    request = AudioRequest(context=context, negative=negative, slot=target(kind, frames), seed=1)
    with torch.no_grad():
        (logits, inputs, ids), (without, _, _) = (whole(kind, one, target(kind, frames)) for one in (context, negative))
        assert ids is not None
        predict = guided_tokens(model, [request], GuidanceSpec(scale=scale))
        assert isinstance(predict, PredictLevels)
        expected = (without + scale * (logits - without)).split(MODELS_CLASSES[kind], 1)
        first = model.made().first_level
        for token in range(inputs.shape[-1]):
            predict(inputs[..., token : token + 1], torch.ones(1), first=token)
            for level in range(first, 3):
                own = ids[..., token].clone()
                own[:, level:] = HIDDEN
                found = predict.level(own, level).double()
                torch.testing.assert_close(found, expected[level][..., token], rtol=1e-5, atol=1e-5)
        own = ids[..., -1].clone()
        own[:, first] = (own[:, first] + 1) % SIZE
        assert not torch.allclose(predict.level(own, first + 1).double(), expected[first + 1][..., -1])


MODELS_CLASSES = {kind: (SIZE if kind == "upper" else SIZE + 1, SIZE, SIZE) for kind in KINDS}


@pytest.mark.parametrize("kind", ["frames", "upper", "runs"])
def test_cached_tokens_are_those_of_training(kind: str) -> None:
    model, writer = MODELS[kind]
    context = (writer.text("one"), writer.context(32).with_values(codes_of(kind, 3, 8)))
    with torch.no_grad():
        _, inputs, _ = whole(kind, context, target(kind, 7))
        inputs = inputs[-1:]
        hidden = TokenSlots(model, [context], [target(kind, 7)])
        times = torch.ones(inputs.shape[0], inputs.shape[2], dtype=torch.float64)
        every = hidden.predict(inputs, times)
        pieces = [hidden.predict(inputs[..., n : n + 1], times[:, n : n + 1], first=n) for n in range(inputs.shape[-1])]
    torch.testing.assert_close(torch.cat(pieces, -1), every, rtol=1e-5, atol=1e-5)
    if kind == "runs":
        trained = whole(kind, context, target(kind, 7))[0][-1:]
        torch.testing.assert_close(every.double(), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["frames", "delay", "runs"])
@pytest.mark.parametrize("seed", [0, 1])
def test_clips_end_by_themselves_keep_what_is_known_and_do_not_depend_on_the_batch(kind: str, seed: int) -> None:
    model, writer = MODELS[kind]
    batch = []
    for index, frames in enumerate((6, 3, 7, 5)):
        request = AudioRequest(
            context=(writer.text(["", "one", "two three", "five"][index]),) if index else (),
            negative=(),
            slot=writer.target((frames - 1) * 16),
            seed=100 * seed + index,
        )
        codes = torch.from_numpy(codes_of(kind, frames, seed + index))
        known, varied = index % 2, index == 2
        batch.append(replace(request, varied=codes) if varied else request)
        if known:
            batch[-1] = replace(request, known=codes, known_mask=torch.arange(frames) < 2 + seed)
    sampler = build_sampler(Slot("next-token", {"temperature": 1.5, "top_k": 0.9}))
    make = partial(sample_audio, model, sampler=sampler, guidance=GuidanceSpec(scale=2.5, renormalize="global"), begin=0.5)
    together = make(batch)
    for row, request in enumerate(batch):
        frames, alone = together.frame_counts[row], make([request])
        made = together.values[row, :, :frames]
        assert alone.frame_counts == (frames,) and torch.equal(alone.values[0], made)
        assert 2 <= frames <= request.num_frames and int(made.min()) >= 0 and int(made.max()) < SIZE
        kept, count = request.varied, request.num_frames // 2
        if request.known is not None:
            kept, count = request.known, int(request.known_mask.sum())
        if kept is not None:
            assert frames >= count and torch.equal(made[:, :count], kept[:, :count])


@pytest.mark.parametrize("kind", ["frames", "upper", "runs"])
def test_losses_are_counted_before_they_are_computed_and_every_parameter_is_trained(kind: str) -> None:
    model, writer = MODELS[kind]
    samples = [
        Sample(key=str(i), segments=(writer.text("one"), target(kind, frames, seed=i, known=known)), seed=i, group=f"{i}/generate")
        for i, (frames, known) in enumerate(((6, 0), (3, 1), (6, 4)))
    ]
    batch = pack(samples)
    losses = model(batch)
    total, count = losses["autoregressive"]
    assert model.count_terms(batch)["autoregressive"] == float(count) == {"frames": 33, "upper": 20, "runs": 13}[kind]
    alone = [model(pack([sample]))["autoregressive"] for sample in samples]
    torch.testing.assert_close(total, sum(own for own, _ in alone), rtol=1e-5, atol=1e-5)
    parts = model(batch.broken_down())
    assert [float(parts[f"autoregressive/{i}/generate"][1]) for i in range(3)] == [float(own) for _, own in alone]
    for some in (batch, PackedBatch.from_samples([])):
        sum(own for own, _ in model(some).values()).backward()
        assert all(parameter.grad is not None for parameter in model.made().connector.parameters())
        model.zero_grad()


def test_a_file_is_continued_in_runs_within_its_length() -> None:
    model, _ = MODELS["runs"]
    omni = SoundOmni(model.float(), Spec(model=model_spec(*KINDS["runs"])), TOKENIZER, max_tokens=40)
    try:
        kept = omni.generate(["one", "two"], seconds=0.3, known=Kept(Audio(clip(0, 160), RATE), [(0.0, 0.1)]), seeds=[1, 2])
        assert all(16 * 5 <= one.waveform.shape[1] <= 300 for one in kept)
    finally:
        model.double()


def test_parts_that_do_not_fit_are_refused_in_one_line() -> None:
    masked = model_spec(Slot("masked"), DEPTH, 3, sampler="maskgit")
    message = (
        "the connector of 'codes' is 'depth-codes', which predicts levels one after the other, but the objective does not predict the next "
        "token. Use the connector codes, or the objective autoregressive"
    )
    with pytest.raises(SpecError, match=message):
        build_model(masked, vocab_size=TOKENIZER.vocab_size)
    modality = MODELS["frames"][0].made()
    check_sampler(build_sampler(Slot("next-token")), modality, key="sampler", name="next-token")
    with pytest.raises(SpecError, match="sampler is 'speculative', which draws the levels of a token at once, .* Use the sampler next"):
        check_sampler(build_sampler(Slot("speculative")), modality, key="sampler", name="speculative")
    with pytest.raises(SpecError, match="the codec has 3 levels of codes; expected one level to make runs"):
        build_model(model_spec(Slot("autoregressive-runs"), Slot("codes"), 3), vocab_size=TOKENIZER.vocab_size)
