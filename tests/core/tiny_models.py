"""Tiny models with an encoder and a codec, in float64, and ways to run them on whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.modality import frame_places
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.sequence import Attend, Context, PackedBatch, PositionRule, Role, Sample, Segment, audio_segment, text_segment
from soundomni.core.spec.schema import GuidanceSpec, ModelSpec, Slot
from soundomni.core.spec.shorthand import model_of
from soundomni.core.spec.written import ConnectorsSpec, WrittenModel
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.segments import SegmentWriter

RATE = 1000
TOKENIZER = TextTokenizer.train(["zero one two three four five"] * 4, vocab_size=300)

EULER = Slot("euler")
MOT = Slot("mot", {"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "qk_norm": "all"})
CONFORMER = Slot("conformer", {"hidden_dim": 32, "num_layers": 2, "num_heads": 4})


def model_spec(
    router: str = "modality",
    positions: str = "shared",
    *,
    sampler: Slot = EULER,
    guidance: GuidanceSpec | None = None,
    normalize: str = "global",
    backbone: Slot = MOT,
) -> ModelSpec:
    written = WrittenModel(
        backbone=backbone,
        router=Slot(router),
        codec=Slot("mdct", {"sample_rate": RATE, "frame_size": 16}),
        connectors=ConnectorsSpec(latent=Slot("linear"), features=Slot("mlp")),
        objective=Slot("flow-matching"),
        encoder=Slot("log-mel", {"sample_rate": RATE, "n_fft": 64, "hop_length": 16, "num_mels": 8, "feature_dim": 16}),
        latent_positions=positions,  # type: ignore[arg-type]
        normalize=normalize,  # type: ignore[arg-type]
    )
    return model_of(written, sampler=sampler, guidance=guidance)


def make_model(router: str = "modality", positions: str = "shared", backbone: Slot = MOT) -> UnifiedModel:
    """A tiny model in float64 whose every parameter is random, the outputs that start at zero included."""
    model = build_model(model_spec(router, positions, backbone=backbone), vocab_size=TOKENIZER.vocab_size, seed=1)
    torch.manual_seed(0)
    clips = torch.randn(4, 1, 160)
    model.made().normalizer.fit([model.made().codec.encode(clips, torch.full((4,), 160))])
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


MODELS = {name: make_model(name) for name in ("modality", "dense", "top-k")}
MODELS["advance"] = make_model("modality", "advance")
MODELS["conformer"] = make_model("modality", "shared", CONFORMER)


def rule(name: str) -> PositionRule:
    return PositionRule.ADVANCE if name == "advance" else PositionRule.SHARED


def writer(name: str = "modality") -> SegmentWriter:
    """The writer of a model of MODELS."""
    return segment_writer(MODELS[name], model_spec(positions="advance" if name == "advance" else "shared"), tokenizer=TOKENIZER)


def slot(frames: int, positions: PositionRule) -> Segment:
    """A clip to make of any number of frames, those that no number of samples has too."""
    return audio_segment(
        role=Role.LATENT,
        attend=Attend.NOISE,
        num_frames=frames,
        num_samples=0,
        boundary_ids=(TOKENIZER.audio_bos, TOKENIZER.audio_eos),
        positions=positions,
    )


def heard(waveform: np.ndarray) -> Context:
    """A clip `[1, S]` to understand."""
    return (writer().features(waveform.shape[1]).with_waveform(waveform),)


def clip(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32)


def double(batch: PackedBatch) -> PackedBatch:
    def clips(c):  # type: ignore[no-untyped-def]
        return replace(c, waveform=c.waveform.double())

    return replace(batch, clips={name: clips(c) for name, c in batch.clips.items()})


def pack(samples: Sequence[Sample]) -> PackedBatch:
    return double(PackedBatch.from_samples(samples))


def one_forward(
    model: UnifiedModel, context: Context, values: torch.Tensor, timesteps: torch.Tensor, positions: PositionRule
) -> torch.Tensor:
    """The prediction of a noise segment by the whole sequence at once, as in training: `[1, D, T]` at timesteps `[1, T]`."""
    segment = slot(values.shape[-1], positions).with_waveform(np.zeros((1, 1), np.float32))
    batch = pack([Sample(key="x", segments=(*context, segment))])
    layout = model.plan(batch.table)
    places = frame_places(np.asarray([values.shape[-1]]), values.shape[-1], model.device)
    blocks = {
        Role.TEXT: model.backbone.embed(batch.text_ids),
        Role.FEATURES: model.modalities["features"].enter(batch.of("features")).hidden,
        Role.LATENT: model.made().enter_frames(values, timesteps.double(), places),
    }
    streams, _ = model.backbone(layout.place(blocks, model.backbone.hidden_dim), layout)
    return model.made().leave(layout.take(streams, Role.LATENT), places, values)


def contexts_of(model: UnifiedModel, words: Sequence[str]) -> list[Context]:
    return [(writer().text(w),) if w else () for w in words]


def greedy(model: UnifiedModel, context: Context, count: int) -> list[int]:
    """Greedy decoding that computes the whole sequence again for each token."""
    ids: list[int] = []
    while len(ids) < count:
        segment = text_segment(ids, bos=TOKENIZER.bos, eos=TOKENIZER.eos, loss=True)
        batch = pack([Sample(key="x", segments=(*context, segment))])
        layout = model.plan(batch.table)
        blocks = {
            Role.TEXT: model.backbone.embed(batch.text_ids),
            Role.FEATURES: model.modalities["features"].enter(batch.of("features")).hidden,
        }
        with torch.no_grad():
            streams, _ = model.backbone(layout.place(blocks, model.backbone.hidden_dim), layout)
            chosen = int(model.backbone.head(layout.take(streams, Role.TEXT)[-1:]).argmax())
        if chosen == TOKENIZER.eos:
            break
        ids.append(chosen)
    return ids
