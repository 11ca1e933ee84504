"""Multi-resolution spectral distance (Yamamoto et al. 2020, section 2.2; Steinmetz and Reiss 2020, auraloss).

At each resolution, per clip: spectral convergence ‖|X| − |Y|‖ / ‖|X|‖ plus the mean of |log |X| − log |Y||. Hann
windows, hops of a quarter, and windows of unit energy, so that white noise of unit variance has bins of unit variance
at every resolution.

Shape letters: B clips, C audio channels, S samples, F frequency bins, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soundomni.core.representation import length_mask
from soundomni.vae.spectrum import spectrum

DEFAULT_WINDOWS = (2048, 1024, 512, 256, 128, 64, 32)
MAGNITUDE_FLOOR = 1e-4
"""Added to magnitudes in quadrature: below it (−80 dB) everything is equally quiet, and the slope of the root stays
finite."""
QUIET_RMS = 1e-3
"""A clip quieter than this (−60 dB) is measured as if it were this loud, so that silence does not divide by zero."""


def stft_distances(target: Tensor, estimate: Tensor, lengths: Tensor, windows: Sequence[int] = DEFAULT_WINDOWS) -> tuple[Tensor, Tensor]:
    """Compare waveforms `[B, C, S]`, zero beyond the `lengths` `[B]`, clip by clip.

    Windows longer than a clip are left out for that clip; a clip shorter than every window has distance 0 and does not
    count. The distance is the mean over the channels and, if there are two, also over their sum and difference.

    Returns:
        The distance of each clip `[B]`, the mean over its windows, and bool `[B]`, whether it has one.
    """
    target, estimate = _views(target), _views(estimate)
    total = target.new_zeros(len(target))
    fitting = torch.zeros_like(lengths)
    for window in windows:
        fits = lengths >= window
        if window > target.shape[-1]:
            continue
        distance = _distance(_magnitudes(target, window), _magnitudes(estimate, window), lengths // (window // 4) + 1)
        total = total + distance.masked_fill(~fits, 0.0)
        fitting = fitting + fits
    return total / fitting.clamp_min(1), fitting > 0


def _views(waveform: Tensor) -> Tensor:
    if waveform.shape[1] != 2:
        return waveform
    left, right = waveform.unbind(1)
    return torch.stack([left + right, left - right, left, right], dim=1)


def _magnitudes(waveform: Tensor, window: int) -> Tensor:
    """Map `[B, C, S]` to `[B, C, F, T]`, frame t centered on sample t · hop, with silence around the clip."""
    bins = spectrum(waveform, window, center=True)
    return (bins.real.square() + bins.imag.square() + MAGNITUDE_FLOOR**2).sqrt()


def _distance(target: Tensor, estimate: Tensor, frames: Tensor) -> Tensor:
    """Map `[B, C, F, T]` each, of which `frames` `[B]` belong to the clip, to `[B]`."""
    beyond = ~length_mask(frames, target.shape[-1])[:, None, None]
    difference = (target - estimate).masked_fill(beyond, 0.0)
    size = target.masked_fill(beyond, 0.0)
    numbers = (target.shape[2] * frames)[:, None].to(target.dtype)
    quiet = QUIET_RMS * numbers.sqrt()
    convergence = _root(difference.square().sum((2, 3))) / torch.maximum(_root(size.square().sum((2, 3))), quiet)
    log_difference = (target.log() - estimate.log()).masked_fill(beyond, 0.0)
    return (convergence + log_difference.abs().sum((2, 3)) / numbers).mean(1)


def _root(power: Tensor) -> Tensor:
    """Return the square root, with a finite slope at zero, where a perfect estimate is."""
    return (power + MAGNITUDE_FLOOR**2).sqrt() - MAGNITUDE_FLOOR
