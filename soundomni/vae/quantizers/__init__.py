"""Quantizers of codecs that are trained."""

from soundomni.vae.quantizers.bottleneck import CodeBottleneck
from soundomni.vae.quantizers.factorized import FactorizedQuantizer
from soundomni.vae.quantizers.finite_scalar import FiniteScalarQuantizer
from soundomni.vae.quantizers.lookup_free import LookupFreeQuantizer
from soundomni.vae.quantizers.moving_average import MovingAverageQuantizer
from soundomni.vae.quantizers.quantizer import Draws, Quantizer
from soundomni.vae.quantizers.settings import QuantizerSettings

__all__ = [
    "CodeBottleneck",
    "Draws",
    "FactorizedQuantizer",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "MovingAverageQuantizer",
    "Quantizer",
    "QuantizerSettings",
]
