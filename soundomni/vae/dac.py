"""The Descript Audio Codec (Kumar et al. 2023, "High-fidelity audio compression with improved RVQGAN"), computed by
transformers' DacModel.

Shape letters: B clips, S samples, K codebooks, T frames.
"""

from __future__ import annotations

import math

from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.representation import RepresentationSpec
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import check_audio_format
from soundomni.vae.frozen_codec import FrozenCodec, check_codebooks
from soundomni.vae.padding import pad_to_frames
from soundomni.vae.receptive_field import input_span
from soundomni.vae.sizes import check_strides


class DacCodec(FrozenCodec):
    """The Descript Audio Codec, mono, as transformers computes it; the defaults are those of the 44.1 kHz model.

    Codes are `[B, K, T]` with T = ceil(S / product of the strides). `soundomni import dac` makes a layer of a spec for
    a published model: 44.1 kHz (strides 2, 4, 8, 8; 9 codebooks), 24 kHz (2, 4, 5, 8; 32) or 16 kHz (2, 4, 5, 8; 12).

    The network is frozen, and each clip runs on its own, padded with silence to whole frames. With odd strides it makes
    a few samples less than its frames stand for; they are silence: 8 of 320 samples of the last frame with strides 2, 4,
    5, 8.

    Args:
        sample_rate: sample rate in Hz.
        encoder_dim: width of the encoder's first layer; each block doubles it.
        decoder_dim: width of the decoder's first layer; each block halves it.
        strides: stride of each block of the encoder, at least 2.
        codebook_size: entries of each codebook, a power of 2.
        codebook_dim: numbers of an entry.
        total_codebooks: codebooks of the network.
        num_codebooks: codebooks to use, K; the first ones. None uses all.
        weights: a .safetensors file with the state dict of transformers' DacModel.

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 44100,
        encoder_dim: int = 64,
        decoder_dim: int = 1536,
        strides: tuple[int, ...] = (2, 4, 8, 8),
        codebook_size: int = 1024,
        codebook_dim: int = 8,
        total_codebooks: int = 9,
        num_codebooks: int | None = None,
        weights: str | None = None,
    ) -> None:
        check_audio_format(sample_rate, 1)
        check_strides(strides)
        check_count("encoder_dim", encoder_dim)
        check_count("codebook_dim", codebook_dim)
        if decoder_dim < 2 ** len(strides):
            raise SpecError(f"decoder_dim is {decoder_dim}; expected at least {2 ** len(strides)}, as each stride halves it")
        self.num_codebooks = check_codebooks(total_codebooks, num_codebooks, codebook_size)

        from transformers.models.dac.configuration_dac import DacConfig
        from transformers.models.dac.modeling_dac import DacModel

        config = DacConfig(
            sampling_rate=sample_rate,
            encoder_hidden_size=encoder_dim,
            decoder_hidden_size=decoder_dim,
            downsampling_ratios=list(strides),
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            n_codebooks=total_codebooks,
        )
        spec = RepresentationSpec(
            kind="codes",
            sample_rate=sample_rate,
            channels=1,
            downsampling_ratio=math.prod(strides),
            codebook_sizes=(codebook_size,) * self.num_codebooks,
        )
        super().__init__(DacModel(config), spec)
        if weights is not None:
            load_strict(self.network, weights)

    @property
    def receptive_field(self) -> ReceptiveField:
        """8 frames of the encoder and 10 of the decoder with the strides of the published models."""
        ratio = self._spec.downsampling_ratio
        first_sample, last_sample = input_span(self.network.encoder, 0, 0)
        first_frame, last_frame = input_span(self.network.decoder, 0, ratio - 1)
        return ReceptiveField(encode=max(-(first_sample // ratio), last_sample // ratio), decode=max(-first_frame, last_frame))

    def encode_clip(self, clip: Tensor) -> Tensor:
        """Map one clip `[1, 1, S]` to its codes `[1, K, T]`."""
        padded = pad_to_frames(clip, self._spec.downsampling_ratio, self._spec.num_frames(clip.shape[-1]))
        codes: Tensor = self.network.encode(padded, n_quantizers=self.num_codebooks).audio_codes
        return codes

    def decode_clip(self, codes: Tensor) -> Tensor:
        """Map codes `[1, K, T]`, also of fewer levels, to samples `[1, 1, S]`."""
        samples: Tensor = self.network.decode(audio_codes=codes).audio_values
        return samples[:, None]
