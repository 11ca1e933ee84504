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
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.assembly.modality import CodecModality
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
HARMONIC_CODES = "{class_path: harmonic-codes, init_args: {num_codebooks: 2, codebook_size: 12}}"
SEMANTIC = """{class_path: mel-kmeans, init_args: {frame_size: 128, sample_rate: 8000, window: 512, num_mels: 16, frequencies: [200, 520],
floor: 1.0e-5, num_clusters: 8, lapped: true}}"""
QWEN2_AUDIO = """{class_path: qwen2-audio, init_args: {num_mel_bins: 16, d_model: 32, num_layers: 2, num_heads: 2, ffn_dim: 48,
max_source_positions: 50}}"""
OOBLECK = """{class_path: oobleck, init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2],
strides: [8, 8], latent_dim: 8, sample_latents: true}}"""
LOG_MEL = "{class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 256, hop_length: 160, num_mels: 24, feature_dim: 32, num_layers: 2}}"
BYTES = "model.modalities.prompt.encoder={class_path: bytes, init_args: {feature_dim: 32}}"
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
    "qwen2-audio": ("demo", (mot(qk_norm="gen"), f"model.encoder={QWEN2_AUDIO}", "model.feature_attend=causal", "guidance={scale: 2.0}")),
    "top-k": (
        "demo",
        (
            *(mot(qk_norm="all"), f"model.encoder={LOG_MEL}", "guidance={scale: 2.0}"),
            "model.router={class_path: top-k, init_args: {num_experts: 3}}",
        ),
    ),
    "adapters": (
        "demo",
        (
            *(mot(qk_norm="all"), f"model.encoder={LOG_MEL}", "guidance={scale: 2.0}"),
            "train.lora={streams: [gen, und], kind: dora, rank: 4}",
        ),
    ),
    "mixed": (
        "mixed",
        (mot(qk_norm="all"), f"model.modalities.codes.codec={HARMONIC_CODES}", f"model.modalities.features.encoder={LOG_MEL}"),
    ),
    "tokens": (
        "nano-codes",
        (mot(qk_norm="all"), *(f"model.modalities.{name}.codec={HARMONIC_CODES}" for name in ("codes", "tokens"))),
    ),
    "conformer": (
        "soundstorm-toy",
        (
            "model.backbone.init_args={hidden_dim: 32, num_layers: 3, num_heads: 2, intermediate_dim: 48}",
            *(f"model.modalities.acoustic.codec={HARMONIC_CODES}", f"model.modalities.semantic.codec={SEMANTIC}"),
        ),
    ),
    "dit": ("stable-audio-toy", ("model.backbone.init_args.hidden_dim=32", "model.backbone.init_args.num_layers=3", BYTES)),
    "dit-3": (
        "stable-audio-toy",
        (
            *("model.backbone={class_path: dit-3, init_args: {hidden_dim: 32, num_layers: 3, num_heads: 2}}", BYTES),
            "model.modalities.latent.objective={class_path: flow-matching, init_args: {shows_known: true}}",
            "model.modalities.latent.sampler=euler",
        ),
    ),
}
"""Name → a shipped spec, and what is changed in it."""
CODES_ONLY = ("tokens", "conformer")
"""Models that make no latents. Codes are equal or not: there is no tolerance for bf16, and nothing to keep or vary."""
DEAF = ("tokens", "conformer", "dit", "dit-3")
"""Models that do not describe clips."""


def spec_of(name: str, folder: Path, *changes: str) -> Spec:
    """The spec of one of MODELS."""
    base, own = MODELS[name]
    pairs = [one.split("=", 1) for one in (*own, *DATA, *changes, f"train.run_dir={folder / 'run'}")]
    return resolve(load_spec([SPECS / f"{base}.yaml"], [(key, value) for key, value in pairs]))


@dataclass
class Twice:
    """A model with random weights on the CPU, its batches, and its copy on the emulated device."""

    name: str
    spec: Spec
    tokenizer: TextTokenizer
    cpu: UnifiedModel
    batches: Sequence[PackedBatch]

    def on_cuda(self) -> UnifiedModel:
        """Return a copy of the model on the emulated device."""
        model = deepcopy(self.cpu)
        to_cuda(model)
        return model

    @property
    def latent(self) -> str:
        """The first modality of which it makes latents."""
        return next(one.name for one in self.cpu.all_made if one.codec.spec.kind == "continuous")

    @property
    def mixes_networks(self) -> bool:
        return self.spec.of_model.router.class_path == "top-k"

    def user_of(self, model: UnifiedModel) -> SoundOmni:
        return SoundOmni(model, self.spec, self.tokenizer, in_training=True)


def make(name: str, folder: Path, *changes: str) -> Twice:
    """Build one of MODELS and pack two batches for it."""
    spec = spec_of(name, folder, *changes)
    assert spec.data is not None
    mixture = Mixture.open(spec.data, registry.build)
    tokenizer = TextTokenizer.train(mixture.captions(64), vocab_size=spec.of_model.tokenizer.vocab_size)
    model = build_model(spec.of_model, vocab_size=tokenizer.vocab_size, seed=1)
    if spec.train is not None and spec.train.lora is not None:
        add_adapters(model, spec.train.lora)
    writer = SampleWriter(segment_writer(model, spec.of_model, tokenizer=tokenizer), dropout=spec.data.condition_dropout)
    loader = PackedLoader(mixture=mixture, writer=writer, spec=spec.data, batches_per_step=2)
    try:
        batches = next(loader).batches
    finally:
        loader.close()
    for modality in model.each():
        if isinstance(modality, CodecModality):
            modality.fit([batch.of(modality.name) for batch in batches])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # the ways out start at zero, and would hide whatever comes before them
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Twice(name, spec, tokenizer, model, batches)


def clip(seconds: float, seed: int = 0) -> Audio:
    """A clip of noise and a tone."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal((1, count)) * 0.05
    return Audio((noise + 0.2 * np.sin(0.3 * np.arange(count))).astype(np.float32), RATE)
