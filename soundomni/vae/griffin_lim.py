"""Finding the phases of spectra from their magnitudes: the algorithm of Griffin and Lim (1984) with the step of its fast variant
(Perraudin, Balazs and Søndergaard 2013, algorithm 2).

In a round, a phase only depends on the frames that overlap with its own, so a sample depends on a fixed number of frames
around it. The first phases repeat after PERIOD frames. So a piece of a signal comes out as in the whole if it begins at a
multiple of PERIOD and has `reach` more frames on either side than it needs.

Shape letters: N signals, T frames, W samples per window, F = W // 2 + 1 frequency bins, S samples, M samples from frame to frame.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.representation import length_mask
from soundomni.vae.padding import framed

STEP = 0.99
"""Momentum of each round: α in the paper, which recommends values just below 1."""
PERIOD = 512
"""Frames after which the first phases repeat: 5.12 s at 10 ms per frame. Steady noise repeats with them, and shorter
repetitions are easier to hear."""


def griffin_lim(magnitudes: Tensor, num_frames: Tensor, window: Tensor, *, hop: int, rounds: int) -> Tensor:
    """Return signals whose windowed spectra have magnitudes near the given ones.

    The first phases are random, but the same in every call and for every signal, so equal magnitudes give equal
    signals, whatever is in the batch with them. Everything is computed in double precision, because rounds magnify
    rounding errors: in single precision, 32 rounds on recordings make differences of more than 1e-3 of the peak, so a
    piece would differ from the whole.

    Args:
        magnitudes: `[N, T, F]`; frame t is centered on sample t·M.
        num_frames: frames of each signal `[N]`; later frames are ignored.
        window: `[W]`.
        hop: M, at most W / 2, so that windows overlap everywhere.
        rounds: how often the phases are improved.

    Returns:
        float64 `[N, (T - 1)·M]`, zero beyond (num_frames - 1)·M.
    """
    count = magnitudes.shape[1]
    if count < 2 or not len(magnitudes):
        return magnitudes.new_zeros(len(magnitudes), max(0, count - 1) * hop, dtype=torch.float64)
    num_frames, window = num_frames.to(magnitudes.device), window.double()
    within = length_mask(num_frames, count)
    magnitudes = magnitudes.double().masked_fill(~within[..., None], 0.0)  # they may be anything, even NaN
    total = _overlap_add(within[..., None] * window.square(), hop).clamp_min(torch.finfo(window.dtype).eps)
    inside = length_mask((num_frames - 1).clamp_min(0) * hop, total.shape[-1])
    first = torch.from_numpy(_first_phases(magnitudes.shape[2])).to(magnitudes.device)
    phases = first[torch.arange(count, device=first.device) % PERIOD].expand(magnitudes.shape)
    before: Tensor | None = None
    for left in range(rounds, -1, -1):
        frames = torch.fft.irfft(magnitudes * phases, n=len(window)) * window
        samples = (_overlap_add(frames, hop) / total).masked_fill(~inside, 0.0)
        if left:
            again = framed(samples, len(window), hop, count, before=len(window) // 2)
            found = torch.fft.rfft(again * window)
            ahead = found if before is None else found - STEP / (1.0 + STEP) * before
            phases, before = torch.sgn(ahead), found
    return samples


def frames_around(window: int, hop: int) -> int:
    """Return how many more frames, on the side with more of them, have some of the M samples between the centers of
    frames t and t + 1 in their windows.

    >>> frames_around(512, 160)
    1
    """
    before = (window - 1 - window // 2) // hop
    after = -(-(window // 2) // hop)
    return max(before, after - 1)


def reach(window: int, hop: int, rounds: int) -> int:
    """Return how many more frames, on the side with more of them, these M samples depend on: each round adds the frames
    whose windows overlap.

    >>> reach(512, 160, 32)
    97
    """
    return frames_around(window, hop) + rounds * ((window - 1) // hop)


@lru_cache(maxsize=16)
def _first_phases(num_bins: int) -> np.ndarray:
    """Return unit numbers `[PERIOD, F]`, drawn by the generator Philox (Salmon et al. 2011) with seed 0."""
    turns = np.random.Generator(np.random.Philox(0)).random((PERIOD, num_bins))
    return np.asarray(np.exp(2j * np.pi * turns))


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Add up frames `[N, T, W]` that are centered on samples t·M: `[N, (T - 1)·M]`, from the first center to the last."""
    count, width = frames.shape[1:]
    whole = (count - 1) * hop
    added = functional.fold(frames.transpose(1, 2), (1, whole + width), (1, width), stride=(1, hop))[:, 0, 0]
    return added[:, width // 2 : width // 2 + whole]
