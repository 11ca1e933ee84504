"""The convolutional encoder and decoder of Stable Audio's autoencoder, called Oobleck (Evans et al. 2024, "Fast
timing-conditioned latent audio diffusion", section 2.1; after Kumar et al. 2023, "Improved RVQGAN").

Modules are named as in the original, so that its checkpoints map tensor by tensor.

Clips of different lengths share a batch, and each must come out as it would on its own. On its own, every convolution
would see zeros beyond the clip's end; but biases and neighbors make those values non-zero. So they are set to zero
again before every convolution that is wider than one. At each level a clip is as long as its frames times that level's
positions per frame.

Shape letters: B clips, C channels of a layer, L positions of a layer, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from soundomni.vae.padding import zero_beyond

DILATIONS = (1, 3, 9)


class Extent:
    """Length of each clip of a batch at every level of the network.

    Args:
        frames: int64 `[B]`, frames of each clip; None if all clips fill the batch, so that nothing has to be set to
            zero.
        num_frames: T of the batch.
    """

    def __init__(self, frames: Tensor | None, num_frames: int) -> None:
        self.frames = frames
        self.num_frames = num_frames

    @classmethod
    def of(cls, frames: Tensor, num_frames: int) -> Extent:
        """Return the extent, after checking whether all clips fill the batch."""
        return cls(None if bool((frames >= num_frames).all()) else frames, num_frames)

    def close(self, values: Tensor) -> Tensor:
        """Map `[B, C, L]`, L a multiple of T, to the same values, but zero beyond each clip."""
        if self.frames is None:
            return values
        return zero_beyond(values, self.frames * (values.shape[-1] // self.num_frames))


class SnakeBeta(nn.Module):
    """Computes x + sin²(e^α·x) / (e^β + 1e-9) with α and β per channel (Lee et al. 2023, BigVGAN; Ziyin et al. 2020).

    Keeps zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, values: Tensor) -> Tensor:
        """Map `[B, C, L]` to `[B, C, L]`."""
        frequency, size = self.alpha.exp()[:, None], (self.beta.exp() + 1e-9)[:, None]
        if torch.is_grad_enabled():
            return values + (values * frequency).sin().square() / size
        # The same numbers with one piece of memory instead of four, which takes half of the time on a CPU.
        return (values * frequency).sin_().square_().div_(size).add_(values)


def activation(channels: int, use_snake: bool) -> nn.Module:
    """Return SnakeBeta, or ELU, which also keeps zero."""
    return SnakeBeta(channels) if use_snake else nn.ELU()


def _convolution(inputs: int, outputs: int, kernel: int, *, dilation: int = 1, bias: bool = True) -> nn.Module:
    padding = dilation * (kernel - 1) // 2
    convolution: nn.Module = weight_norm(nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias))
    return convolution


class ResidualUnit(nn.Module):
    """x + conv1(act(conv7(act(x)))), the wide convolution dilated."""

    def __init__(self, channels: int, dilation: int, *, use_snake: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            activation(channels, use_snake),
            _convolution(channels, channels, 7, dilation=dilation),
            activation(channels, use_snake),
            _convolution(channels, channels, 1),
        )

    def forward(self, values: Tensor, extent: Extent) -> Tensor:
        """Map `[B, C, L]`, zero beyond each clip, to the same shape, also zero there."""
        return extent.close(values + self.layers(values))


class EncoderBlock(nn.Module):
    """Three residual units, then a convolution that divides L by the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, use_snake: bool) -> None:
        super().__init__()
        down = nn.Conv1d(inputs, outputs, 2 * stride, stride=stride, padding=-(-stride // 2))
        self.layers = nn.ModuleList(
            [
                *(ResidualUnit(inputs, dilation, use_snake=use_snake) for dilation in DILATIONS),
                activation(inputs, use_snake),
                weight_norm(down),
            ]
        )

    def forward(self, values: Tensor, extent: Extent) -> Tensor:
        """Map `[B, C, L]` to `[B, C', L / stride]`."""
        *units, act, down = self.layers
        for unit in units:
            values = unit(values, extent)
        return extent.close(down(act(values)))


class DecoderBlock(nn.Module):
    """A transposed convolution that multiplies L by the stride, then three residual units.

    With an odd stride the original loses a sample; here output padding keeps the length.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, use_snake: bool) -> None:
        super().__init__()
        up = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride=stride, padding=-(-stride // 2), output_padding=stride % 2)
        self.layers = nn.ModuleList(
            [
                activation(inputs, use_snake),
                weight_norm(up),
                *(ResidualUnit(outputs, dilation, use_snake=use_snake) for dilation in DILATIONS),
            ]
        )

    def forward(self, values: Tensor, extent: Extent) -> Tensor:
        """Map `[B, C, L]` to `[B, C', L · stride]`."""
        act, up, *units = self.layers
        values = extent.close(up(act(values)))
        for unit in units:
            values = unit(values, extent)
        return values


class OobleckEncoder(nn.Module):
    """Maps a waveform to the parameters of the bottleneck.

    Args:
        audio_channels: channels of the waveform.
        widths: channels before the first block and after each block.
        strides: strides of the blocks.
        output_dim: channels of the output.
        use_snake: SnakeBeta instead of ELU.
    """

    def __init__(self, *, audio_channels: int, widths: Sequence[int], strides: Sequence[int], output_dim: int, use_snake: bool) -> None:
        super().__init__()
        blocks = (EncoderBlock(i, o, s, use_snake=use_snake) for (i, o), s in zip(pairwise(widths), strides, strict=True))
        self.layers = nn.ModuleList(
            [
                _convolution(audio_channels, widths[0], 7),
                *blocks,
                activation(widths[-1], use_snake),
                _convolution(widths[-1], output_dim, 3),
            ]
        )

    def forward(self, waveform: Tensor, extent: Extent) -> Tensor:
        """Map `[B, C, T · ratio]`, zero beyond each clip, to `[B, output_dim, T]`."""
        first, *blocks, act, last = self.layers
        values = extent.close(first(waveform))
        for block in blocks:
            values = block(values, extent)
        out: Tensor = last(act(values))
        return out


class OobleckDecoder(nn.Module):
    """Maps latents to a waveform; the mirror of the encoder.

    Args:
        audio_channels: channels of the waveform.
        widths: channels before the first block and after each block, largest first.
        strides: strides of the blocks.
        latent_dim: D.
        use_snake: SnakeBeta instead of ELU.
        final_tanh: whether to limit the waveform to (-1, 1).
    """

    def __init__(
        self,
        *,
        audio_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        latent_dim: int,
        use_snake: bool,
        final_tanh: bool,
    ) -> None:
        super().__init__()
        blocks = (DecoderBlock(i, o, s, use_snake=use_snake) for (i, o), s in zip(pairwise(widths), strides, strict=True))
        self.layers = nn.ModuleList(
            [
                _convolution(latent_dim, widths[0], 7),
                *blocks,
                activation(widths[-1], use_snake),
                _convolution(widths[-1], audio_channels, 7, bias=False),
                nn.Tanh() if final_tanh else nn.Identity(),
            ]
        )

    def forward(self, latent: Tensor, extent: Extent) -> Tensor:
        """Map `[B, D, T]`, zero beyond each clip, to `[B, C, T · ratio]`, zero beyond each clip."""
        first, *blocks, act, last, bound = self.layers
        values = extent.close(first(latent))
        for block in blocks:
            values = block(values, extent)
        return extent.close(bound(last(act(values))))
