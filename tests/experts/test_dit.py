"""The diffusion transformer computes what stable-audio-tools' own modules compute, clip by clip, on packed clips of any lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sat_models import FRAME, LATENT_DIM, RATE, TEXT_DIM, backbone_slot, features, model_spec, random_model, theirs_of
from tiny_stages import TOKENIZER
from torch import Tensor, nn

from soundomni import Kept, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.modality import MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.inference.requests import RequestBuilder
from soundomni.core.interfaces import Item
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.schema import DropoutSpec, ModelSpec, SegmentTemplate, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.core.writing.tasks import Task, build_tasks
from soundomni.data.samples import SampleWriter
from soundomni.experts.dit_layer import HeadNorms

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "open-1.0": ({"project_conditions": False}, {}),
    "open-small": ({"head_norm": "layer"}, {"attn_kwargs": {"qk_norm": "ln"}}),
    "adaln": ({"conditioning": "adaln"}, {}),
    "memory": ({"num_memory": 3}, {"num_memory_tokens": 3}),
    "differential": (
        {"differential": True, "conditioning": "adaln", "num_memory": 2, "head_norm": "layer"},
        {"attn_kwargs": {"differential": True, "qk_norm": "ln"}, "num_memory_tokens": 2},
    ),
}
TEXTS = ["a loud bell", "", "rain", "two claps", "a", "noise of a street", "x y", "drums", "a sine tone", "birds", "wind"]


def packed(model: UnifiedModel, spec: ModelSpec, texts: list[str], *, task: str = "generate") -> PackedBatch:
    """Clips of different lengths with these captions; an empty one is left out, as dropout leaves conditions out."""
    writer = SampleWriter(
        segment_writer(model, spec, tokenizer=TOKENIZER), dropout=DropoutSpec(text=0.0, latent=0.0, features=0.0, together={})
    )
    templates = build_tasks({})[task]
    samples = []
    for i, text in enumerate(texts):
        count = FRAME + 37 * i
        planned = writer.plan(Item(key=str(i), num_samples=count, sample_rate=RATE, captions=(text or "?",)), templates, seed=i, key=str(i))
        waveform = np.random.default_rng(i).standard_normal((1, count)).astype(np.float32)
        sample = writer.fill(planned, waveform, RATE)  # type: ignore[arg-type]
        if not text:
            kept = tuple(
                replace(segment, attended=False) if segment.modality.startswith("seconds") else segment
                for segment in sample.segments
                if segment.modality != "prompt"
            )
            sample = replace(sample, segments=kept)
        samples.append(sample)
    return PackedBatch.from_samples(samples)


def predictions(model: UnifiedModel, batch: PackedBatch) -> tuple[Any, Tensor]:
    """What the network is asked about a batch, and its own output `[B, D, T]`."""
    made = model.made()
    layout = model.plan(batch.table)
    entered = {modality.name: modality.enter(batch.of(modality.name)) for modality in model.each()}
    layout = model._with_conditions(layout, batch, entered)
    blocks = {"text": model.backbone.embed(batch.text_ids)} | model._placed(entered, batch.clips)
    streams, _ = model.backbone(layout.place(blocks, model.backbone.hidden_dim), layout)
    query, places = entered["latent"].query, entered["latent"].places
    assert query is not None and places is not None
    return query, made.leave(layout.take(streams, "latent"), places, query.inputs)


def expected(
    model: UnifiedModel, spec: ModelSpec, batch: PackedBatch, query: Any, texts: list[str], arguments: dict[str, Any]
) -> list[Tensor]:
    """What their modules give for each clip by itself."""
    transformer, numbers = theirs_of(model, **arguments)
    made = model.made()
    assert isinstance(made, MadeModality)
    out = []
    shown, times = made.objective.shown(query.inputs, query.timesteps), made.objective.shown_times(query.timesteps)
    for i, text in enumerate(texts):
        frames = int(batch.of("latent").num_frames[i])
        seconds = batch.of("latent").num_samples[i] / RATE
        start, total = (
            numbers[name]([given], "cpu")[0] for name, given in (("seconds_start", 1.5), ("seconds_total", float(f"{seconds:g}")))
        )
        words = features(torch.tensor([[float(ord(letter)) for letter in text]])) if text else torch.zeros(1, 5, TEXT_DIM)
        tokens = torch.cat([words, start, total], 1) if text else torch.zeros(1, 7, TEXT_DIM)
        whole = torch.cat([start, total], -1)[:, 0]
        hints = None if query.hints is None else query.hints[i : i + 1, :, :frames]
        given = {"cross_attn_cond": tokens, "global_embed": whole, "input_concat_cond": hints, "use_checkpointing": False}
        out.append(transformer._forward(shown[i : i + 1, :, :frames], times[i, :1], **given)[0])
    return out


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_packed_batch_equals_their_modules_on_each_clip(family: str) -> None:
    ours, theirs = FAMILIES[family]
    spec = model_spec(backbone_slot(**ours))
    model = random_model(spec)
    batch = packed(model, spec, TEXTS)
    with torch.no_grad():
        query, output = predictions(model, batch)
        wanted = expected(model, spec, batch, query, TEXTS, theirs)
    assert output.shape[1] == LATENT_DIM
    for i, one in enumerate(wanted):
        torch.testing.assert_close(output[i, :, : one.shape[1]], one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("objective", ["v-prediction", "flow-matching"])
def test_known_frames_reach_their_modules_as_a_mask_and_masked_latents(objective: str) -> None:
    spec = model_spec(backbone_slot(), objective=objective, shows_known=True)
    model = random_model(spec)
    batch = packed(model, spec, TEXTS, task="fill")
    with torch.no_grad():
        query, output = predictions(model, batch)
        wanted = expected(model, spec, batch, query, TEXTS, {"input_concat_dim": LATENT_DIM + 1})
    assert query.hints is not None and 0 < int(query.hints[:, 0].sum()) < query.loss_mask.numel()
    assert not (query.loss_mask & query.hints[:, 0].bool()).any()
    for i, one in enumerate(wanted):
        torch.testing.assert_close(output[i, :, : one.shape[1]], one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_a_model_without_hints_keeps_no_part_of_a_clip() -> None:
    spec = model_spec(backbone_slot())
    model = random_model(spec)
    user = SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    clip = Audio(np.zeros((1, 400), np.float32), RATE)
    with pytest.raises(SpecError, match="cannot keep parts of a clip: its backbone has one timestep"):
        user.generate("rain", seconds=0.05, known=Kept(clip, [(0.0, 0.02)]))
    with pytest.raises(SpecError, match="keeps frames of its target"):
        SampleWriter(segment_writer(model, spec, tokenizer=TOKENIZER)).check(build_tasks({})["fill"])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m", "dpmpp-3m-sde", "pingpong"])
def test_what_is_kept_stays_exactly(sampler: str) -> None:
    spec = model_spec(backbone_slot(), shows_known=True, sampler=Slot(sampler, {"num_steps": 4}))
    model = random_model(spec)
    user = SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    clip = Audio(np.random.default_rng(0).standard_normal((1, 400)).astype(np.float32), RATE)
    given = model.made().encode(torch.from_numpy(clip.waveform)[None], torch.tensor([400])).values
    made = [user.make("rain", seconds=0.05, known=Kept(clip, [(0.0, 0.02), (0.04, 0.05)]), seeds=seed)[0].values for seed in (1, 2)]
    same = (made[0] == given).all(1)[0]
    assert same.any() and not same.all() and torch.equal(made[0][..., same], given[..., same])
    assert torch.equal(made[1][..., same], given[..., same]) and not torch.equal(*made)


def test_every_parameter_has_a_gradient_with_and_without_clips() -> None:
    spec = model_spec(backbone_slot(num_memory=2), shows_known=True)
    model = random_model(spec)
    for texts in (TEXTS[:3], []):
        model.zero_grad()
        total, count = model(packed(model, spec, texts, task="fill"))["velocity"]
        (total / count.clamp_min(1)).backward()
        lacking = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
        assert not [name for name in lacking if ".codec." not in name]


def test_a_window_is_made_and_cut() -> None:
    """Shorter clips are the beginning of a window of fixed length, in which the number of seconds says where they end."""
    spec = model_spec(backbone_slot())
    made = spec.used["latent"]
    window = replace(spec, modalities={**spec.modalities, "latent": replace(made, window=0.05)})
    network = random_model(spec)
    network_with = random_model(window)
    plain, cut = (
        SoundOmni(one, Spec(model=its), TOKENIZER, trust_class_paths=True) for one, its in ((network, spec), (network_with, window))
    )
    short = cut.generate("rain", seconds=0.02, seeds=1)[0].waveform
    assert short.shape == (1, 160) and cut.make("rain", seconds=0.02, seeds=1)[0].values.shape[-1] == made_frames(160)
    assert not np.allclose(short, plain.generate("rain", seconds=0.02, seeds=1)[0].waveform)
    longer = cut.generate("rain", seconds=0.06, seeds=1)[0].waveform
    assert np.array_equal(longer, plain.generate("rain", seconds=0.06, seeds=1)[0].waveform)
    whole = cut.model.made()
    builder = RequestBuilder(cut.model, cut.contexts, num_samples=160, negative_prompt=None)
    request = builder.request("rain", seed=1)
    assert request.num_frames == whole.codec.spec.num_frames(400)
    told = next(segment for segment in request.context if segment.modality == "seconds_total")
    assert told.waveform is not None and float(told.waveform[0, 0]) == pytest.approx(0.02)


@pytest.mark.parametrize("window", [None, 0.03, 0.2])
def test_headroom_is_made_and_cut_without_decoding_it(window: float | None) -> None:
    """Whatever is kept or varied refers to the clip that was asked for, and not to what is made behind it."""
    spec = model_spec(backbone_slot(), shows_known=True)
    made = replace(spec.used["latent"], headroom=0.04, window=window)
    spec = replace(spec, modalities={**spec.modalities, "latent": made})
    model = random_model(spec)
    user = SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    decoded: list[int] = []
    codec = model.made().codec
    decode = codec.decode

    def watched(given: Any) -> Tensor:
        decoded.append(given.values.shape[-1])
        return decode(given)

    codec.decode = watched  # type: ignore[method-assign]
    clip = user.generate("rain", seconds=0.02, seeds=1)[0]
    reach = codec.receptive_field
    assert clip.waveform.shape == (1, 160) and reach is not None and decoded == [made_frames(160) + reach.decode]
    builder = RequestBuilder(user.model, user.contexts, num_samples=160, negative_prompt=None)
    request = builder.request("rain", seed=1)
    assert request.num_frames == made_frames(round(max(0.06, window or 0) * RATE))
    given = Audio(np.zeros((1, 160), np.float32), RATE)
    with pytest.raises(SpecError, match=r"all 0.02 s are kept, so nothing is left to make"):
        builder.request("rain", seed=1, kept=Kept(given, [(0.0, 0.02)]))
    mask = builder.request("rain", seed=1, kept=Kept(given, [(0.0, 0.01)])).known_mask
    assert mask is not None and 0 < int(mask.sum()) < made_frames(160)
    assert user.generate("rain", seconds=0.02, seeds=1, vary=given, strength=0.5)[0].waveform.shape == (1, 160)


def made_frames(num_samples: int) -> int:
    return num_samples // LATENT_DIM + 1


def test_norms_of_heads_that_autocast_widens_give_the_dtype_of_values() -> None:
    """On a GPU, autocast lets LayerNorm return float32; the hooks do the same here."""
    model = random_model(model_spec(backbone_slot(head_norm="layer"))).bfloat16()
    asked = []

    def widen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        asked.append(inputs[0].dtype)
        return output.float()

    for module in model.modules():
        if isinstance(module, HeadNorms):
            module.query.register_forward_hook(widen)
            module.key.register_forward_hook(widen)
            heads = torch.ones(3, 2, 64, dtype=torch.bfloat16)
            assert module.of_queries(heads).dtype == module.of_keys(heads).dtype == torch.bfloat16
    asked.clear()
    clip = SoundOmni(model, Spec(model=model_spec(backbone_slot(head_norm="layer"))), TOKENIZER, trust_class_paths=True)
    assert np.isfinite(clip.generate("rain", seconds=0.02, num_steps=1, seeds=1)[0].waveform).all()
    assert set(asked) == {torch.bfloat16}


def test_only_heads_that_divide_those_of_the_transformer_attend_to_conditions() -> None:
    """Differential attention has twice as many heads, which does not change what fits: 3 heads do not share 2."""
    for differential in (False, True):
        slot = backbone_slot(hidden_dim=96, num_heads=3, condition_dim=64, project_conditions=False, differential=differential)
        with pytest.raises(SpecError, match="condition_dim is 64; expected a divisor of hidden_dim"):
            build_model(model_spec(slot), vocab_size=TOKENIZER.vocab_size, trust_class_paths=True)


def test_a_clip_in_front_of_the_target_is_refused() -> None:
    """The sequence only has what is made, in a task as in the prompt."""
    spec = model_spec(backbone_slot())
    writer = segment_writer(random_model(spec), spec, tokenizer=TOKENIZER)
    with pytest.raises(SpecError, match="only has the clips that it makes"):
        SampleWriter(writer).check(Task("after", (SegmentTemplate(audio="context"), SegmentTemplate(audio="target"))))
    spec = replace(spec, prompt=[SegmentTemplate(audio="context"), *spec.prompt])
    user = SoundOmni(random_model(spec), Spec(model=spec), TOKENIZER, trust_class_paths=True)
    with pytest.raises(SpecError, match="only has the clips that it makes"):
        user.generate("rain", seconds=0.02, given={"latent": [Audio(np.zeros((1, 160), np.float32), RATE)]})


def test_what_stays_without_a_prompt_is_what_stayed_in_training() -> None:
    """Texts that enter globally too keep their mean for guidance; a clip to vary is measured with the numbers only."""
    spec = model_spec(backbone_slot())
    prompt = replace(spec.used["prompt"], enters="cross+global")
    both = replace(spec, modalities={**spec.modalities, "prompt": prompt})
    numbers = ["seconds_start", "seconds_total"]
    for one, staying in ((spec, numbers), (both, ["prompt", *numbers])):
        user = SoundOmni(random_model(one), Spec(model=one), TOKENIZER, trust_class_paths=True)
        builder = RequestBuilder(user.model, user.contexts, num_samples=160, negative_prompt=None)
        clip = Audio(np.random.default_rng(0).standard_normal((1, 160)).astype(np.float32), RATE)
        request = builder.request("rain", seed=1, varied=clip)
        assert [segment.modality for segment in request.negative] == staying
        assert [segment.modality for segment in request.unprompted] == numbers
        assert not any(segment.attended for segment in (*request.negative, *request.unprompted))
