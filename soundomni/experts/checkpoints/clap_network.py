"""The halves of a CLAP model (Wu et al. 2023) from its config.json and its safetensors files, which strangers may have written.

Only sizes are read from the config. Every tensor of a half has to be there, and those of the other half are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from soundomni.core.errors import SpecError
from soundomni.core.limits import MOST_VOCABULARY, check_count
from soundomni.experts.checkpoints.local_model import CONFIG, TOKENIZER, LocalModel
from soundomni.experts.checkpoints.t5_network import MOST_LAYERS, MOST_WIDTH

HEARING, PROCESSOR = "preprocessor_config.json", "processor_config.json"
MOST_RATE, MOST_SECONDS = 384_000, 600
"""Limits for configs from strangers."""
Activation = Literal["relu", "gelu", "silu", "tanh"]


@dataclass(frozen=True, kw_only=True)
class ClapTextSizes:
    """Sizes of the half for texts, under the names of the part `text_config`; the defaults are those of transformers."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    projection_dim: int = 512
    projection_hidden_act: Activation = "relu"

    def __post_init__(self) -> None:
        check_count("vocab_size", self.vocab_size, most=MOST_VOCABULARY)
        check_count("num_hidden_layers", self.num_hidden_layers, most=MOST_LAYERS)
        sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings", "type_vocab_size", "projection_dim")
        for name in sizes:
            check_count(name, getattr(self, name), most=MOST_WIDTH)
        if self.hidden_size % self.num_attention_heads:
            raise SpecError(f"hidden_size is {self.hidden_size}; expected a multiple of num_attention_heads ({self.num_attention_heads})")
        if not 0 <= self.pad_token_id < min(self.vocab_size, self.max_position_embeddings - 1):
            raise SpecError(f"pad_token_id is {self.pad_token_id}; expected the id of a token, below max_position_embeddings - 1")

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text: positions begin after that of the padding token."""
        return self.max_position_embeddings - self.pad_token_id - 1


@dataclass(frozen=True, kw_only=True)
class ClapAudioSizes:
    """Sizes of the half for audio, under the names of the part `audio_config`; the defaults are those of transformers."""

    window_size: int = 8
    num_mel_bins: int = 64
    spec_size: int = 256
    hidden_act: Activation = "gelu"
    patch_size: int = 4
    patch_stride: tuple[int, int] = (4, 4)
    hidden_size: int = 768
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: tuple[int, ...] = (4, 8, 16, 32)
    enable_fusion: bool = False
    patch_embed_input_channels: int = 1
    flatten_patch_embeds: bool = True
    patch_embeds_hidden_size: int = 96
    enable_patch_layer_norm: bool = True
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    projection_hidden_act: Activation = "relu"

    def __post_init__(self) -> None:
        widths = ("window_size", "num_mel_bins", "spec_size", "patch_size", "hidden_size", "patch_embeds_hidden_size", "projection_dim")
        for name in widths:
            check_count(name, getattr(self, name), most=MOST_WIDTH)
        for name in ("patch_stride", "depths", "num_attention_heads"):
            for value in getattr(self, name):
                check_count(name, value, most=MOST_LAYERS)
        if not self.depths or len(self.depths) != len(self.num_attention_heads):
            counts = f"depths has {len(self.depths)} entries and num_attention_heads {len(self.num_attention_heads)}"
            raise SpecError(f"{counts}; expected as many, and at least one")
        if self.enable_fusion:
            raise SpecError("enable_fusion is true; expected false. Use a model without fusion, such as laion/clap-htsat-unfused")


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """How a CLAP model hears a clip, under the names of its feature extractor; the defaults are those of transformers.

    `truncation` and `padding` say what it does with clips that are longer and shorter than `max_length_s` seconds.
    """

    sampling_rate: int = 48_000
    feature_size: int = 64
    hop_length: int = 480
    fft_window_size: int = 1024
    max_length_s: int = 10
    frequency_min: float = 0.0
    frequency_max: float = 14_000.0
    truncation: Literal["rand_trunc"] = "rand_trunc"
    padding: Literal["repeatpad"] = "repeatpad"

    def __post_init__(self) -> None:
        check_count("sampling_rate", self.sampling_rate, most=MOST_RATE)
        check_count("max_length_s", self.max_length_s, most=MOST_SECONDS)
        for name in ("feature_size", "hop_length", "fft_window_size"):
            check_count(name, getattr(self, name), most=MOST_WIDTH)
        if not self.fft_window_size // 2 < self.num_samples:
            raise SpecError(f"fft_window_size is {self.fft_window_size}; expected less than twice the {self.num_samples} samples of a clip")
        if not 0 <= self.frequency_min < self.frequency_max <= self.sampling_rate / 2:
            band = f"frequency_min is {self.frequency_min:g} and frequency_max is {self.frequency_max:g}"
            raise SpecError(f"{band}; expected a band within 0 and half the sampling_rate, {self.sampling_rate / 2:g}")

    @property
    def num_samples(self) -> int:
        """Samples of the clip that the network takes."""
        return self.max_length_s * self.sampling_rate


def find_clap(name: str, revision: str | None, *, plugin: str, reads_text: bool) -> LocalModel:
    """Find a CLAP model, with a tokenizer if its half for texts is wanted. Raise SpecError if it is not there."""
    files = (CONFIG, TOKENIZER) if reads_text else (CONFIG,)
    return LocalModel.find(name, revision, plugin=plugin, what="a CLAP model", example="laion/clap-htsat-unfused", files=files)


def read_text_sizes(model: LocalModel) -> ClapTextSizes:
    """Return the sizes of the half for texts. Raise SpecError if the config is not that of a CLAP model."""
    return model.sizes(_part(model, "text_config"), ClapTextSizes, key="text_config")


def read_audio_sizes(model: LocalModel) -> ClapAudioSizes:
    """Return the sizes of the half for audio. Raise SpecError if the config is not that of a CLAP model, or that of one with fusion."""
    return model.sizes(_part(model, "audio_config"), ClapAudioSizes, key="audio_config")


def read_hearing(model: LocalModel) -> Hearing:
    """Return how a model hears clips. Raise SpecError if its folder does not say, or says what is not supported."""
    if (model.folder / HEARING).is_file():
        return model.sizes(model.read(HEARING), Hearing, "sampling_rate", "truncation", key=HEARING)
    if (model.folder / PROCESSOR).is_file():  # newer versions of transformers write it in there
        key = f"feature_extractor in {PROCESSOR}"
        return model.sizes(model.read(PROCESSOR).get("feature_extractor"), Hearing, "sampling_rate", "truncation", key=key)
    raise SpecError(f"{model.plugin}: '{model.name}' lacks {HEARING}; expected the settings of its feature extractor")


def load_text_network(model: LocalModel, sizes: ClapTextSizes) -> Any:
    """Return transformers' ClapTextModelWithProjection with the weights of a model, in float32 and frozen. Raise CheckpointError."""
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    return model.load(lambda: ClapTextModelWithProjection(ClapTextConfig(**asdict(sizes))))


def load_audio_network(model: LocalModel, sizes: ClapAudioSizes) -> Any:
    """Return transformers' ClapAudioModelWithProjection with the weights of a model, in float32 and frozen. Raise CheckpointError."""
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection

    return model.load(lambda: ClapAudioModelWithProjection(ClapAudioConfig(**asdict(sizes))))


def _part(model: LocalModel, key: str) -> object:
    """Return the part of the config at a key, with what the whole config says about the projection."""
    config = model.config("clap")
    part = config.get(key)
    shared = {name: config[name] for name in ("projection_dim", "projection_hidden_act") if name in config}
    return {**part, **shared} if isinstance(part, Mapping) else part
