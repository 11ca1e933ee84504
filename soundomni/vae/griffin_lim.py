"""Finding the phases of spectra from their magnitudes: the algorithm of Griffin and Lim (1984) with the step of its fast variant
(Perraudin, Balazs and Søndergaard 2013, algorithm 2).

Shape letters: N signals, T frames, W samples per window, F = W // 2 + 1 frequency bins, S samples, M samples from frame to frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.representation import length_mask
from soundomni.vae.padding import framed

STEP = 0.99
"""Momentum of each round: α in the paper, which recommends values just below 1."""


def griffin_lim(magnitudes: Tensor, num_frames: Tensor, window: Tensor, *, hop: int, rounds: int) -> Tensor:
    """Return signals whose windowed spectra have magnitudes near the given ones.

    The first phases are random, but the same in every call and for every signal, so equal magnitudes give equal signals, whatever is in
    the batch with them.

    Args:
        magnitudes: `[N, T, F]`; frame t is centered on sample t·M.
        num_frames: frames of each signal `[N]`; later frames are ignored.
        window: `[W]`.
        hop: M, at most W / 2, so that windows overlap everywhere.
        rounds: how often the phases are improved.

    Returns:
        `[N, (T - 1)·M]`, zero beyond (num_frames - 1)·M.
    """
    if magnitudes.shape[1] < 2 or not len(magnitudes):
        return magnitudes.new_zeros(len(magnitudes), max(0, magnitudes.shape[1] - 1) * hop)
    within = length_mask(num_frames.to(magnitudes.device), magnitudes.shape[1])
    magnitudes = magnitudes.masked_fill(~within[..., None], 0.0)  # they may be anything, even NaN
    total = _overlap_add(within[..., None] * window.square(), hop).clamp_min(torch.finfo(window.dtype).eps)
    inside = length_mask((num_frames.to(magnitudes.device) - 1).clamp_min(0) * hop, total.shape[-1])
    generator = torch.Generator().manual_seed(0)
    turns = torch.rand(magnitudes.shape[1:], generator=generator, dtype=torch.float64).to(magnitudes)
    phases = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).expand(magnitudes.shape)
    before: Tensor | None = None
    for left in range(rounds, -1, -1):
        frames = torch.fft.irfft(magnitudes * phases, n=len(window)) * window
        samples = (_overlap_add(frames, hop) / total).masked_fill(~inside, 0.0)
        if left:
            again = framed(samples, len(window), hop, magnitudes.shape[1], before=len(window) // 2)
            found = torch.fft.rfft(again * window)
            ahead = found if before is None else found - STEP / (1.0 + STEP) * before
            phases, before = ahead / ahead.abs().clamp_min(torch.finfo(window.dtype).tiny), found
    return samples


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Add up frames `[N, T, W]` that are centered on samples t·M: `[N, (T - 1)·M]`, from the first center to the last."""
    count, width = frames.shape[1:]
    whole = (count - 1) * hop
    added = functional.fold(frames.transpose(1, 2), (1, whole + width), (1, width), stride=(1, hop))[:, 0, 0]
    return added[:, width // 2 : width // 2 + whole]
