"""One layer of a Conformer (Gulati et al. 2020, figure 1) over packed streams: parameters per stream, attention over all of them.

Shape letters: N_e tokens of stream e, P stored tokens of all streams, H hidden dimensions, I intermediate dimensions, C channels of
the convolution, h heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundomni.core.attention.conditions import SeenConditions
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.spaced_clips import SpacedClips
from soundomni.experts.adaptive_norm import AdaptiveNorms, modulated
from soundomni.experts.auxiliary import AuxiliaryLoss, add_losses
from soundomni.experts.cross_attention import CrossAttention
from soundomni.experts.depthwise import DepthwiseConv
from soundomni.experts.rope import rotate
from soundomni.experts.streams import apart, joined

NUM_NORMS = 4
FIRST, ATTENTION, CONVOLUTION, SECOND = range(NUM_NORMS)
"""The norms that global conditions scale and shift, one in front of each branch."""


@dataclass(frozen=True, kw_only=True)
class ConformerSizes:
    """Sizes that all streams share.

    Args:
        hidden_dim, num_heads, head_dim: H, h and d.
        conv_channels: C.
        kernel_size: taps of the depthwise convolution, odd.
        norm_eps: eps of every norm.
    """

    hidden_dim: int
    num_heads: int
    head_dim: int
    conv_channels: int
    kernel_size: int
    norm_eps: float


class SwishFeedForward(nn.Module):
    """Computes down(swish(up(x))) with biases (Gulati et al. 2020, section 2.3): `[N, H]` → `[N, H]`."""

    def __init__(self, *, hidden_dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_dim, intermediate_dim)
        self.down = nn.Linear(intermediate_dim, hidden_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to `[N, H]`."""
        out: Tensor = self.down(F.silu(self.up(hidden)))
        return out


class ConvolutionModule(nn.Module):
    """LayerNorm, gated pointwise convolution, depthwise convolution, swish, LayerNorm, pointwise convolution.

    The module of Gulati et al. 2020, section 2.2, with LayerNorm after the swish in place of BatchNorm before it: statistics over
    the tokens of a batch would let clips see each other.
    """

    def __init__(self, sizes: ConformerSizes) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.gated = nn.Linear(sizes.hidden_dim, 2 * sizes.conv_channels)
        self.depthwise = DepthwiseConv(sizes.conv_channels, kernel_size=sizes.kernel_size)
        self.inner_norm = nn.LayerNorm(sizes.conv_channels, eps=sizes.norm_eps)
        self.pointwise = nn.Linear(sizes.conv_channels, sizes.hidden_dim)

    def forward(self, hidden: Tensor, clips: SpacedClips | None, modulation: Tensor | None = None) -> Tensor:
        """Map `[N_e, H]` to `[N_e, H]`; see DepthwiseConv for `clips`, and AdaptiveNorms for `modulation`."""
        normed = modulated(self.norm(hidden), modulation, CONVOLUTION)
        mixed = self.depthwise(F.glu(self.gated(normed)), clips)
        out: Tensor = self.pointwise(self.inner_norm(F.silu(mixed)))
        return out


class ConformerExpert(nn.Module):
    """One stream's parameters in a layer. Rows of `qkv.weight` are the heads of the queries, then the keys, then the values.

    `cross` and `adaptive` are only there if conditions enter in these ways.
    """

    def __init__(self, sizes: ConformerSizes, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.sizes = sizes
        self.num_heads, self.head_dim = sizes.num_heads, sizes.head_dim
        inner = sizes.num_heads * sizes.head_dim
        self.first_norm = nn.LayerNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.first = first
        self.attention_norm = nn.LayerNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.qkv = nn.Linear(sizes.hidden_dim, 3 * inner, bias=False)
        self.output = nn.Linear(inner, sizes.hidden_dim, bias=False)
        self.convolution = ConvolutionModule(sizes)
        self.second_norm = nn.LayerNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.second = second
        self.norm = nn.LayerNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.cross: CrossAttention | None = None
        self.adaptive: AdaptiveNorms | None = None

    def take_conditions(self, ways: Collection[str]) -> None:
        """Add what conditions need that enter in `ways`."""
        sizes = self.sizes
        if "cross" in ways:
            heads = {"num_heads": sizes.num_heads, "head_dim": sizes.head_dim}
            self.cross = CrossAttention(hidden_dim=sizes.hidden_dim, norm_eps=sizes.norm_eps, **heads)
        if "global" in ways:
            self.adaptive = AdaptiveNorms(hidden_dim=sizes.hidden_dim, num_norms=NUM_NORMS)

    def modulation(self, seen: SeenConditions | None, stream: int) -> Tensor | None:
        """Return what global conditions tell the norms about each token of a stream, see AdaptiveNorms; None if nothing."""
        return None if self.adaptive is None or seen is None else self.adaptive(seen.vectors, seen.clips[stream])

    def begin(self, hidden: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor, AuxiliaryLoss | None]:
        """Run the first half-step. Return the residual stream `[N_e, H]`, queries, keys and values `[N_e, 3h, d]`, and the loss."""
        hidden, loss = _half_step(hidden, self.first(modulated(self.first_norm(hidden), modulation, FIRST)))
        heads: Tensor = self.qkv(modulated(self.attention_norm(hidden), modulation, ATTENTION)).unflatten(-1, (-1, self.head_dim))
        return hidden, heads, loss

    def add_attention(self, hidden: Tensor, attended: Tensor, layout: Layout, *, layer: int, stream: int) -> Tensor:
        """Add attention `[N_e, h, d]`, and what the tokens find in their conditions, to `[N_e, H]`."""
        hidden = hidden + self.output(attended.flatten(1))
        if self.cross is None or layout.conditions is None:
            return hidden
        found: Tensor = self.cross(hidden, layout, layer=layer, stream=stream)
        return hidden + found

    def finish(self, hidden: Tensor, clips: SpacedClips | None, modulation: Tensor | None) -> tuple[Tensor, AuxiliaryLoss | None]:
        """Add the convolution and the second half-step to `[N_e, H]`, and normalize it."""
        hidden = hidden + self.convolution(hidden, clips, modulation)
        hidden, loss = _half_step(hidden, self.second(modulated(self.second_norm(hidden), modulation, SECOND)))
        return self.norm(hidden), loss


def _half_step(hidden: Tensor, update: Tensor | tuple[Tensor, AuxiliaryLoss]) -> tuple[Tensor, AuxiliaryLoss | None]:
    """Add half of what a feed-forward network gave."""
    if isinstance(update, tuple):
        return hidden + 0.5 * update[0], update[1]
    return hidden + 0.5 * update, None


class ConformerLayer(nn.Module):
    """One layer over E streams.

    Takes only tensors and plain objects, so that it can be sharded, checkpointed or compiled on its own.

    Args:
        index: index of this layer in the backbone, and in the cache.
        experts: stream name → its parameters, in the router's order.
    """

    def __init__(self, index: int, experts: Mapping[str, ConformerExpert]) -> None:
        super().__init__()
        self.index = index
        self.experts = nn.ModuleDict(experts)
        self.num_heads = next(iter(experts.values())).num_heads

    def expert(self, stream: str) -> ConformerExpert:
        """Return the parameters of the stream of this name."""
        return cast(ConformerExpert, self.experts[stream])

    def forward(
        self, streams: list[Tensor], rope: tuple[Tensor, Tensor], clips: Sequence[SpacedClips | None], layout: Layout
    ) -> tuple[list[Tensor], AuxiliaryLoss | None]:
        """Map streams `[N_e, H]` in stored order to the same streams after the layer, and the networks' auxiliary loss,
        if any.

        The experts of empty streams do not run.

        Args:
            streams: one tensor per stream, in the router's order.
            rope: tables `[P, d]` of `rope_tables`.
            clips: the clips of each stream, spaced for the convolution.
            layout: runs the attention, and holds the conditions.
        """
        experts = {stream: self.expert(name) for stream, name in enumerate(self.experts) if len(streams[stream])}
        modulation = {stream: expert.modulation(layout.conditions, stream) for stream, expert in experts.items()}
        begun = {stream: expert.begin(streams[stream], modulation[stream]) for stream, expert in experts.items()}
        heads = joined([heads for _, heads, _ in begun.values()])
        turned, value = torch.split(heads, [2 * self.num_heads, self.num_heads], dim=1)
        query, key = rotate(turned, *rope).chunk(2, dim=1)
        attended = apart(layout.attend(self.index, query, key, value), streams)
        added = {
            stream: expert.add_attention(begun[stream][0], attended[stream], layout, layer=self.index, stream=stream)
            for stream, expert in experts.items()
        }
        done = {stream: expert.finish(added[stream], clips[stream], modulation[stream]) for stream, expert in experts.items()}
        hidden = [done[stream][0] if stream in done else empty for stream, empty in enumerate(streams)]
        return hidden, add_losses([*(loss for _, _, loss in begun.values()), *(loss for _, loss in done.values())])
