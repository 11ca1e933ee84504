"""The diffusion transformer computes what stable-audio-tools' own modules compute, clip by clip, on packed clips of any lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sat_models import FRAME, LATENT_DIM, RATE, TEXT_DIM, backbone_slot, features, model_spec, random_model, theirs_of
from tiny_stages import TOKENIZER
from torch import Tensor

from soundomni.core.assembly.modality import MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.interfaces import Item
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.schema import DropoutSpec, ModelSpec
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.samples import SampleWriter

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


def packed(model: UnifiedModel, spec: ModelSpec, texts: list[str]) -> PackedBatch:
    """Clips of different lengths with these captions; an empty one is left out, as dropout leaves conditions out."""
    writer = SampleWriter(
        segment_writer(model, spec, tokenizer=TOKENIZER), dropout=DropoutSpec(text=0.0, latent=0.0, features=0.0, together={})
    )
    task = build_tasks({})["generate"]
    samples = []
    for i, text in enumerate(texts):
        count = FRAME + 37 * i
        planned = writer.plan(Item(key=str(i), num_samples=count, sample_rate=RATE, captions=(text or "?",)), task, seed=i, key=str(i))
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
        out.append(
            transformer._forward(
                shown[i : i + 1, :, :frames], times[i, :1], cross_attn_cond=tokens, global_embed=whole, use_checkpointing=False
            )[0]
        )
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
