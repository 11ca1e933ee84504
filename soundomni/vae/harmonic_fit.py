"""Harmonics of a frame: its pitch, and the amplitudes and phases that explain most of it.

The pitch comes from the first clear key maximum of the normalized difference function (McLeod and Wyvill 2005), the
amplitudes from least squares under a Hann window (Stylianou 2001), and one Gauss-Newton step between two such fits
refines the pitch.

Shape letters: F frames, M samples per hop, K harmonics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLEAR = 0.93
"""The first key maximum with at least this share of the highest gives the pitch; later ones belong to its multiples."""
_PARTS = 4  # steps per sample between two lags: the peak of a bright tone is narrower than a sample

_RIDGE = 1e-6
_MOST_STEP = 0.03  # share of the pitch: half way to the next semitone
_QUIET = 1e-20


def hann(hop: int, like: Tensor) -> Tensor:
    """Return the second half of the window, `[M]`: the halves, one hop apart, add up to 1."""
    turns = (torch.arange(hop, device=like.device, dtype=like.dtype) + hop + 0.5) / (2 * hop)
    return torch.sin(math.pi * turns).square()


def waves(pitch: Tensor, num_harmonics: int, hop: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the harmonics k = 1 … K over the second half of a frame, whose middle is time 0, `[F,
    K, M]` each.

    The first half mirrors it. Harmonics at or above half the sampling rate, as nearly as a frame can tell, are zero.

    Args:
        pitch: f in cycles per sample `[F]`.
        num_harmonics, hop: K and M.
    """
    angles = 2.0 * math.pi * pitch[:, None] * _times(hop, pitch)
    cosines, sines = [angles.cos()], [angles.sin()]
    for _ in range(num_harmonics - 1):
        cosine, sine = cosines[-1], sines[-1]
        cosines.append(cosine * cosines[0] - sine * sines[0])
        sines.append(sine * cosines[0] + cosine * sines[0])
    order = torch.arange(1, num_harmonics + 1, device=pitch.device, dtype=pitch.dtype)
    heard = (pitch[:, None] * order < 0.5 - 1.0 / (8 * hop))[..., None]
    return torch.stack(cosines, dim=1) * heard, torch.stack(sines, dim=1) * heard


def mix(amplitudes: Tensor, harmonics: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of harmonics with complex `amplitudes` `[F, K]`, given at the middle of the frame: `[F, 2M]`."""
    cosines, sines = harmonics
    return _unfold(_sum(amplitudes.real, cosines), -_sum(amplitudes.imag, sines))


def find_pitch(frames: Tensor, lowest: float, highest: float) -> tuple[Tensor, Tensor]:
    """Return the pitch of `frames` `[F, 2M]` in cycles per sample `[F]`, and how periodic each is, at most 1 `[F]`.

    Args:
        frames: samples.
        lowest, highest: pitches to look for, in cycles per sample. A frame without a peak gets the highest and -1.
    """
    size = frames.shape[-1]
    most, least = _PARTS * min(math.ceil(1.0 / lowest) + 2, size - 1), _PARTS * math.floor(1.0 / highest)
    power = torch.fft.rfft(frames, n=2 * size).abs().square()
    correlation = _PARTS * torch.fft.irfft(power, n=2 * size * _PARTS)[:, :most]
    lags = torch.arange(most, device=frames.device)
    likeness = 2.0 * correlation / _energies(frames, most).clamp_min(_QUIET)
    before, here, after = likeness[:, :-2], likeness[:, 1:-1], likeness[:, 2:]
    # A key maximum is the highest value between two upward zero crossings; what comes before the first belongs to the peak at lag 0.
    lobe = ((here > 0) & (before <= 0)).cumsum(dim=-1)
    peak = (here >= before) & (here > after) & (lobe > 0) & (lags[1:-1] >= least)
    height = torch.where(peak, here, -torch.ones_like(here))
    best = torch.full_like(height, -1.0).scatter_reduce(1, lobe, height, "amax")
    highest_peak = height.amax(dim=-1, keepdim=True)
    clear = peak & (height >= best.gather(1, lobe)) & (height >= CLEAR * highest_peak)
    first = clear.to(torch.int8).argmax(dim=-1, keepdim=True)
    left, middle, right = (values.gather(-1, first) for values in (before, here, after))
    shift = 0.5 * (left - right) / (left - 2.0 * middle + right).clamp_max(-_QUIET)
    period = (first + 1 + shift.clamp(-0.5, 0.5)).squeeze(-1) / _PARTS
    found = highest_peak.squeeze(-1)
    return torch.where(found > -1.0, 1.0 / period, torch.full_like(period, highest)).clamp(lowest, highest), found


def _energies(frames: Tensor, num_lags: int) -> Tensor:
    """Return the energy of the two pieces that overlap at lags 0 … num_lags - 1, in steps of 1 / _PARTS sample: `[F,
    num_lags]`."""
    size = frames.shape[-1]
    sums = torch.nn.functional.pad(frames.square().cumsum(-1), (1, 0))
    whole = torch.arange((num_lags - 1) // _PARTS + 2, device=frames.device)
    both = sums[:, size - whole] + sums[:, -1:] - sums[:, whole]
    lags = torch.arange(num_lags, device=frames.device)
    before, parts = lags // _PARTS, lags % _PARTS
    return both[:, before] + (both[:, before + 1] - both[:, before]) * (parts / _PARTS).to(both.dtype)


def fit(frames: Tensor, pitch: Tensor, num_harmonics: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit harmonics to `frames` `[F, 2M]` at `pitch` `[F]`, and again after one Gauss-Newton step of the pitch.

    Returns:
        the pitch, in cycles per sample `[F]`; the complex amplitudes at the middle of each frame `[F, K]`; and the
        share of the windowed energy that they explain, at most 1 `[F]`.
    """
    hop = frames.shape[-1] // 2
    window, time = hann(hop, frames), _times(hop, frames)
    turning = 2.0 * math.pi * torch.arange(1, num_harmonics + 1, device=frames.device, dtype=frames.dtype)
    even, odd = _fold(frames)
    cosines, sines = waves(pitch, num_harmonics, hop)
    real, imaginary = _solve(even, cosines, window), -_solve(odd, sines, window)
    even_slope, odd_slope = -time * _sum(turning * real, sines), -time * _sum(turning * imaginary, cosines)
    down = even_slope * (even - _sum(real, cosines)) + odd_slope * (odd + _sum(imaginary, sines))
    change = (window * down).sum(-1) / (window * (even_slope.square() + odd_slope.square())).sum(-1).clamp_min(_QUIET)
    pitch = pitch + change.clamp(-_MOST_STEP * pitch, _MOST_STEP * pitch)

    cosines, sines = waves(pitch, num_harmonics, hop)
    real, imaginary = _solve(even, cosines, window), -_solve(odd, sines, window)
    left = (even - _sum(real, cosines)).square() + (odd + _sum(imaginary, sines)).square()
    energy = (window * (even.square() + odd.square())).sum(-1).clamp_min(_QUIET)
    return pitch, torch.complex(real, imaginary), 1.0 - (window * left).sum(-1) / energy


def _times(hop: int, like: Tensor) -> Tensor:
    """Return the times of a frame's second half relative to its middle, in samples `[M]`."""
    return torch.arange(hop, device=like.device, dtype=like.dtype) + 0.5


def _fold(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Map `[F, 2M]` to even and odd parts about the middle, `[F, M]` each.

    Under a symmetric window they are independent.
    """
    first, second = frames.chunk(2, dim=-1)
    return 0.5 * (second + first.flip(-1)), 0.5 * (second - first.flip(-1))


def _unfold(even: Tensor, odd: Tensor) -> Tensor:
    return torch.cat([(even - odd).flip(-1), even + odd], dim=-1)


def _sum(weights: Tensor, rows: Tensor) -> Tensor:
    """Map `[F, K]`, `[F, K, M]` to `[F, M]`."""
    return (weights[:, None] @ rows).squeeze(1)


def _solve(target: Tensor, rows: Tensor, window: Tensor) -> Tensor:
    """Return the weights of `rows` `[F, K, M]` that best approximate `target` `[F, M]` under the window: `[F, K]`."""
    weighted = rows * window
    ridge = _RIDGE * window.sum() * torch.eye(rows.shape[1], device=rows.device, dtype=rows.dtype)
    weights: Tensor = torch.linalg.solve(weighted @ rows.mT + ridge, weighted @ target[..., None])
    return weights.squeeze(-1)
