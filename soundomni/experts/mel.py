"""Mel power spectra of waveforms, on the waveform's device. Shape letters: B clips, S samples, M mel bins, T frames."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from soundomni.core.full_precision import full_precision
from soundomni.core.mel_filters import mel_filters
from soundomni.core.representation import length_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MelSpectrum:
    """Power spectra under a Hann window, combined by Slaney-normalized filters on the Slaney mel scale.

    It holds no tensors: filters and window are made once per device and stay float32, whatever happens to the model's
    parameters.

    Args:
        sample_rate: in Hz.
        n_fft: window length in samples.
        hop_length: samples between frames.
        num_mels: M.
        pad_mode: what a frame sees beyond the ends of the waveform: its mirror image, or zeros.
        frequencies: lowest and highest frequency of the filters in Hz; None for 0 and half the sample rate.
    """

    sample_rate: int
    n_fft: int
    hop_length: int
    num_mels: int
    pad_mode: Literal["reflect", "constant"]
    frequencies: tuple[float, float] | None = None

    def __call__(self, waveform: Tensor) -> Tensor:
        """Map `[B, S]` to float32 `[B, M, S // hop_length + 1]`; frame t is centered on sample t · hop_length."""
        window, filters = _constants(self, waveform.device)
        with full_precision(waveform.device):
            spectrum = torch.stft(
                waveform.float(),
                self.n_fft,
                self.hop_length,
                window=window,
                center=True,
                pad_mode=self.pad_mode,
                return_complex=True,
            )
            return filters @ (spectrum.real.square() + spectrum.imag.square())


@lru_cache(maxsize=16)
def _constants(mel: MelSpectrum, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window `[n_fft]` and the filters `[M, n_fft // 2 + 1]`."""
    filters = mel_filters(num_mels=mel.num_mels, n_fft=mel.n_fft, sample_rate=mel.sample_rate, scale="slaney", frequencies=mel.frequencies)
    empty = int((filters.max(axis=1) == 0.0).sum())
    if empty:
        logger.warning(
            "%d of the %d mel filters lie between two frequencies of the spectrum, and are always zero. Set a lower num_mels or "
            "a higher n_fft",
            empty,
            mel.num_mels,
        )
    with torch.inference_mode(False):  # the tensors outlive the call, and a later one may be recorded for backward
        return torch.hann_window(mel.n_fft, device=device), torch.tensor(filters, dtype=torch.float32, device=device)


def fit(waveform: Tensor, lengths: Tensor, num_samples: int) -> Tensor:
    """Map mono clips `[B, 1, S]` of `lengths` `[B]` to `[B, num_samples]`, zero beyond each clip."""
    mono = waveform[:, 0, :num_samples]
    inside = length_mask(lengths, mono.shape[-1])
    return F.pad(torch.where(inside, mono, 0.0), (0, num_samples - mono.shape[-1]))
