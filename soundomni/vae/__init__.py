"""Codecs: waveform to latents and back."""

from soundomni.vae.bottleneck import DiagonalGaussian
from soundomni.vae.mdct import MDCTCodec
from soundomni.vae.oobleck import OobleckCodec
from soundomni.vae.oobleck_network import OobleckDecoder, OobleckEncoder, SnakeBeta
from soundomni.vae.stft_loss import stft_distances

__all__ = ["DiagonalGaussian", "MDCTCodec", "OobleckCodec", "OobleckDecoder", "OobleckEncoder", "SnakeBeta", "stft_distances"]
