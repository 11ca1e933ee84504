"""The encoder and decoder of SAME, the autoencoder of Stable Audio 3 (Stability AI 2026, arXiv 2605.17991).

A block of the encoder puts a learned token after every group of `stride` positions, and only keeps these tokens after
its transformer. A block of the decoder puts `stride` such tokens after every position, and keeps those. Two kinds of
transformers are published: one whose tokens look as far as a window reaches (SAME large), and one whose tokens look at
a chunk of groups, where chunks are shifted by half for the later layers (SAME small).

Clips of different lengths share a batch, and each comes out as it would on its own: values beyond a clip are zero
wherever the original pads with zeros, and tokens beyond it are never seen.

Shape letters: B clips, C channels of a layer, L positions of a layer, G groups, P tokens of a group, D latent
dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from soundomni.core.errors import SpecError, shown
from soundomni.core.limits import check_count
from soundomni.vae.padding import zero_beyond
from soundomni.vae.same_attention import BLOCK_ONLY, DifferentialAttention, DynamicTanh, Reach, within_window
from soundomni.vae.sizes import MOST_WIDTH

BLOCK_GROUPS = 8
"""Groups in a block if there is a window: enough to need few blocks for long clips, but not much that no token looks
at."""
MOST_LAYERS, MOST_MULTIPLE = 256, 64
"""Largest number of layers of a transformer, and largest `mlp_multiple`, to guard against specs from strangers."""


@dataclass(frozen=True, kw_only=True)
class SameTransformer:
    """Sizes of SAME's transformers; the defaults are those of SAME small.

    Args:
        num_layers: layers of each block, as many as there are blocks.
        head_dim: width of an attention head, a multiple of 4; narrower layers have one head.
        mlp_multiple: inner width of the MLPs, in multiples of the layer's.
        differential: whether attention is the difference of two attentions.
        sine_layers: how many of the last layers of each decoder block have MLPs with a sine gate, in the order of
            `num_layers`.
        window: how many groups before and after its own a token looks at; None for chunks.
        chunk_size: positions of a chunk if there is no window, a multiple of twice every stride.

    Raises:
        SpecError: a size is out of range.
    """

    num_layers: tuple[int, ...] = (6,)
    head_dim: int = 64
    mlp_multiple: int = 3
    differential: bool = True
    sine_layers: tuple[int, ...] = (0,)
    window: tuple[int, int] | None = None
    chunk_size: int = 32

    def __post_init__(self) -> None:
        """Check every size."""
        for count in self.num_layers:
            check_count("transformer.num_layers", count, most=MOST_LAYERS)
        check_count("transformer.mlp_multiple", self.mlp_multiple, most=MOST_MULTIPLE)
        check_count("transformer.chunk_size", self.chunk_size, most=MOST_WIDTH)
        check_count("transformer.head_dim", self.head_dim, most=MOST_WIDTH)
        if self.head_dim % 4:
            raise SpecError(
                f"transformer.head_dim is {self.head_dim}; expected a multiple of 4, because half of a head is rotated, in pairs"
            )
        if len(self.sine_layers) != len(self.num_layers) or any(
            not 0 <= sines <= count for sines, count in zip(self.sine_layers, self.num_layers, strict=True)
        ):
            raise SpecError(
                f"transformer.sine_layers is {shown(list(self.sine_layers))}; expected {len(self.num_layers)} numbers from "
                f"0 up to the number of layers in num_layers, {shown(list(self.num_layers))}"
            )
        if self.window is not None and not all(0 <= groups <= MOST_WIDTH for groups in self.window):
            expected = f"two numbers of groups from 0 to {MOST_WIDTH:,}, or null for chunks"
            raise SpecError(f"transformer.window is {shown(list(self.window))}; expected {expected}")


DEFAULT_TRANSFORMER = SameTransformer()


class GatedMLP(nn.Module):
    """An MLP with a gate (Shazeer 2020, "GLU variants improve transformer"): SiLU, or sin(π·x)."""

    def __init__(self, *, dim: int, inner: int, sine: bool) -> None:
        super().__init__()
        self.sine = sine
        self.into = nn.Linear(dim, 2 * inner)
        self.output = nn.Linear(inner, dim)

    def forward(self, values: Tensor) -> Tensor:
        """Map `[..., C]` to `[..., C]`."""
        inner, gate = self.into(values).chunk(2, dim=-1)
        out: Tensor = self.output(inner * (torch.sin(torch.pi * gate) if self.sine else functional.silu(gate)))
        return out


class SameLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, *, dim: int, settings: SameTransformer, sine: bool) -> None:
        super().__init__()
        self.attention_norm = DynamicTanh(dim)
        self.attention = DifferentialAttention(dim=dim, head_dim=min(settings.head_dim, dim), differential=settings.differential)
        self.mlp_norm = DynamicTanh(dim)
        self.mlp = GatedMLP(dim=dim, inner=settings.mlp_multiple * dim, sine=sine)

    def forward(self, values: Tensor, reach: Reach) -> Tensor:
        """Map blocks of tokens `[B, N, Q, C]` to the same shape."""
        values = values + self.attention(self.attention_norm(values), reach)
        out: Tensor = values + self.mlp(self.mlp_norm(values))
        return out


class Resampler(nn.Module):
    """What blocks of the encoder and of the decoder share: a transformer over groups with learned tokens.

    Args:
        dim: C.
        stride: positions of the longer side that become one of the shorter side, or come from it.
        num_layers: layers of the transformer.
        sine_layers: how many of the last layers have a sine gate.
        settings: the other sizes.
    """

    def __init__(self, *, dim: int, stride: int, num_layers: int, sine_layers: int, settings: SameTransformer) -> None:
        super().__init__()
        self.stride = stride
        self.settings = settings
        self.new_tokens = nn.Parameter(1e-5 * torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(SameLayer(dim=dim, settings=settings, sine=i >= num_layers - sine_layers) for i in range(num_layers))

    @property
    def chunk_groups(self) -> int:
        """Clips are padded to a multiple of this many groups: the groups of a chunk, or 1 with a window."""
        return 1 if self.settings.window is not None else self.settings.chunk_size // self.stride

    def padded(self, lengths: Tensor, positions: int) -> Tensor:
        """Return the number of groups, in whole chunks, of clips of `lengths` `[B]` positions, if a group has
        `positions`."""
        unit = positions * self.chunk_groups
        return (lengths + unit - 1) // unit * self.chunk_groups

    def transform(self, groups: Tensor, counts: Tensor) -> Tensor:
        """Map groups of tokens `[B, G, P, C]`, `counts` `[B]` of them in each clip, to the same shape; groups beyond
        are undefined."""
        window = self.settings.window
        if not groups.numel():
            return groups
        return self._in_chunks(groups, counts) if window is None else self._in_window(groups, counts, *window)

    def _in_window(self, groups: Tensor, counts: Tensor, before: int, after: int) -> Tensor:
        num_groups, tokens = groups.shape[1:3]
        together = min(BLOCK_GROUPS, num_groups)
        blocks = functional.pad(groups, (0, 0, 0, 0, 0, -num_groups % together))
        blocks = rearrange(blocks, "b (n g) p c -> b n (g p) c", g=together)
        reach = within_window(counts * tokens, blocks.shape[1], together * tokens, before * tokens, after * tokens)
        for layer in self.layers:
            blocks = layer(blocks, reach)
        return rearrange(blocks, "b n (g p) c -> b (n g) p c", g=together)[:, :num_groups]

    def _in_chunks(self, groups: Tensor, counts: Tensor) -> Tensor:
        """Run the first half of the layers on chunks, and the others on chunks that begin half a chunk earlier.

        For the shifted chunks, the original repeats the first and the last groups of a clip before and after it.
        """
        together, num_groups = self.chunk_groups, groups.shape[1]
        half, first = together // 2, len(self.layers) // 2
        groups = self._run(groups, first=0, end=first)
        place, end = torch.arange(num_groups + together, device=groups.device), counts[:, None] + half
        source = torch.where(place < half, place, torch.where(place < end, place - half, place - together))
        clip = torch.arange(len(groups), device=groups.device)[:, None]
        shifted = self._run(groups[clip, source.clamp(0, num_groups - 1)], first=first, end=len(self.layers))
        return shifted[:, half : half + num_groups]

    def _run(self, groups: Tensor, *, first: int, end: int) -> Tensor:
        """Run some layers on chunks `[B, G, P, C]`."""
        tokens = groups.shape[2]
        chunks = rearrange(groups, "b (n g) p c -> b n (g p) c", g=self.chunk_groups)
        for layer in self.layers[first:end]:
            chunks = layer(chunks, BLOCK_ONLY)
        return rearrange(chunks, "b n (g p) c -> b (n g) p c", p=tokens)


class EncoderBlock(Resampler):
    """A convolution one position wide, then a transformer that turns `stride` positions into one."""

    def __init__(self, *, inputs: int, outputs: int, stride: int, num_layers: int, settings: SameTransformer) -> None:
        super().__init__(dim=outputs, stride=stride, num_layers=num_layers, sine_layers=0, settings=settings)
        self.mapping = _mapping(inputs, outputs, 1)

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, C, L]`, clips of `lengths` `[B]`, to `[B, C, G]` and the number of groups of each clip."""
        counts = self.padded(lengths, self.stride)
        most = int(self.padded(torch.tensor(values.shape[-1]), self.stride))
        values = functional.pad(zero_beyond(values, lengths), (0, most * self.stride - values.shape[-1]))
        groups = rearrange(self.mapping(values), "b c (g s) -> b g s c", s=self.stride)
        groups = torch.cat([groups, self.new_tokens.expand(*groups.shape[:2], -1, -1)], dim=2)
        return self.transform(groups, counts)[:, :, -1].mT, counts


class DecoderBlock(Resampler):
    """A transformer that turns a position into `stride` of them, then a convolution.

    Args:
        kernel: positions that the convolution sees, 1 or 3.
    """

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        stride: int,
        num_layers: int,
        sine_layers: int,
        kernel: int,
        settings: SameTransformer,
    ) -> None:
        super().__init__(dim=inputs, stride=stride, num_layers=num_layers, sine_layers=sine_layers, settings=settings)
        self.mapping = _mapping(inputs, outputs, kernel)

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, C, L]`, clips of `lengths` `[B]`, to `[B, C, G · stride]` and the number of positions of each
        clip."""
        counts = self.padded(lengths, 1)
        most = int(self.padded(torch.tensor(values.shape[-1]), 1))
        values = functional.pad(zero_beyond(values, lengths), (0, most - values.shape[-1]))
        groups = rearrange(values, "b c g -> b g 1 c")
        groups = torch.cat([groups, self.new_tokens.expand(*groups.shape[:2], self.stride, -1)], dim=2)
        made = rearrange(self.transform(groups, counts)[:, :, 1:], "b g s c -> b c (g s)")
        positions = counts * self.stride
        return self.mapping(zero_beyond(made, positions)), positions


class SameEncoder(nn.Module):
    """Maps patches of a waveform to what the bottleneck turns into latents.

    Args:
        widths: channels of the patches, then channels after each block.
        strides: strides of the blocks.
        latent_dim: D.
        settings: sizes of the transformers.
    """

    def __init__(self, *, widths: Sequence[int], strides: Sequence[int], latent_dim: int, settings: SameTransformer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(inputs=inputs, outputs=outputs, stride=stride, num_layers=count, settings=settings)
            for (inputs, outputs), stride, count in zip(pairwise(widths), strides, settings.num_layers, strict=True)
        )
        self.output = nn.Linear(widths[-1], latent_dim)

    def forward(self, patches: Tensor, lengths: Tensor) -> Tensor:
        """Map `[B, C, L]`, clips of `lengths` `[B]` patches, to `[B, D, T]`, undefined beyond each clip; T may be
        longer."""
        for block in self.blocks:
            patches, lengths = block(patches, lengths)
        out: Tensor = self.output(patches.mT)
        return out.mT


class SameDecoder(nn.Module):
    """Maps latents to patches of a waveform; the mirror of the encoder.

    Args:
        widths: channels of the patches, then the encoder's channels after each block.
        strides: strides of the encoder's blocks.
        latent_dim: D.
        kernel: positions that the convolutions see, 1 or 3.
        settings: sizes of the transformers.
    """

    def __init__(self, *, widths: Sequence[int], strides: Sequence[int], latent_dim: int, kernel: int, settings: SameTransformer) -> None:
        super().__init__()
        self.input = nn.Linear(latent_dim, widths[-1])
        sizes = zip(pairwise(widths), strides, settings.num_layers, settings.sine_layers, strict=True)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                inputs=inputs,
                outputs=outputs,
                stride=stride,
                num_layers=count,
                sine_layers=sines,
                kernel=kernel,
                settings=settings,
            )
            for (outputs, inputs), stride, count, sines in reversed(list(sizes))
        )

    def forward(self, latents: Tensor, lengths: Tensor) -> Tensor:
        """Map `[B, D, T]`, clips of `lengths` `[B]`, to `[B, C, L]`, undefined beyond each clip; L may be longer."""
        values: Tensor = self.input(latents.mT).mT
        for block in self.blocks:
            values, lengths = block(values, lengths)
        return values


def _mapping(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Return a convolution with weight norm; nothing if the widths are the same, as in the original."""
    if inputs == outputs:
        return nn.Identity()
    mapping: nn.Module = weight_norm(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2))
    return mapping
