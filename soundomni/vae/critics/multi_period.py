"""Discriminators of equally spaced samples (Kong et al. 2020, "HiFi-GAN", section 2.3).

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.errors import SpecError, shown
from soundomni.vae.clips import check_audio_format
from soundomni.vae.critics.adversarial import AdversarialCritic, AdversarialLoss, Network, Verdict
from soundomni.vae.critics.layers import normalized, run
from soundomni.vae.critics.windows import check_length

SLOPE = 0.1
STRIDE = 3


class PeriodNetwork(Network):
    """Convolutions over every p-th sample, for each of the p offsets: of 5 such samples with stride 3, the last one
    without.

    Args:
        channels: C.
        period: p.
        widths: channels after each layer but the one of the logits.
    """

    def __init__(self, *, channels: int, period: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.shortest = self.period = period
        *strided, last = pairwise((channels, *widths))
        self.layers = nn.ModuleList(
            [
                *(normalized(nn.Conv2d(i, o, (5, 1), stride=(STRIDE, 1), padding=(2, 0))) for i, o in strided),
                normalized(nn.Conv2d(*last, (5, 1), padding=(2, 0))),
            ]
        )
        self.logits = normalized(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> Verdict:
        """Judge `[B, C, S]`, whose end is mirrored to a whole number of periods."""
        padded = functional.pad(waveform, (0, -waveform.shape[-1] % self.period), mode="reflect")
        features = run(self.layers, rearrange(padded, "b c (t p) -> b c t p", p=self.period), SLOPE)
        return Verdict(self.logits(features[-1]), features)


class MultiPeriodCritic(AdversarialCritic):
    """HiFi-GAN's multi-period discriminator: one network for each period, which hears what repeats in it.

    The features are those of hidden layers only, not the logits. A clip needs as many samples as the period of a
    network.

    Args:
        sample_rate, channels: format of the clips (runtime).
        periods: periods in samples, one for each network.
        widths: channels after each layer but the one of the logits.
        loss: "hinge" or "least-squares".
        gradient_penalty: whether to also learn from the slope of the logits at the targets, as "penalty".
        relative_features: divide the feature distance of each layer by the magnitude of its features.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),
        widths: tuple[int, ...] = (32, 128, 512, 1024, 1024),
        loss: AdversarialLoss = "least-squares",
        gradient_penalty: bool = False,
        relative_features: bool = False,
    ) -> None:
        check_audio_format(sample_rate, channels)
        for name, numbers in (("periods", periods), ("widths", widths)):
            check_length(name, numbers)
            if not numbers or min(numbers) < 1:
                raise SpecError(f"{name} is {shown(list(numbers))}; expected one or more numbers of at least 1")
        super().__init__(
            [PeriodNetwork(channels=channels, period=period, widths=widths) for period in periods],
            loss=loss,
            gradient_penalty=gradient_penalty,
            relative_features=relative_features,
        )
