"""EnCodec (Défossez et al. 2022, "High fidelity neural audio compression"), computed by transformers' EncodecModel.

Models that normalize the loudness of clips, such as the 48 kHz one, are not supported: they cut a clip into chunks of
one second that overlap by 1 %, and divide each by its loudness. So they need a real number for each chunk besides the
codes, and have 150 frames for every 0.99 s, whose count no number of samples per frame gives.

Shape letters: B clips, C audio channels, S samples, K codebooks, T frames.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from soundomni.core.limits import check_count
from soundomni.core.representation import RepresentationSpec
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import check_audio_format
from soundomni.vae.frozen_codec import FrozenCodec, check_codebooks, check_first_layer, check_samples
from soundomni.vae.sizes import check_strides


class EncodecCodec(FrozenCodec):
    """EnCodec, as transformers computes it; the defaults are those of the 24 kHz model.

    Codes are `[B, K, T]` with T = ceil(S / product of the strides). `soundomni import encodec` makes a layer of a spec
    for a published model: the 24 kHz one, or MusicGen's at 32 kHz. Models that normalize loudness, such as the 48 kHz
    one, have more than codes and are refused.

    A bandwidth is a number of codebooks: with the defaults each has 0.75 kbit/s, so 8 make 6 kbit/s. The network is
    frozen, and each clip runs on its own. Its LSTM looks back to the start of a clip, so clips cannot be processed in
    pieces; they may have 16,777,216 samples, 11 minutes at 24 kHz. Without `weights` all codebooks are random.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C, 1 or 2.
        num_filters: width of the encoder's first layer; each block doubles it. At least 2.
        strides: stride of each block of the encoder, at least 2.
        hidden_dim: numbers of a frame, and of an entry of a codebook.
        causal: whether convolutions only look back; otherwise they look as far ahead as back.
        conv_shortcut: whether residual blocks have a convolution in parallel; otherwise the identity.
        codebook_size: entries of each codebook, a power of 2.
        total_codebooks: codebooks of the network.
        num_codebooks: codebooks to use, K; the first ones. None uses all.
        weights: a .safetensors file with the state dict of transformers' EncodecModel.

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 24000,
        channels: int = 1,
        num_filters: int = 32,
        strides: tuple[int, ...] = (2, 4, 5, 8),
        hidden_dim: int = 128,
        causal: bool = True,
        conv_shortcut: bool = True,
        codebook_size: int = 1024,
        total_codebooks: int = 32,
        num_codebooks: int | None = None,
        weights: str | None = None,
    ) -> None:
        check_audio_format(sample_rate, channels)
        check_first_layer(channels, num_filters)
        check_strides(strides)
        check_count("hidden_dim", hidden_dim)
        used = check_codebooks(total_codebooks, num_codebooks, codebook_size)

        from transformers.models.encodec.configuration_encodec import EncodecConfig
        from transformers.models.encodec.modeling_encodec import EncodecModel

        ratio = math.prod(strides)
        self.bandwidth, most = (_bandwidth(count, math.ceil(sample_rate / ratio), codebook_size) for count in (used, total_codebooks))
        config = EncodecConfig(
            target_bandwidths=[self.bandwidth, most],
            sampling_rate=sample_rate,
            audio_channels=channels,
            num_filters=num_filters,
            upsampling_ratios=list(strides[::-1]),
            hidden_size=hidden_dim,
            use_causal_conv=causal,
            use_conv_shortcut=conv_shortcut,
            codebook_size=codebook_size,
        )
        sizes = (codebook_size,) * used
        super().__init__(
            EncodecModel(config),
            RepresentationSpec(kind="codes", sample_rate=sample_rate, channels=channels, downsampling_ratio=ratio, codebook_sizes=sizes),
        )
        if weights is not None:
            load_strict(self.network, weights)
        else:
            for layer in self.network.quantizer.layers:
                nn.init.normal_(layer.codebook.embed)  # transformers leaves zeros, which make every code 0

    def encode_clip(self, clip: Tensor) -> Tensor:
        """Map one clip `[1, C, S]` to its codes `[1, K, T]`. Raise DataError if it is too long."""
        check_samples("EnCodec", clip.shape[-1])
        codes: Tensor = self.network.encode(clip, bandwidth=self.bandwidth).audio_codes
        return codes[0]

    def decode_clip(self, codes: Tensor) -> Tensor:
        """Map codes `[1, K, T]`, also of fewer levels, to samples `[1, C, S]`. Raise DataError if the clip is too long."""
        check_samples("EnCodec", codes.shape[-1] * self._spec.downsampling_ratio)
        samples: Tensor = self.network.decode(codes[None], [None]).audio_values
        return samples


def _bandwidth(codebooks: int, frame_rate: int, codebook_size: int) -> float:
    """Return a bandwidth in kbit/s for which transformers uses so many codebooks, however it rounds."""
    return (codebooks + 0.5) * frame_rate * math.log2(codebook_size) / 1000
