"""One layer of a Mixture of Transformers (Liang et al. 2024, algorithm 1): parameters per stream, attention over all
streams.

Each stream stays one contiguous tensor through the whole layer; only queries, keys and values are joined, in stored
order.

Shape letters: N_e tokens of stream e, P stored tokens of all streams, H hidden dimensions, h query heads, g key-value
heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from soundomni.core.attention.layout import Layout
from soundomni.experts.auxiliary import AuxiliaryLoss, add_losses
from soundomni.experts.norm import RMSNorm
from soundomni.experts.rope import rotate
from soundomni.experts.streams import apart, joined
from soundomni.experts.swiglu import SwiGLU


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Sizes that all streams share.

    Args:
        hidden_dim, num_heads, num_kv_heads, head_dim: H, h, g and d.
        norm_eps: eps of every norm.
    """

    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float


class MoTExpert(nn.Module):
    """One stream's parameters in a layer: both norms, the projections of attention and the feed-forward network.

    Rows of `qkv.weight` are the heads of the queries, then the keys, then the values.
    """

    def __init__(self, sizes: LayerSizes, *, qk_norm: bool, feed_forward: nn.Module) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.num_kv_heads = sizes.num_kv_heads
        self.head_dim = sizes.head_dim
        self.attention_norm = RMSNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.qkv = nn.Linear(sizes.hidden_dim, (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim)
        self.q_norm = RMSNorm(sizes.head_dim, eps=sizes.norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(sizes.head_dim, eps=sizes.norm_eps) if qk_norm else None
        self.output = nn.Linear(sizes.num_heads * sizes.head_dim, sizes.hidden_dim, bias=False)
        self.mlp_norm = RMSNorm(sizes.hidden_dim, eps=sizes.norm_eps)
        self.mlp = feed_forward

    def project(self, hidden: Tensor) -> Tensor:
        """Map `[N_e, H]` to queries, keys and values `[N_e, h + 2g, d]`, not yet rotated."""
        heads: Tensor = self.qkv(self.attention_norm(hidden)).view(hidden.shape[0], self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        if self.q_norm is None or self.k_norm is None:
            return heads
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        return torch.cat([self.q_norm(query), self.k_norm(key), value], dim=1)

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, AuxiliaryLoss | None]:
        """Add attention `[N_e, h, d]` and the feed-forward network to the residual stream `[N_e, H]`."""
        hidden = hidden + self.output(attended.flatten(1))
        update = self.mlp(self.mlp_norm(hidden))
        if isinstance(update, tuple):
            return hidden + update[0], update[1]
        return hidden + update, None

    @torch.no_grad()
    def copy_from(self, source: MoTExpert) -> None:
        """Copy every parameter of the same name and shape, and the part of wider SwiGLU networks that narrower ones
        take over.

        Parameters without a counterpart, such as q/k norms that the source does not have, stay as they are.
        """
        theirs = dict(source.named_parameters())
        for name, parameter in self.named_parameters():
            if name in theirs and theirs[name].shape == parameter.shape:
                parameter.copy_(theirs[name])
        networks = dict(source.named_modules())
        for name, module in self.named_modules():
            twin = networks.get(name)
            if isinstance(module, SwiGLU) and isinstance(twin, SwiGLU):
                module.copy_from(twin)


class MoTLayer(nn.Module):
    """One layer over E streams.

    Takes only tensors and plain objects, so that it can be sharded, checkpointed or compiled on its own.

    Args:
        index: index of this layer in the backbone, and in the cache.
        experts: stream name → its parameters, in the router's order.
    """

    def __init__(self, index: int, experts: Mapping[str, MoTExpert]) -> None:
        super().__init__()
        self.index = index
        self.experts = nn.ModuleDict(experts)
        first = next(iter(experts.values()))
        self.num_heads = first.num_heads
        self.num_kv_heads = first.num_kv_heads

    def expert(self, stream: str) -> MoTExpert:
        """Return the parameters of the stream of this name."""
        return cast(MoTExpert, self.experts[stream])

    def forward(self, streams: list[Tensor], rope: tuple[Tensor, Tensor], layout: Layout) -> tuple[list[Tensor], AuxiliaryLoss | None]:
        """Map streams `[N_e, H]` in stored order to the same streams after the layer, and the networks' auxiliary loss,
        if any.

        The experts of empty streams do not run.

        Args:
            streams: one tensor per stream, in the router's order.
            rope: tables `[P, d]` of `rope_tables`.
            layout: runs the attention.
        """
        experts = {i: one for i, one in enumerate(cast(Iterable[MoTExpert], self.experts.values())) if streams[i].shape[0]}
        heads = joined([expert.project(streams[stream]) for stream, expert in experts.items()])
        queries, turned = self.num_heads, self.num_heads + self.num_kv_heads
        rotated = rotate(heads[:, :turned], *rope)
        attended = apart(layout.attend(self.index, rotated[:, :queries], rotated[:, queries:], heads[:, turned:]), streams)
        done = {stream: expert.finish(streams[stream], attended[stream]) for stream, expert in experts.items()}
        hidden = [done[stream][0] if stream in done else empty for stream, empty in enumerate(streams)]
        return hidden, add_losses([loss for _, loss in done.values()])
