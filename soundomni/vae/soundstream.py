"""SoundStream (Zeghidour et al. 2021, "SoundStream: an end-to-end neural audio codec"): a causal convolutional
autoencoder whose latents are quantized, trained from scratch.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codes of a frame, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Generator, Tensor, nn

from soundomni.core.errors import SpecError, shown
from soundomni.core.interfaces import Codec, LossTerms, Ranks, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import check_audio_format, check_codes, check_waveform
from soundomni.vae.codec_stream import CodecStream
from soundomni.vae.padding import pad_to_frames, zero_beyond
from soundomni.vae.quantizers.bottleneck import CodeBottleneck
from soundomni.vae.quantizers.settings import QuantizerSettings
from soundomni.vae.receptive_field import input_span
from soundomni.vae.seanet import SEANetDecoder, SEANetEncoder
from soundomni.vae.sizes import MOST_WIDTH, check_strides, check_widths

DEFAULT_QUANTIZER = QuantizerSettings()


class SoundStreamCodec(Codec):
    """A causal codec of codes to train: SEANet and residual quantization; the defaults are those of AudioLM at 16 kHz.

    Codes are `[B, K, T]` with T = ceil(S / product of the strides), level by level, and the first levels can be decoded
    without the others. The defaults make 50 frames of 12 codes a second, 6 kbit/s. MusicLM's differ in
    `sample_rate: 24000` and `strides: [3, 4, 5, 8]`.

    A clip is padded with silence to whole frames, and its result does not depend on other clips in the batch. Codes
    only depend on earlier samples and those of their own frame, so `stream` codes a clip while it comes in.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C.
        base_channels: width of the first layer.
        channel_multiples: width of each block, in multiples of `base_channels`.
        strides: stride of each block, at least 2; as many as `channel_multiples`.
        latent_dim: latent dimensions D, which are quantized.
        attention_window: frames that a frame attends to, at the end of the encoder and the start of the decoder; 0 for
            convolutions only, 128 for about 2.5 s.
        weight_norm: whether convolutions have normalized weights.
        quantizer: how latents are quantized; see QuantizerSettings.
        warmup_steps: steps of training without quantization, before codebooks start from the latents.
        weights: a .safetensors file with this codec's own state dict.

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        base_channels: int = 32,
        channel_multiples: tuple[int, ...] = (2, 4, 8, 16),
        strides: tuple[int, ...] = (2, 4, 5, 8),
        latent_dim: int = 512,
        attention_window: int = 0,
        weight_norm: bool = False,
        quantizer: QuantizerSettings = DEFAULT_QUANTIZER,
        warmup_steps: int = 0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        _check_sizes(base_channels, channel_multiples, strides, latent_dim)
        if min(attention_window, warmup_steps) < 0:
            given = f"attention_window is {attention_window} and warmup_steps is {warmup_steps}"
            raise SpecError(f"{given}; expected at least 0 of both")
        widths = [base_channels * multiple for multiple in (1, *channel_multiples)]
        self.encoder = SEANetEncoder(
            audio_channels=channels,
            widths=widths,
            strides=strides,
            latent_dim=latent_dim,
            attention_window=attention_window,
            normalize=weight_norm,
        )
        self.bottleneck = CodeBottleneck(dim=latent_dim, settings=quantizer, warmup_steps=warmup_steps)
        self.decoder = SEANetDecoder(
            audio_channels=channels,
            widths=widths[::-1],
            strides=strides[::-1],
            latent_dim=latent_dim,
            attention_window=attention_window,
            normalize=weight_norm,
        )
        self.attention_window = attention_window
        self._spec = RepresentationSpec(
            kind="codes",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=math.prod(strides),
            codebook_sizes=quantizer.codebook_sizes,
        )
        if weights is not None:
            load_strict(self, weights)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses of the quantizers."""
        return self.bottleneck.loss_names

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the codes."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """Reach back, as nothing depends on what comes later: without attention, 16 frames of the encoder and 20 of the
        decoder with the default strides."""
        ratio, more = self._spec.downsampling_ratio, max(0, self.attention_window - 1)
        first_sample, _ = input_span(self.encoder, 0, 0)
        first_frame, _ = input_span(self.decoder, 0, ratio - 1)
        return ReceptiveField(encode=-(first_sample // ratio) + more, decode=-first_frame + more)

    @property
    def whole(self) -> Sequence[nn.Module]:
        """The bottleneck, if `after_step` starts parameters of it."""
        return self.bottleneck.whole

    def encode(
        self,
        waveform: Tensor,
        lengths: Tensor,
        generators: Sequence[Generator] | None = None,
    ) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip; nothing is random.

        Raise DataError.
        """
        latents, frames = self._latents(waveform, lengths)
        return Representation(self.bottleneck.encode(latents), frames, self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode the first k codes of each frame, `[B, k, T]`, to `[B, C, T · ratio]`, zero beyond each clip's frames.

        Raise DataError.
        """
        check_codes(representation, self._spec)
        frames = representation.lengths.to(representation.values.device)
        latents = self.bottleneck.decode(zero_beyond(representation.values, frames))
        return self._waveform(latents, frames)

    def reconstruct(
        self,
        waveform: Tensor,
        lengths: Tensor,
        generators: Sequence[Generator],
    ) -> tuple[Tensor, LossTerms]:
        """Encode and decode `[B, C, S]` for training: return the estimate `[B, C, S]` and the losses of the quantizers.

        In training mode a clip may use fewer levels, drawn from its own generator. Raise DataError.
        """
        latents, frames = self._latents(waveform, lengths)
        quantized, losses = self.bottleneck(latents, frames, generators)
        return self._waveform(quantized.to(latents.dtype), frames)[..., : waveform.shape[-1]], losses

    def after_step(self, ranks: Ranks) -> None:
        """Update codebooks that are moving averages, and start quantizers after the warm-up."""
        self.bottleneck.after_step(ranks)

    def stream(self) -> CodecStream:
        """Return an object that encodes or decodes one clip piece by piece, without computing anything twice."""
        return CodecStream(self.encoder, self.bottleneck, self.decoder, self._spec)

    def _latents(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents `[B, D, T]`, and the frames `[B]` of each clip."""
        check_waveform(waveform, lengths, self._spec)
        lengths = lengths.to(waveform.device)
        ratio, num_frames = self._spec.downsampling_ratio, self._spec.num_frames(waveform.shape[-1])
        padded = pad_to_frames(zero_beyond(waveform, lengths), ratio, num_frames)
        return self.encoder(padded), self._spec.frame_lengths(lengths)

    def _waveform(self, latents: Tensor, frames: Tensor) -> Tensor:
        return zero_beyond(self.decoder(latents), frames * self._spec.downsampling_ratio)


def _check_sizes(base_channels: int, multiples: Sequence[int], strides: Sequence[int], latent_dim: int) -> None:
    check_strides(strides)
    if len(multiples) != len(strides):
        given = f"channel_multiples is {shown(list(multiples))} and strides is {shown(list(strides))}"
        raise SpecError(f"{given}; expected lists of the same length")
    check_widths(base_channels, multiples)
    check_count("latent_dim", latent_dim, most=MOST_WIDTH)
