"""Stable Audio's spectral distance (Evans et al. 2024, "Fast timing-conditioned latent audio diffusion", section 2.1;
Steinmetz and Reiss 2020, auraloss).

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Critic, LossTerms
from soundomni.vae.clips import at_least_float32, check_audio_format
from soundomni.vae.critics.a_weighting import a_weighted
from soundomni.vae.critics.shares import nothing
from soundomni.vae.critics.windows import check_windows
from soundomni.vae.stft_loss import DEFAULT_WINDOWS, stft_distances

STEREO_WEIGHT = 2.0
"""Sum and difference of the channels and the channels themselves count one half each; `stft_distances` is the mean of
these four."""


class MultiSTFTCritic(Critic):
    """Distance of magnitudes at several resolutions: spectral convergence plus mean absolute difference of logarithms.

    The distance of a clip is the mean over its windows. For stereo it is the mean of those of the sum and the
    difference of the channels, plus half of those of the left and the right one, as Stable Audio weighs them.

    Args:
        sample_rate, channels: format of the clips (runtime).
        windows: lengths in samples, multiples of 4; hops are a quarter. Windows longer than a clip are left out.
        a_weighting: filter the clips so that frequencies count as they are heard.

    Raises:
        SpecError: an argument is out of range.
    """

    judged: ClassVar[tuple[str, ...]] = ("distance",)

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        windows: tuple[int, ...] = DEFAULT_WINDOWS,
        a_weighting: bool = True,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        self.sample_rate = sample_rate
        self.weight = STEREO_WEIGHT if channels == 2 else 1.0
        self.windows = check_windows(windows)
        self.a_weighting = a_weighting

    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        """Return the sum of the distances of `[B, C, S]`, and B."""
        num_samples = target.shape[-1]
        if num_samples < min(self.windows):
            return {"distance": nothing(estimate)}
        target, estimate = at_least_float32(target.detach()), at_least_float32(estimate)
        if self.a_weighting:
            target, estimate = a_weighted(target, self.sample_rate), a_weighted(estimate, self.sample_rate)
        lengths = torch.full((len(target),), num_samples, device=target.device)
        distances, counted = stft_distances(target, estimate, lengths, self.windows)
        return {"distance": (self.weight * distances.sum(), counted.sum())}
