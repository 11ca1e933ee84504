"""One layer of Stable Audio's diffusion transformer over packed clips (Evans et al. 2024a, section 3.1; Evans et al. 2024b, section 2.2).

Shape letters: N stored tokens, C condition tokens of the batch, E hidden dimensions, F condition dimensions, h heads, g key-value heads of
cross-attention, d head dimensions, r rotated dimensions, I intermediate dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from soundomni.core.attention.conditions import SeenHints
from soundomni.core.attention.layout import Layout
from soundomni.experts.auxiliary import AuxiliaryLoss
from soundomni.experts.norm import RMSNorm
from soundomni.experts.rope import rotate

Norm = Literal["layer", "rms"]
HeadNorm = Literal["none", "layer", "rms"]
NORM_EPS, HEAD_NORM_EPS = 1e-5, 1e-6
NUM_MODULATIONS = 6
"""Scale, shift and gate of attention, then of the feed-forward network."""
Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DiTSizes:
    """What all layers share.

    Args:
        hidden_dim, num_heads, head_dim: E, h and d.
        norm: norm in front of each branch: LayerNorm without bias, or RMSNorm.
        head_norm: norm of the queries and keys of each head: LayerNorm, RMSNorm, or none.
        differential: whether attention is the difference of two.
        modulates: whether norms and branches are modulated by a vector for each clip.
    """

    hidden_dim: int
    num_heads: int
    head_dim: int
    norm: Norm
    head_norm: HeadNorm
    differential: bool
    modulates: bool

    def branch_norm(self) -> nn.Module:
        """Return a norm in front of a branch, `[N, E]` → `[N, E]`."""
        if self.norm == "layer":
            return nn.LayerNorm(self.hidden_dim, eps=NORM_EPS, bias=False)
        return RMSNorm(self.hidden_dim, eps=NORM_EPS)

    def head_norms(self) -> HeadNorms | None:
        """Return the norms of queries and keys, or None."""
        return None if self.head_norm == "none" else HeadNorms(self.head_dim, self.head_norm)


class HeadNorms(nn.Module):
    """LayerNorm or RMSNorm of queries and keys, the same for all heads: `[N, h, d]` → `[N, h, d]`.

    The result has the input's dtype, like the values: with autocast on a GPU, LayerNorm would return float32.
    """

    def __init__(self, head_dim: int, norm: Norm) -> None:
        super().__init__()
        kind = nn.LayerNorm if norm == "layer" else RMSNorm
        self.query = kind(head_dim, eps=HEAD_NORM_EPS)
        self.key = kind(head_dim, eps=HEAD_NORM_EPS)

    def of_queries(self, heads: Tensor) -> Tensor:
        """Map queries `[N, h, d]` to normalized ones."""
        normed: Tensor = self.query(heads)
        return normed.to(heads.dtype)

    def of_keys(self, heads: Tensor) -> Tensor:
        """Map keys `[N, h, d]` to normalized ones."""
        normed: Tensor = self.key(heads)
        return normed.to(heads.dtype)


def difference(attended: Tensor, *, differential: bool) -> Tensor:
    """Return attention `[N, h, d]`: its second half of heads `[N, 2h, d]` is subtracted from the first if it is differential."""
    if not differential:
        return attended
    first, second = attended.chunk(2, dim=1)
    return first - second


class SelfAttention(nn.Module):
    """Attention of the tokens of each clip among themselves, with rotary positions on the first r dimensions of a head.

    Rows of `qkv.weight` are the queries, the keys and the values; for differential attention then the queries and the keys that are
    subtracted. Both attentions have the same values. There are no biases.
    """

    def __init__(self, sizes: DiTSizes) -> None:
        super().__init__()
        self.head_dim, self.differential = sizes.head_dim, sizes.differential
        self.qkv = nn.Linear(sizes.hidden_dim, (5 if sizes.differential else 3) * sizes.hidden_dim, bias=False)
        self.output = nn.Linear(sizes.hidden_dim, sizes.hidden_dim, bias=False)
        self.norms = sizes.head_norms()

    def forward(self, hidden: Tensor, rope: Rope, layout: Layout, layer: int) -> Tensor:
        """Map `[N, E]` to `[N, E]`."""
        parts = self.qkv(hidden).unflatten(-1, (5 if self.differential else 3, -1, self.head_dim)).unbind(1)
        query, key, value = parts[:3]
        if self.differential:  # twice as many heads in one call
            query, key, value = torch.cat([query, parts[3]], 1), torch.cat([key, parts[4]], 1), torch.cat([value, value], 1)
        if self.norms is not None:
            query, key = self.norms.of_queries(query), self.norms.of_keys(key)
        attended = layout.attend(layer, partly_rotated(query, rope), partly_rotated(key, rope), value)
        out: Tensor = self.output(difference(attended, differential=self.differential).flatten(1))
        return out


def partly_rotated(heads: Tensor, rope: Rope) -> Tensor:
    """Rotate the first r dimensions of `[N, h, d]` by tables `[N, r]`, in at least their precision."""
    width = rope[0].shape[-1]
    turned = rotate(heads[..., :width].to(torch.promote_types(heads.dtype, rope[0].dtype)), *rope).to(heads.dtype)
    return torch.cat([turned, heads[..., width:]], dim=-1)


class ConditionAttention(nn.Module):
    """Attention of each clip to its conditions `[C, F]`, with g = F / d heads of keys and values, and without positions.

    There are no biases, so a clip without conditions gets exactly zero, and so does one whose conditions are zero.
    """

    def __init__(self, sizes: DiTSizes, *, condition_dim: int) -> None:
        super().__init__()
        self.head_dim, self.differential = sizes.head_dim, sizes.differential
        self.query = nn.Linear(sizes.hidden_dim, (1 + sizes.differential) * sizes.hidden_dim, bias=False)
        self.key_value = nn.Linear(condition_dim, (2 + sizes.differential) * condition_dim, bias=False)
        self.output = nn.Linear(sizes.hidden_dim, sizes.hidden_dim, bias=False)
        self.norms = sizes.head_norms()

    def forward(self, hidden: Tensor, layout: Layout, layer: int) -> Tensor:
        """Map `[N, E]` to `[N, E]`."""
        query = self.query(hidden).unflatten(-1, (-1, self.head_dim))
        query = query if self.norms is None else self.norms.of_queries(query)
        attended = layout.cross(layer, 0, query, self.project)
        out: Tensor = self.output(difference(attended, differential=self.differential).flatten(1))
        return out

    def project(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Map condition tokens `[C, F]` to key and value `[C, g, d]`, `[C, 2g, d]` for differential attention."""
        *keys, value = self.key_value(conditions).unflatten(-1, (2 + self.differential, -1, self.head_dim)).unbind(1)
        key, value = torch.cat(keys, 1), torch.cat([value] * len(keys), 1)
        return (key if self.norms is None else self.norms.of_keys(key)), value


class GatedFeedForward(nn.Module):
    """Computes down(a · silu(b)) with a, b = up(x), both with biases (SwiGLU, Shazeer 2020): `[N, E]` → `[N, E]`."""

    def __init__(self, *, hidden_dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_dim, 2 * intermediate_dim)
        self.down = nn.Linear(intermediate_dim, hidden_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[N, E]` to `[N, E]`."""
        value, gate = self.up(hidden).chunk(2, dim=-1)
        out: Tensor = self.down(value * F.silu(gate))
        return out


class HintEmbedding(nn.Module):
    """Maps the hints for frames, `[F, L]`, to what is added to their tokens, `[F, E]`: Linear–SiLU–Linear with biases."""

    def __init__(self, num_hints: int, hidden_dim: int) -> None:
        super().__init__()
        self.inward = nn.Linear(num_hints, hidden_dim)
        self.outward = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, hidden: Tensor, seen: SeenHints) -> Tensor:
        """Add the embedding of each frame's hints to its token among `[N, E]`; other tokens stay as they are."""
        added: Tensor = self.outward(F.silu(self.inward(seen.values)))
        return hidden.index_add(0, seen.places, added.to(hidden.dtype))


class DiTLayer(nn.Module):
    """Attention, attention to conditions if there are any, and a feed-forward network, each after a norm.

    A layer that takes hints adds their embedding in front of the feed-forward network.

    Takes only tensors and plain objects, so that it can be sharded, checkpointed or compiled on its own.

    Args:
        index: index of this layer in the backbone, and in the cache.
        sizes: sizes.
        feed_forward: `[N, E]` → `[N, E]`, and an auxiliary loss if the router adds one.
    """

    def __init__(self, index: int, sizes: DiTSizes, feed_forward: nn.Module) -> None:
        super().__init__()
        self.index, self.sizes = index, sizes
        self.attention_norm = sizes.branch_norm()
        self.attention = SelfAttention(sizes)
        self.condition_norm: nn.Module | None = None
        self.conditions: ConditionAttention | None = None
        self.hints: HintEmbedding | None = None
        self.mlp_norm = sizes.branch_norm()
        self.mlp = feed_forward
        self.modulation = nn.Parameter(torch.empty(NUM_MODULATIONS * sizes.hidden_dim)) if sizes.modulates else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the modulation: normal with standard deviation 1 / sqrt(E), as published."""
        if self.modulation is not None:
            nn.init.normal_(self.modulation, std=self.sizes.hidden_dim**-0.5)

    def take_conditions(self, condition_dim: int) -> None:
        """Add attention to condition tokens of so many dimensions."""
        self.condition_norm = self.sizes.branch_norm()
        self.conditions = ConditionAttention(self.sizes, condition_dim=condition_dim)

    def take_hints(self, num_hints: int) -> None:
        """Add the embedding of hints with this many numbers."""
        self.hints = HintEmbedding(num_hints, self.sizes.hidden_dim)

    @torch.no_grad()
    def begin_at_zero(self) -> None:
        """Zero the weights with which the layer writes to the residual stream, as published."""
        written = [self.attention.output, *(m.down for m in self.mlp.modules() if isinstance(m, GatedFeedForward))]
        written += [] if self.conditions is None else [self.conditions.output]
        written += [] if self.hints is None else [self.hints.outward]
        for linear in written:
            nn.init.zeros_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, rope: Rope, modulation: Tensor | None, layout: Layout) -> tuple[Tensor, AuxiliaryLoss | None]:
        """Map `[N, E]` to `[N, E]`, and the feed-forward network's auxiliary loss, if any.

        Args:
            hidden: `[N, E]`.
            rope: tables `[N, r]` of `rope_tables`.
            modulation: `[M + 1, 6 E]`, what modulates each clip; None without modulation.
            layout: runs the attention, and holds the conditions.
        """
        modulated = self._unmodulated if modulation is None else self._modulating(modulation, layout)
        hidden = hidden + modulated(0, self.attention_norm(hidden), lambda x: self.attention(x, rope, layout, self.index))
        if self.conditions is not None and self.condition_norm is not None and layout.conditions is not None:
            hidden = hidden + self.conditions(self.condition_norm(hidden), layout, self.index)
        if self.hints is not None and layout.conditions is not None and layout.conditions.hints is not None:
            hidden = self.hints(hidden, layout.conditions.hints)
        losses: list[AuxiliaryLoss] = []

        def network(x: Tensor) -> Tensor:
            update = self.mlp(x)
            out: Tensor = update[0] if isinstance(update, tuple) else update
            losses.extend(update[1:] if isinstance(update, tuple) else [])
            return out

        return hidden + modulated(1, self.mlp_norm(hidden), network), losses[0] if losses else None

    @staticmethod
    def _unmodulated(branch: int, normed: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        return network(normed)

    def _modulating(self, modulation: Tensor, layout: Layout) -> Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]:
        """Return what scales and shifts the input of a branch, and gates its output with sigmoid(1 − gate)."""
        assert self.modulation is not None and layout.conditions is not None, "both are there if the backbone modulates"
        by_clip = rearrange(self.modulation + modulation, "m (branch three e) -> branch three m e", branch=2, three=3)
        clips = layout.conditions.clips[0]

        def modulated(branch: int, normed: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
            scale, shift, gate = (part.index_select(0, clips) for part in by_clip[branch])
            out: Tensor = network(normed * (1 + scale) + shift) * torch.sigmoid(1 - gate)
            return out

        return modulated
