"""Critics: what judges a codec's estimates in training, some of which learn too."""

from soundomni.vae.critics.complex_stft import ComplexSTFTCritic
from soundomni.vae.critics.l1 import L1Critic
from soundomni.vae.critics.multi_mel import MultiMelCritic
from soundomni.vae.critics.multi_period import MultiPeriodCritic
from soundomni.vae.critics.multi_scale_stft import MultiScaleSTFTCritic
from soundomni.vae.critics.multi_scale_waveform import MultiScaleWaveformCritic
from soundomni.vae.critics.multi_stft import MultiSTFTCritic

__all__ = [
    "ComplexSTFTCritic",
    "L1Critic",
    "MultiMelCritic",
    "MultiPeriodCritic",
    "MultiSTFTCritic",
    "MultiScaleSTFTCritic",
    "MultiScaleWaveformCritic",
]
