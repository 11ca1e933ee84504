"""Discriminators of waveforms at several rates (Kumar et al. 2019, "MelGAN", section 2.2; Zeghidour et al. 2021,
"SoundStream", section III-D).

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.errors import SpecError, shown
from soundomni.core.limits import check_count
from soundomni.vae.clips import check_audio_format
from soundomni.vae.critics.adversarial import AdversarialCritic, AdversarialLoss, Network, Verdict
from soundomni.vae.critics.layers import normalized, run
from soundomni.vae.critics.windows import check_length

GROUP = 4
"""Input channels of each group of a grouped convolution."""
STRIDE = 4
MOST_SCALES = 16


class WaveformNetwork(Network):
    """A convolution of 15 samples, grouped ones of 41 with stride 4, one of 5, and one of 3 for the logits.

    Args:
        channels: C.
        widths: channels after each layer but the last one.
        halvings: how many times the rate of the clips is halved first.
    """

    def __init__(self, *, channels: int, widths: Sequence[int], halvings: int) -> None:
        super().__init__()
        self.shortest = 2**halvings
        self.halvings = halvings
        *grouped, last = pairwise(widths)
        self.layers = nn.ModuleList(
            [
                normalized(nn.Conv1d(channels, widths[0], 15, padding=7)),
                *(normalized(nn.Conv1d(i, o, 41, stride=STRIDE, padding=20, groups=i // GROUP)) for i, o in grouped),
                normalized(nn.Conv1d(*last, 5, padding=2)),
            ]
        )
        self.logits = normalized(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> Verdict:
        """Judge `[B, C, S]`: about one logit for each 4^n of the samples at this scale, with n grouped convolutions."""
        for _ in range(self.halvings):
            waveform = functional.avg_pool1d(waveform, 4, stride=2, padding=1, count_include_pad=False)
        features = run(self.layers, waveform)
        return Verdict(self.logits(features[-1]), features)


class MultiScaleWaveformCritic(AdversarialCritic):
    """SoundStream's three discriminators of waveforms: at the rate of the clips, at half of it, and at a quarter.

    Each has the layers of MelGAN's discriminator. The rate is halved by averaging 4 samples. A clip needs 2^n samples
    for the scale that is halved n times.

    Args:
        sample_rate, channels: format of the clips (runtime).
        num_scales: number of networks.
        widths: channels after each layer but the last one; all but the first and the last are those of grouped
            convolutions.
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
        num_scales: int = 3,
        widths: tuple[int, ...] = (16, 64, 256, 1024, 1024, 1024),
        loss: AdversarialLoss = "hinge",
        gradient_penalty: bool = False,
        relative_features: bool = False,
    ) -> None:
        check_audio_format(sample_rate, channels)
        check_count("num_scales", num_scales, most=MOST_SCALES)
        _check_widths(widths)
        super().__init__(
            [WaveformNetwork(channels=channels, widths=widths, halvings=scale) for scale in range(num_scales)],
            loss=loss,
            gradient_penalty=gradient_penalty,
            relative_features=relative_features,
        )


def _check_widths(widths: Sequence[int]) -> None:
    check_length("widths", widths)
    if len(widths) < 2 or any(width < GROUP or width % GROUP for width in widths):
        raise SpecError(f"widths is {shown(list(widths))}; expected two or more multiples of {GROUP}")
    for inputs, outputs in pairwise(widths[:-1]):
        groups = inputs // GROUP
        if outputs % groups:
            expected = f"a multiple of {groups}, the number of groups of {GROUP} channels"
            raise SpecError(f"widths has {outputs} after {inputs}; expected {expected}")
