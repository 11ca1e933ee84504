"""A tiny SoundStorm: acoustic codes, made by a Conformer, with semantic tokens and heard features added to them frame by frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_models import TOKENIZER

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.spec.schema import DropoutSpec, GuidanceSpec, ModalitySpec, ModelSpec, Slot
from soundomni.data.samples import SampleWriter

RATE = 1000
SOUNDSTREAM = {"sample_rate": RATE, "base_channels": 2, "channel_multiples": [1, 2], "strides": [2, 4], "latent_dim": 4}
SPEECH = {"conv_dims": [4, 4], "conv_kernels": [6, 4], "conv_strides": [5, 2], "hidden_dim": 8, "num_heads": 2, "mlp_dim": 6}
SPEECH |= {"position_kernel": 4, "position_groups": 2}
TOKENS = {"sample_rate": RATE, "layer": 2, "num_clusters": 9, "network": SPEECH}
ACOUSTIC = ModalitySpec(
    codec=Slot("soundstream", {**SOUNDSTREAM, "quantizer": {"method": "fsq", "num_levels": 2, "steps": [4, 3]}}),
    connector=Slot("codes"),
    objective=Slot("masked"),
    sampler=Slot("maskgit", {"iterations": [3, 1]}),
    guidance=GuidanceSpec(scale=2.0),
    aligned=["semantic", "mel"],
)
SEMANTIC = ModalitySpec(codec=Slot("hubert-kmeans", {**TOKENS, "frames_per_second": RATE / 8}), connector=Slot("codes"))
MEL = ModalitySpec(
    encoder=Slot("log-mel", {"sample_rate": RATE, "n_fft": 64, "hop_length": 2, "num_mels": 8, "feature_dim": 16}), connector=Slot("mlp")
)
MODALITIES = {"acoustic": ACOUSTIC, "semantic": SEMANTIC, "mel": MEL}
CONFORMER = Slot("conformer", {"hidden_dim": 16, "num_layers": 2, "num_heads": 2})


def aligned_spec(router: str = "dense", **modalities: ModalitySpec) -> ModelSpec:
    return ModelSpec(backbone=CONFORMER, router=Slot(router), modalities={**MODALITIES, **modalities})


def aligned_model(spec: ModelSpec) -> UnifiedModel:
    """A model whose every parameter is random, the outputs that start at zero included."""
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def aligned_writer(model: UnifiedModel, spec: ModelSpec, **dropout: object) -> SampleWriter:
    none = DropoutSpec(text=0.0, latent=0.0, features=0.0)
    return SampleWriter(segment_writer(model, spec, tokenizer=TOKENIZER), dropout=replace(none, **dropout))  # type: ignore[arg-type]
