"""Mimi (Défossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue", section 3.3), computed by
transformers' MimiModel.

Shape letters: B clips, C audio channels, S samples, K codebooks, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.limits import check_count
from soundomni.core.representation import RepresentationSpec
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.checkpoints.mimi_config import OTHER_NAMES
from soundomni.vae.clips import check_audio_format
from soundomni.vae.frozen_codec import FrozenCodec, check_codebooks, check_first_layer, check_samples
from soundomni.vae.sizes import check_strides

MOST_LAYERS = 256
"""Limit for specs from strangers: layers of a transformer."""


@dataclass(frozen=True, kw_only=True)
class MimiTransformer:
    """Sizes of each of Mimi's two transformers; the defaults are those of the published model.

    Args:
        hidden_dim: width, a multiple of 2 · num_heads.
        num_layers: layers.
        num_heads: attention heads.
        mlp_dim: inner width of the MLPs.
        sliding_window: steps that a layer attends to, half a frame each.

    Raises:
        SpecError: a size is out of range.
    """

    hidden_dim: int = 512
    num_layers: int = 8
    num_heads: int = 8
    mlp_dim: int = 2048
    sliding_window: int = 250

    def __post_init__(self) -> None:
        """Check every size."""
        check_count("transformer.num_layers", self.num_layers, most=MOST_LAYERS)
        for name in ("num_heads", "mlp_dim", "sliding_window"):
            check_count(f"transformer.{name}", getattr(self, name))
        if self.hidden_dim < 1 or self.hidden_dim % (2 * self.num_heads):
            raise SpecError(
                f"transformer.hidden_dim is {self.hidden_dim}; expected a multiple of 2 · num_heads, which is {2 * self.num_heads}"
            )


DEFAULT_TRANSFORMER = MimiTransformer()


class MimiCodec(FrozenCodec):
    """Mimi, as transformers computes it; the defaults are those of the published model: 24 kHz, 12.5 frames a second.

    Codes are `[B, K, T]` with T = ceil(S / (2 · product of the strides)): convolutions shorten a clip by the strides,
    then a transformer runs, and one more convolution halves what it gives. The first codebooks are semantic: they were
    trained to follow a model of speech, and quantize the same latents as the acoustic ones, which refine each other.
    `soundomni import mimi` makes a layer of a spec for the published model. With the defaults each codebook has 137.5
    bit/s, so 8, as in Moshi, make 1.1 kbit/s.

    The network is frozen, only looks back, and runs on each clip on its own, without a cache. Its transformers look
    back over the sliding window in every layer, 80 s with the defaults, so clips are not processed in pieces; they may
    have 16,777,216 samples, 11 minutes at 24 kHz. Without `weights` all codebooks are random.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C, 1 or 2.
        num_filters: width of the encoder's first layer; each block doubles it. At least 2.
        strides: stride of each block of the encoder, at least 2.
        transformer: sizes of the transformers; see MimiTransformer.
        codebook_size: entries of each codebook, a power of 2.
        codebook_dim: numbers of an entry.
        semantic_codebooks: semantic codebooks; the first ones.
        total_codebooks: codebooks of the network, more than the semantic ones.
        num_codebooks: codebooks to use, K; the first ones, at least the semantic ones. None uses all.
        weights: a .safetensors file with the state dict of transformers' MimiModel, with the names of any version from
            5.0.

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 24000,
        channels: int = 1,
        num_filters: int = 64,
        strides: tuple[int, ...] = (4, 5, 6, 8),
        transformer: MimiTransformer = DEFAULT_TRANSFORMER,
        codebook_size: int = 2048,
        codebook_dim: int = 256,
        semantic_codebooks: int = 1,
        total_codebooks: int = 32,
        num_codebooks: int | None = None,
        weights: str | None = None,
    ) -> None:
        check_audio_format(sample_rate, channels)
        check_first_layer(channels, num_filters)
        check_strides(strides)
        check_count("codebook_dim", codebook_dim)
        self.num_codebooks = check_codebooks(total_codebooks, num_codebooks, codebook_size)
        _check_semantic(semantic_codebooks, total_codebooks, self.num_codebooks)

        from transformers.models.mimi.configuration_mimi import MimiConfig
        from transformers.models.mimi.modeling_mimi import MimiModel

        ratio = math.prod(strides)
        config = MimiConfig(
            sampling_rate=sample_rate,
            frame_rate=math.ceil(sample_rate / ratio) / 2,  # so that the last stride is 2, however it is rounded
            audio_channels=channels,
            num_filters=num_filters,
            upsampling_ratios=list(strides[::-1]),
            hidden_size=transformer.hidden_dim,
            upsample_groups=transformer.hidden_dim,
            num_hidden_layers=transformer.num_layers,
            num_attention_heads=transformer.num_heads,
            num_key_value_heads=transformer.num_heads,
            intermediate_size=transformer.mlp_dim,
            sliding_window=transformer.sliding_window,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            vector_quantization_hidden_dimension=codebook_dim,
            num_quantizers=total_codebooks,
            num_semantic_quantizers=semantic_codebooks,
        )
        spec = RepresentationSpec(
            kind="codes",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=2 * ratio,
            codebook_sizes=(codebook_size,) * self.num_codebooks,
        )
        super().__init__(MimiModel(config), spec)
        quantizer = self.network.quantizer
        parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        self._codebooks = tuple(layer.codebook for part in parts for layer in part.layers)
        if weights is not None:
            load_strict(self.network, weights, renamed=OTHER_NAMES)
        else:
            for codebook in self._codebooks:
                nn.init.normal_(codebook.embed_sum)  # transformers leaves zeros, which make every code 0

    def encode_clip(self, clip: Tensor) -> Tensor:
        """Map one clip `[1, C, S]` to its codes `[1, K, T]`. Raise DataError if it is too long."""
        check_samples("Mimi", clip.shape[-1])
        self._forget_entries()
        codes: Tensor = self.network.encode(clip, num_quantizers=self.num_codebooks).audio_codes
        return codes

    def decode_clip(self, codes: Tensor) -> Tensor:
        """Map codes `[1, K, T]`, also of fewer levels, to samples `[1, C, S]`. Raise DataError if it is too long."""
        check_samples("Mimi", codes.shape[-1] * self._spec.downsampling_ratio)
        self._forget_entries()
        samples: Tensor = self.network.decode(codes).audio_values
        return samples

    def _forget_entries(self) -> None:
        """Have the entries of the codebooks computed again: transformers keeps them when weights change."""
        for codebook in self._codebooks:
            codebook._embed = None


def _check_semantic(semantic: int, total: int, used: int) -> None:
    """Raise SpecError for a number of semantic codebooks that there cannot be."""
    if not 1 <= semantic < total:
        raise SpecError(f"semantic_codebooks is {semantic}; expected at least 1, and fewer than the {total} of total_codebooks")
    if used < semantic:
        what = f"num_codebooks is {used}; expected at least {semantic}, which is semantic_codebooks"
        raise SpecError(f"{what}: Mimi always makes all of them")
