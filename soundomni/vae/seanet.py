"""The convolutional encoder and decoder of SoundStream (Zeghidour et al. 2021, sections III-A and III-B; after
Tagliasacchi et al. 2020, "SEANet"): causal, so that a clip can be coded while it comes in.

Every layer pads its input with zeros on the left only. So what comes later never changes what came before: a clip is
the same in every batch; to take it in pieces, each layer only has to remember the end of what it was given (`Past`).

Shape letters: B clips, C channels of a layer, L positions of a layer, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from soundomni.vae.local_attention import LocalAttention
from soundomni.vae.past import Past

DILATIONS = (1, 3, 9)


class CausalConv(nn.Module):
    """A convolution whose output at position t depends on its input up to the end of stride t."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.width = dilation * (kernel - 1) - (stride - 1)
        convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, dilation=dilation, padding=self.width)
        self.convolution = weight_norm(convolution) if normalize else convolution

    def forward(self, values: Tensor, past: Past | None) -> Tensor:
        """Map `[B, C, L]`, L a multiple of the stride, to `[B, C', L / stride]`."""
        longer = functional.pad(values, (self.width, 0)) if past is None else past.before(self, values, self.width)
        layer = self.convolution
        out: Tensor = functional.conv1d(longer, layer.weight, layer.bias, layer.stride, 0, layer.dilation)
        return out


class CausalUpsampling(nn.Module):
    """A transposed convolution of two strides whose outputs depend on their own input and the one before."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, normalize: bool) -> None:
        super().__init__()
        self.stride = stride
        convolution = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride=stride)
        self.convolution = weight_norm(convolution) if normalize else convolution

    def forward(self, values: Tensor, past: Past | None) -> Tensor:
        """Map `[B, C, L]` to `[B, C', L · stride]`."""
        longer = self.convolution(values if past is None else past.before(self, values, 1))
        out: Tensor = longer[..., 0 if past is None else self.stride : -self.stride]
        return out


class ResidualUnit(nn.Module):
    """x + conv1(ELU(conv7(ELU(x)))), the wide convolution dilated."""

    def __init__(self, channels: int, dilation: int, *, normalize: bool) -> None:
        super().__init__()
        self.wide = CausalConv(channels, channels, 7, dilation=dilation, normalize=normalize)
        self.mix = CausalConv(channels, channels, 1, normalize=normalize)

    def forward(self, values: Tensor, past: Past | None) -> Tensor:
        """Map `[B, C, L]` to `[B, C, L]`."""
        inner = self.wide(functional.elu(values), past)
        out: Tensor = values + self.mix(functional.elu(inner), past)
        return out


class EncoderBlock(nn.Module):
    """Three residual units, then a convolution that divides L by the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, normalize: bool) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(inputs, dilation, normalize=normalize) for dilation in DILATIONS)
        self.down = CausalConv(inputs, outputs, 2 * stride, stride=stride, normalize=normalize)

    def forward(self, values: Tensor, past: Past | None) -> Tensor:
        """Map `[B, C, L]` to `[B, C', L / stride]`."""
        for unit in self.units:
            values = unit(values, past)
        out: Tensor = self.down(functional.elu(values), past)
        return out


class DecoderBlock(nn.Module):
    """A transposed convolution that multiplies L by the stride, then three residual units."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, normalize: bool) -> None:
        super().__init__()
        self.up = CausalUpsampling(inputs, outputs, stride, normalize=normalize)
        self.units = nn.ModuleList(ResidualUnit(outputs, dilation, normalize=normalize) for dilation in DILATIONS)

    def forward(self, values: Tensor, past: Past | None) -> Tensor:
        """Map `[B, C, L]` to `[B, C', L · stride]`."""
        values = self.up(functional.elu(values), past)
        for unit in self.units:
            values = unit(values, past)
        return values


class SEANetEncoder(nn.Module):
    """Maps a waveform to latents.

    Args:
        audio_channels: channels of the waveform.
        widths: channels before the first block and after each block.
        strides: strides of the blocks.
        latent_dim: D.
        attention_window: frames, itself included, that a frame attends to at the end; 0 for no attention.
        normalize: whether convolutions have normalized weights (Salimans and Kingma 2016).
    """

    def __init__(
        self,
        *,
        audio_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        latent_dim: int,
        attention_window: int = 0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.first = CausalConv(audio_channels, widths[0], 7, normalize=normalize)
        sizes = zip(pairwise(widths), strides, strict=True)
        self.blocks = nn.ModuleList(EncoderBlock(*pair, stride, normalize=normalize) for pair, stride in sizes)
        self.last = CausalConv(widths[-1], latent_dim, 3, normalize=normalize)
        self.attention = LocalAttention(dim=latent_dim, window=attention_window) if attention_window else None

    def forward(self, waveform: Tensor, past: Past | None = None) -> Tensor:
        """Map `[B, C, T · ratio]` to `[B, D, T]`; with a past, continue the clips that it is of."""
        values = self.first(waveform, past)
        for block in self.blocks:
            values = block(values, past)
        latents: Tensor = self.last(functional.elu(values), past)
        return latents if self.attention is None else self.attention(latents, past)


class SEANetDecoder(nn.Module):
    """Maps latents to a waveform; the mirror of the encoder.

    Args:
        audio_channels: channels of the waveform.
        widths: channels before the first block and after each block, largest first.
        strides: strides of the blocks.
        latent_dim: D.
        attention_window: frames, itself included, that a frame attends to at the start; 0 for no attention.
        normalize: whether convolutions have normalized weights (Salimans and Kingma 2016).
    """

    def __init__(
        self,
        *,
        audio_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        latent_dim: int,
        attention_window: int = 0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.attention = LocalAttention(dim=latent_dim, window=attention_window) if attention_window else None
        self.first = CausalConv(latent_dim, widths[0], 7, normalize=normalize)
        sizes = zip(pairwise(widths), strides, strict=True)
        self.blocks = nn.ModuleList(DecoderBlock(*pair, stride, normalize=normalize) for pair, stride in sizes)
        self.last = CausalConv(widths[-1], audio_channels, 7, normalize=normalize)

    def forward(self, latents: Tensor, past: Past | None = None) -> Tensor:
        """Map `[B, D, T]` to `[B, C, T · ratio]`; with a past, continue the clips that it is of."""
        values = self.first(latents if self.attention is None else self.attention(latents, past), past)
        for block in self.blocks:
            values = block(values, past)
        waveform: Tensor = self.last(functional.elu(values), past)
        return waveform
