"""Stable Audio's autoencoder as a codec, a variational autoencoder.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from soundomni.core.errors import SpecError, shown
from soundomni.core.interfaces import Codec, LossTerms, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec, draw_noise
from soundomni.vae.bottleneck import DiagonalGaussian
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import check_audio_format, check_latent, check_waveform
from soundomni.vae.oobleck_network import Extent, OobleckDecoder, OobleckEncoder
from soundomni.vae.padding import pad_to_frames, zero_beyond
from soundomni.vae.receptive_field import input_span
from soundomni.vae.sizes import MOST_WIDTH, check_strides, check_widths


class OobleckCodec(Codec):
    """Stable Audio's convolutional autoencoder; the defaults are those of Stable Audio 2.0.

    Latents are `[B, D, T]` with T = ceil(S / product of the strides).

    Each clip is padded with silence to a multiple of the ratio, and its result does not depend on other clips in the
    batch.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C.
        base_channels: width of the first layer.
        channel_multiples: width of each block, in multiples of `base_channels`.
        strides: stride of each block, at least 2; as many as `channel_multiples`.
        latent_dim: latent dimensions D.
        final_tanh: whether to limit decoded samples to (-1, 1).
        use_snake: SnakeBeta activations; otherwise ELU.
        sample_latents: if generators are given, as in training, encode to mean + std·ε instead of the mean.
        kl_weight: factor that the "kl" loss includes.
        weights: a .safetensors file with this codec's own state dict.

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 44100,
        channels: int = 2,
        base_channels: int = 128,
        channel_multiples: tuple[int, ...] = (1, 2, 4, 8, 16),
        strides: tuple[int, ...] = (2, 4, 4, 8, 8),
        latent_dim: int = 64,
        final_tanh: bool = False,
        use_snake: bool = True,
        sample_latents: bool = False,
        kl_weight: float = 1e-4,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        _check_sizes(base_channels, channel_multiples, strides, latent_dim)
        widths = [base_channels * multiple for multiple in (1, *channel_multiples)]
        self.encoder = OobleckEncoder(
            audio_channels=channels, widths=widths, strides=strides, output_dim=2 * latent_dim, use_snake=use_snake
        )
        self.decoder = OobleckDecoder(
            audio_channels=channels,
            widths=widths[::-1],
            strides=strides[::-1],
            latent_dim=latent_dim,
            use_snake=use_snake,
            final_tanh=final_tanh,
        )
        self.sample_latents = sample_latents
        self.kl_weight = kl_weight
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=math.prod(strides),
            latent_dim=latent_dim,
        )
        if weights is not None:
            load_strict(self, weights)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Only "kl"."""
        return ("kl",)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """8 frames of the encoder and 10 of the decoder with Stable Audio's strides."""
        ratio = self._spec.downsampling_ratio
        first_sample, last_sample = input_span(self.encoder, 0, 0)
        first_frame, last_frame = input_span(self.decoder, 0, ratio - 1)
        return ReceptiveField(encode=max(-(first_sample // ratio), last_sample // ratio), decode=max(-first_frame, last_frame))

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip. Raise DataError."""
        posterior, frames = self._posterior(waveform, lengths)
        if self.sample_latents and generators is not None:
            return Representation(posterior.sample(self._noise(posterior.mean, frames, generators)), frames, self._spec)
        return Representation(posterior.mean, frames, self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, D, T]` to `[B, C, T · ratio]`, zero beyond each clip's frames. Raise DataError."""
        check_latent(representation, self._spec)
        return self._decode(representation.values, representation.lengths.to(representation.values.device))

    def reconstruct(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, LossTerms]:
        """Return the estimate of `[B, C, S]`, from mean + std·ε with ε of clip b drawn from `generators[b]`, and the loss "kl".

        It is `kl_weight` times the divergence, summed over D, per frame. "latent/power" is the mean square of the means. Frames
        beyond a clip do not count.
        """
        posterior, frames = self._posterior(waveform, lengths)
        noise = self._noise(posterior.mean, frames, generators)
        decoded = self._decode(posterior.sample(noise), frames)[..., : waveform.shape[-1]]
        divergence = zero_beyond(posterior.divergence()[:, None].float(), frames)
        power = zero_beyond(posterior.mean.detach().float(), frames).square()
        return decoded, {
            "kl": (self.kl_weight * divergence.sum(), frames.sum()),
            "latent/power": (power.sum(), frames.sum() * power.shape[1]),
        }

    def _noise(self, like: Tensor, frames: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw ε `[B, D, T]`, clip b only from `generators[b]` and independently of the padding."""
        noise = torch.zeros_like(like)
        for i, (count, generator) in enumerate(zip(frames.tolist(), generators, strict=True)):
            draw_noise(noise[i], count, generator)
        return noise

    def _posterior(self, waveform: Tensor, lengths: Tensor) -> tuple[DiagonalGaussian, Tensor]:
        check_waveform(waveform, lengths, self._spec)
        ratio, lengths = self._spec.downsampling_ratio, lengths.to(waveform.device)
        frames = self._spec.frame_lengths(lengths)
        num_frames = self._spec.num_frames(waveform.shape[-1])
        padded = pad_to_frames(zero_beyond(waveform, lengths), ratio, num_frames)
        parameters = self.encoder(padded, Extent.of(frames, num_frames))
        return DiagonalGaussian.from_parameters(parameters), frames

    def _decode(self, latent: Tensor, frames: Tensor) -> Tensor:
        out: Tensor = self.decoder(zero_beyond(latent, frames), Extent.of(frames, latent.shape[-1]))
        return out


def _check_sizes(base_channels: int, multiples: Sequence[int], strides: Sequence[int], latent_dim: int) -> None:
    if len(multiples) != len(strides) or not strides:
        given = f"channel_multiples is {shown(list(multiples))} and strides is {shown(list(strides))}"
        raise SpecError(f"{given}; expected lists of the same length, with at least one entry")
    check_strides(strides)
    check_widths(base_channels, multiples)
    check_count("latent_dim", latent_dim, most=MOST_WIDTH)
