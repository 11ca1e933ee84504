"""Codecs: waveforms to latents and back."""

from soundomni.vae.bottleneck import DiagonalGaussian
from soundomni.vae.dac import DacCodec
from soundomni.vae.encodec import EncodecCodec
from soundomni.vae.harmonic import HarmonicCodec
from soundomni.vae.harmonic_codes import HarmonicCodesCodec
from soundomni.vae.hubert_kmeans import HubertKmeansCodec
from soundomni.vae.kmeans import Clusters, fit_kmeans, nearest_centroid
from soundomni.vae.mdct import MDCTCodec
from soundomni.vae.mel_codes import MelCodesCodec
from soundomni.vae.mel_kmeans import MelKmeansCodec
from soundomni.vae.mel_magnitude import MelMagnitudeCodec
from soundomni.vae.mimi import MimiCodec
from soundomni.vae.oobleck import OobleckCodec
from soundomni.vae.oobleck_network import OobleckDecoder, OobleckEncoder, SnakeBeta
from soundomni.vae.quantizers import QuantizerSettings
from soundomni.vae.same import SameCodec
from soundomni.vae.same_network import SameTransformer
from soundomni.vae.seanet import SEANetDecoder, SEANetEncoder
from soundomni.vae.shape_gain import ShapeGainCodec
from soundomni.vae.soundstream import SoundStreamCodec
from soundomni.vae.speech_network import SpeechNetwork
from soundomni.vae.stft_loss import stft_distances

__all__ = [
    "Clusters",
    "DacCodec",
    "DiagonalGaussian",
    "EncodecCodec",
    "HarmonicCodec",
    "HarmonicCodesCodec",
    "HubertKmeansCodec",
    "MDCTCodec",
    "MelCodesCodec",
    "MelKmeansCodec",
    "MelMagnitudeCodec",
    "MimiCodec",
    "OobleckCodec",
    "OobleckDecoder",
    "OobleckEncoder",
    "QuantizerSettings",
    "SEANetDecoder",
    "SEANetEncoder",
    "SameCodec",
    "SameTransformer",
    "ShapeGainCodec",
    "SnakeBeta",
    "SoundStreamCodec",
    "SpeechNetwork",
    "fit_kmeans",
    "nearest_centroid",
    "stft_distances",
]
