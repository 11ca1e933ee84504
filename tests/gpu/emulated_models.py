"""Tiny models of every kind, each twice with the same weights: on the CPU and on the emulated device.

Each is a shipped spec made small, so that its pieces fit together as they do for users.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from emulated_cuda import to_cuda

import soundomni
from soundomni import Audio, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec import registry
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.schema import Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.samples import SampleWriter

SPECS = Path(soundomni.__file__).parent / "specs"
RATE = 8000
SMALL = {"hidden_dim": 64, "num_layers": 3, "num_heads": 4, "intermediate_dim": 48}
CODEC = "{class_path: mdct, init_args: {sample_rate: 8000, channels: 1, frame_size: 128}}"
OOBLECK = """{class_path: oobleck, init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2],
strides: [8, 8], latent_dim: 8, sample_latents: true}}"""
LOG_MEL = "{class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 256, hop_length: 160, num_mels: 24, feature_dim: 32, num_layers: 2}}"
DATA = (
    "data.tokens_per_batch=320",
    "data.max_tokens_per_sample=200",
    "data.lookahead=8",
    "data.workers=1",
    "model.tokenizer.vocab_size=300",
)


def mot(**changes: object) -> str:
    """The backbone `mot` in a small size, as YAML."""
    return f"model.backbone={{class_path: mot, init_args: {SMALL | changes}}}".replace("'", "")


MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "demo": ("demo", (mot(qk_norm="all"), f"model.encoder={LOG_MEL}", "guidance={scale: 2.0}")),
    "grouped": (
        "demo",
        (
            mot(num_kv_heads=2, head_dim=32, qk_norm="gen"),
            *(f"model.codec={OOBLECK}", f"model.encoder={LOG_MEL}", "model.feature_attend=causal", "model.normalize=channel"),
            *("model.latent_positions=shared", "model.objective=flow-matching", "model.connectors.latent=mlp"),
            "guidance={scale: 2.5, interval: [0.2, 0.8], renormalize: global}",
        ),
    ),
}
"""Name → a shipped spec, and what is changed in it."""


def spec_of(name: str, folder: Path, *changes: str) -> Spec:
    """The spec of one of MODELS."""
    base, own = MODELS[name]
    pairs = [one.split("=", 1) for one in (*own, *DATA, *changes, f"train.run_dir={folder / 'run'}")]
    return resolve(load_spec([SPECS / f"{base}.yaml"], [(key, value) for key, value in pairs]))


@dataclass
class Twice:
    """A model with random weights on the CPU, its batches, and its copy on the emulated device."""

    spec: Spec
    tokenizer: TextTokenizer
    cpu: UnifiedModel
    batches: Sequence[PackedBatch]

    def on_cuda(self) -> UnifiedModel:
        """Return a copy of the model on the emulated device."""
        model = deepcopy(self.cpu)
        to_cuda(model)
        return model

    def user_of(self, model: UnifiedModel) -> SoundOmni:
        return SoundOmni(model, self.spec, self.tokenizer, in_training=True)


def make(name: str, folder: Path, *changes: str) -> Twice:
    """Build one of MODELS and pack two batches for it."""
    spec = spec_of(name, folder, *changes)
    assert spec.data is not None
    mixture = Mixture.open(spec.data, registry.build)
    tokenizer = TextTokenizer.train(mixture.captions(64), vocab_size=spec.of_model.tokenizer.vocab_size)
    model = build_model(spec.of_model, vocab_size=tokenizer.vocab_size, seed=1)
    writer = SampleWriter(segment_writer(model, spec.of_model, tokenizer=tokenizer), dropout=spec.data.condition_dropout)
    loader = PackedLoader(mixture=mixture, writer=writer, spec=spec.data, batches_per_step=2)
    try:
        batches = next(loader).batches
    finally:
        loader.close()
    for modality in model.all_made:
        modality.fit([batch.of(modality.name) for batch in batches])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # the ways out start at zero, and would hide whatever comes before them
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Twice(spec, tokenizer, model, batches)


def clip(seconds: float, seed: int = 0) -> Audio:
    """A clip of noise and a tone."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal((1, count)) * 0.05
    return Audio((noise + 0.2 * np.sin(0.3 * np.arange(count))).astype(np.float32), RATE)
