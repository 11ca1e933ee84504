"""Discriminators of complex spectra at several resolutions (Défossez et al. 2022, "High fidelity neural audio
compression", section 3.4).

Shape letters: B clips, C audio channels, S samples, T frames, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from soundomni.core.errors import SpecError, shown
from soundomni.core.limits import check_count
from soundomni.vae.clips import check_audio_format
from soundomni.vae.critics.adversarial import AdversarialCritic, AdversarialLoss, Network, Verdict
from soundomni.vae.critics.layers import normalized, run
from soundomni.vae.critics.windows import check_length, check_windows
from soundomni.vae.sizes import MOST_WIDTH
from soundomni.vae.spectrum import as_channels, spectrum


class SpectrumNetwork(Network):
    """Convolutions over frames and frequencies of a complex spectrum: 3×9, dilated 3×9 that halve the frequencies,
    3×3, and 3×3.

    Args:
        channels: C.
        window: length of the windows in samples.
        filters: channels of every layer.
        dilations: dilation in frames of each layer that halves the frequencies.
    """

    def __init__(self, *, channels: int, window: int, filters: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.shortest = self.window = window
        halving = (
            nn.Conv2d(filters, filters, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)) for dilation in dilations
        )
        self.layers = nn.ModuleList(
            [
                normalized(nn.Conv2d(2 * channels, filters, (3, 9), padding=(1, 4))),
                *map(normalized, halving),
                normalized(nn.Conv2d(filters, filters, 3, padding=1)),
            ]
        )
        self.logits = normalized(nn.Conv2d(filters, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> Verdict:
        """Judge `[B, C, S]`: a logit for each frame and each of about F / 2^n bins, with n dilations."""
        features = run(self.layers, as_channels(spectrum(waveform, self.window, center=False)))
        return Verdict(self.logits(features[-1]), features)


class MultiScaleSTFTCritic(AdversarialCritic):
    """EnCodec's multi-scale discriminator of short-time spectra, which Stable Audio uses too, with 64 filters.

    A spectrum enters as its real and imaginary parts, one channel each. A clip needs as many samples as the window of
    a network.

    Args:
        sample_rate, channels: format of the clips (runtime).
        windows: lengths in samples, one for each network; hops are a quarter.
        filters: channels of every layer.
        dilations: dilation in frames of each layer that halves the frequencies.
        loss: "hinge" or "least-squares".
        gradient_penalty: whether to also learn from the slope of the logits at the targets, as "penalty".
        relative_features: divide the feature distance of each layer by the magnitude of its features, as EnCodec does
            and Stable Audio does not.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        windows: tuple[int, ...] = (2048, 1024, 512, 256, 128),
        filters: int = 32,
        dilations: tuple[int, ...] = (1, 2, 4),
        loss: AdversarialLoss = "hinge",
        gradient_penalty: bool = False,
        relative_features: bool = True,
    ) -> None:
        check_audio_format(sample_rate, channels)
        check_count("filters", filters, most=MOST_WIDTH)
        check_length("dilations", dilations)
        if any(dilation < 1 for dilation in dilations):
            raise SpecError(f"dilations is {shown(list(dilations))}; expected numbers of at least 1")
        super().__init__(
            [SpectrumNetwork(channels=channels, window=window, filters=filters, dilations=dilations) for window in check_windows(windows)],
            loss=loss,
            gradient_penalty=gradient_penalty,
            relative_features=relative_features,
        )
