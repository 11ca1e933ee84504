"""Waveforms from the power of mel bands, without a network: the place where a learned vocoder would enter.

Shape letters: N signals, T frames, W samples per window, F = W // 2 + 1 frequency bins, M mel bands, H samples from frame
to frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.vae.griffin_lim import PERIOD, griffin_lim, reach

SPREADING = 4
"""How often the power of bins is corrected. More updates gain little."""


class MelSynthesis(nn.Module):
    """Spreads the power of mel bands over the bins of a spectrum, and finds phases for them.

    A codec can have another module with the same `forward`, `reach` and `step` in its place, such as a learned vocoder.

    Args:
        bands: weights `[M, F]` of the bins in each band; each row sums to 1.
        window: samples of the window `[W]`.
        hop: H, at most W / 2.
        rounds: how often the phases are improved.
    """

    def __init__(self, bands: np.ndarray, window: np.ndarray, *, hop: int, rounds: int) -> None:
        super().__init__()
        self.bands, self.window, self.hop, self.rounds = bands, window, hop, rounds

    @property
    def reach(self) -> int:
        """Frames on either side that samples depend on, beyond the two that enclose them."""
        return reach(len(self.window), self.hop, self.rounds)

    @property
    def step(self) -> int:
        """A piece that begins at a multiple of this many frames sounds as in the whole."""
        return PERIOD

    def forward(self, power: Tensor, num_frames: Tensor) -> Tensor:
        """Map the power of bands, float64 `[N, T, M]`, to samples `[N, (T - 1)·H]`, zero beyond (num_frames - 1)·H.

        A sine of amplitude 1 has a power of 1 where it peaks. Frames beyond `num_frames` `[N]` are ignored.
        """
        bands, window = (torch.from_numpy(table).to(power) for table in (self.bands, self.window))
        magnitudes = spread(power, bands).sqrt() * (window.sum() / 2.0)
        return griffin_lim(magnitudes, num_frames, window, hop=self.hop, rounds=self.rounds)


def spread(power: Tensor, bands: Tensor) -> Tensor:
    """Return the power of bins `[..., F]` whose bands, with weights `[M, F]`, have about the given power `[..., M]`.

    A bin begins with the mean of its bands. Then come multiplicative updates (Lee and Seung 2001, eq. 5), which reduce
    the divergence of the bands from the given ones and never make power negative. A bin without bands has no power.
    """
    smallest = torch.finfo(power.dtype).tiny
    weights = bands / bands.sum(0).clamp_min(smallest)
    bins = power @ weights
    for _ in range(SPREADING):
        bins = bins * ((power / (bins @ bands.T).clamp_min(smallest)) @ weights)
    return bins
