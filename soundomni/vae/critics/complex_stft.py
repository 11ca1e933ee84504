"""A discriminator of complex spectra (Zeghidour et al. 2021, "SoundStream", section III-D).

Shape letters: B clips, C audio channels, S samples, N channels of a layer, T frames, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.errors import SpecError, shown
from soundomni.vae.clips import check_audio_format
from soundomni.vae.critics.adversarial import AdversarialCritic, AdversarialLoss, Network, Verdict
from soundomni.vae.critics.layers import SLOPE, normalized
from soundomni.vae.critics.windows import check_length, check_window
from soundomni.vae.spectrum import as_channels, spectrum


class ResidualBlock(nn.Module):
    """A 3×3 convolution and a strided one, next to a strided 1×1 convolution; sizes are divided by the strides and
    rounded up.

    Args:
        inputs, outputs: channels before and after.
        strides: strides over frames (1 or 2) and over frequencies (2).
    """

    def __init__(self, *, inputs: int, outputs: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.strides = strides
        kernel = (strides[0] + 2, strides[1] + 2)
        self.inner = normalized(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.strided = normalized(nn.Conv2d(inputs, outputs, kernel, stride=strides, padding=1))
        self.shortcut = normalized(nn.Conv2d(inputs, outputs, 1, stride=strides))

    def forward(self, values: Tensor) -> Tensor:
        """Map `[B, N, T, F]` to `[B, N', ⌈T / stride⌉, ⌈F / stride⌉]`."""
        inner = functional.leaky_relu(self.inner(values), SLOPE)
        odd_frames, odd_bins = (size % stride for size, stride in zip(values.shape[2:], self.strides, strict=True))
        strided = self.strided(functional.pad(inner, (0, odd_bins, 0, odd_frames)))
        out: Tensor = functional.leaky_relu(strided + self.shortcut(values), SLOPE)
        return out


class ComplexNetwork(Network):
    """A 7×7 convolution, residual blocks that halve the frequencies, every second one the frames too, and a
    convolution over all frequencies that are left.

    Args:
        channels: C.
        window: length of the windows in samples.
        widths: channels after the first layer and after each block.
    """

    def __init__(self, *, channels: int, window: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.shortest = self.window = window
        self.first = normalized(nn.Conv2d(2 * channels, widths[0], 7, padding=3))
        self.blocks = nn.ModuleList(
            ResidualBlock(inputs=inputs, outputs=outputs, strides=(1 + index % 2, 2))
            for index, (inputs, outputs) in enumerate(pairwise(widths))
        )
        bins = -(-window // 2 // 2 ** len(self.blocks))
        self.logits = normalized(nn.Conv2d(widths[-1], 1, (1, bins)))

    def forward(self, waveform: Tensor) -> Verdict:
        """Judge `[B, C, S]`: a logit for each 2^n frames, with n blocks that halve them. The bin at half the sample
        rate is left out."""
        values = as_channels(spectrum(waveform, self.window, center=False))[..., :-1]
        features = [functional.leaky_relu(self.first(values), SLOPE)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return Verdict(self.logits(features[-1]), features)


class ComplexSTFTCritic(AdversarialCritic):
    """SoundStream's discriminator of short-time spectra.

    A spectrum enters as its real and imaginary parts, one channel each, as in the paper; weights are real. The paper
    does not name the activation, which here is leaky ReLU. A clip needs as many samples as the window.

    Args:
        sample_rate, channels: format of the clips (runtime).
        window: length of the windows in samples; the hop is a quarter.
        widths: channels after the first layer and after each block.
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
        window: int = 1024,
        widths: tuple[int, ...] = (32, 32, 64, 128, 128, 256, 256),
        loss: AdversarialLoss = "hinge",
        gradient_penalty: bool = False,
        relative_features: bool = False,
    ) -> None:
        check_audio_format(sample_rate, channels)
        check_window(window)
        check_length("widths", widths)
        if not widths or min(widths) < 1:
            raise SpecError(f"widths is {shown(list(widths))}; expected one or more numbers of at least 1")
        super().__init__(
            [ComplexNetwork(channels=channels, window=window, widths=widths)],
            loss=loss,
            gradient_penalty=gradient_penalty,
            relative_features=relative_features,
        )
