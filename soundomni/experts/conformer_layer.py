"""One layer of a Conformer (Gulati et al. 2020, figure 1) over packed streams: parameters per stream, attention over all of them.

Shape letters: N_e tokens of stream e, P stored tokens of all streams, H hidden dimensions, I intermediate dimensions, C channels of
the convolution, h heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundomni.core.attention.layout import Layout
from soundomni.core.attention.spaced_clips import SpacedClips
from soundomni.experts.auxiliary import AuxiliaryLoss, add_losses
from soundomni.experts.depthwise import DepthwiseConv
from soundomni.experts.rope import rotate
from soundomni.experts.streams import apart, joined


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

    def forward(self, hidden: Tensor, clips: SpacedClips | None) -> Tensor:
        """Map `[N_e, H]` to `[N_e, H]`; see DepthwiseConv for `clips`."""
        mixed = self.depthwise(F.glu(self.gated(self.norm(hidden))), clips)
        out: Tensor = self.pointwise(self.inner_norm(F.silu(mixed)))
        return out


class ConformerExpert(nn.Module):
    """One stream's parameters in a layer. Rows of `qkv.weight` are the heads of the queries, then the keys, then the values."""

    def __init__(self, sizes: ConformerSizes, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
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

    def begin(self, hidden: Tensor) -> tuple[Tensor, Tensor, AuxiliaryLoss | None]:
        """Run the first half-step. Return the residual stream `[N_e, H]`, queries, keys and values `[N_e, 3h, d]`, and the loss."""
        hidden, loss = _half_step(hidden, self.first(self.first_norm(hidden)))
        heads: Tensor = self.qkv(self.attention_norm(hidden)).unflatten(-1, (-1, self.head_dim))
        return hidden, heads, loss

    def finish(self, hidden: Tensor, attended: Tensor, clips: SpacedClips | None) -> tuple[Tensor, AuxiliaryLoss | None]:
        """Add attention `[N_e, h, d]`, the convolution and the second half-step to `[N_e, H]`, and normalize it."""
        hidden = hidden + self.output(attended.flatten(1))
        hidden = hidden + self.convolution(hidden, clips)
        hidden, loss = _half_step(hidden, self.second(self.second_norm(hidden)))
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
            rope: cosines and sines `[P, d/2]`.
            clips: the clips of each stream, spaced for the convolution.
            layout: runs the attention.
        """
        experts = {stream: self.expert(name) for stream, name in enumerate(self.experts) if len(streams[stream])}
        begun = {stream: expert.begin(streams[stream]) for stream, expert in experts.items()}
        heads = joined([heads for _, heads, _ in begun.values()])
        turned, value = torch.split(heads, [2 * self.num_heads, self.num_heads], dim=1)
        query, key = rotate(turned, *rope).chunk(2, dim=1)
        attended = apart(layout.attend(self.index, query, key, value), streams)
        done = {stream: expert.finish(begun[stream][0], attended[stream], clips[stream]) for stream, expert in experts.items()}
        hidden = [done[stream][0] if stream in done else empty for stream, empty in enumerate(streams)]
        return hidden, add_losses([*(loss for _, _, loss in begun.values()), *(loss for _, loss in done.values())])
