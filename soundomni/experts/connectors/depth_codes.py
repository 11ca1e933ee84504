"""The connector of codes with a transformer over the levels of a token (RQ-Transformer, Lee et al. 2022, section 3.2.2).

UniAudio (Yang et al. 2023) and Moshi (Défossez et al. 2024) have one too. The backbone sees a token per frame, and a small network
draws the codes of the frame one after the other.

Shape letters: N tokens, K levels, V_k vocabulary of level k, H hidden dimensions, D dimensions of the small network, h heads, d numbers
of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import LevelsConnector
from soundomni.core.representation import HIDDEN, TokenSpec
from soundomni.experts.connectors.codes import CodesConnector, embed_ids
from soundomni.experts.connectors.projection import initialize
from soundomni.experts.norm import RMSNorm
from soundomni.experts.swiglu import SwiGLU


class DepthCodesConnector(CodesConnector, LevelsConnector):
    """Maps ids `[N, K]` → `[N, H]` as `codes` does, and back by a causal transformer over the K levels of each token.

    Place k of the small transformer holds a projection of the hidden token, one for each level, plus an embedding of the code of level
    k − 1, and gives the logits of level k. Its layers are shared by all levels. The heads start at zero.

    A sampler has to draw the levels one after the other, as `next-token` does; `speculative` cannot. The backbone still runs once for a
    token, and the small network K times.

    Args:
        tokens: vocabulary of each id in, and classes of each id out (runtime).
        hidden_dim: H (runtime).
        generates: whether tokens are generated; if not, there is no small transformer (runtime).
        std: standard deviation of the embeddings at the start of training, as in `codes`.
        depth_dim: D.
        num_layers: layers of the small transformer.
        num_heads: its attention heads.

    Raises:
        SpecError: the tokens are numbers, or an argument is out of its range.
    """

    def __init__(
        self,
        *,
        tokens: TokenSpec,
        hidden_dim: int,
        generates: bool,
        std: float = 0.5,
        depth_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
    ) -> None:
        super().__init__(tokens=tokens, hidden_dim=hidden_dim, generates=generates, std=std)
        for name, count in (("depth_dim", depth_dim), ("num_layers", num_layers), ("num_heads", num_heads)):
            if count < 1:
                raise SpecError(f"{name} of connector 'depth-codes' is {count}; expected at least 1")
        if depth_dim % num_heads:
            raise SpecError(f"depth_dim of connector 'depth-codes' is {depth_dim}; expected a multiple of num_heads, {num_heads}")
        if not generates:
            return
        assert isinstance(tokens.outputs, tuple), "they are codes"
        sizes = tokens.outputs
        self.inward = nn.ModuleList(initialize(nn.Linear(hidden_dim, depth_dim), std=hidden_dim**-0.5) for _ in sizes)
        self.below = nn.ModuleList(nn.Embedding(size + 1, depth_dim) for size in sizes[:-1])  # the last row is for HIDDEN
        self.layers = nn.ModuleList(DepthLayer(depth_dim, num_heads=num_heads) for _ in range(num_layers))
        self.norm = RMSNorm(depth_dim)
        self.heads = nn.ModuleList(initialize(nn.Linear(depth_dim, classes), std=0.0) for classes in sizes)

    def leave(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map `[N, H]` and the ids `[N, K]` of the tokens to the logits of all levels, one after the other: `[N, V_1 + … + V_K]`.

        Logits of a level depend on the levels below it. Without ids, all are HIDDEN.

        Raise TypeError if the connector does not generate.
        """
        if self.heads is None:
            raise TypeError("this connector was built with generates=False and cannot map tokens back")
        if ids is None:
            ids = torch.full((len(hidden), len(self.heads)), HIDDEN, device=hidden.device)
        places = [into(hidden) for into in self.inward]
        for level, table in enumerate(self.below):
            places[level + 1] = places[level + 1] + embed_ids(table, ids[:, level])
        x = torch.stack(places, dim=1)
        for layer in self.layers:
            x = layer(x)
        return torch.cat([head(one) for head, one in zip(self.heads, self.norm(x).unbind(1), strict=True)], dim=-1)

    def leave_level(self, hidden: Tensor, level: int, sizes: Sequence[int]) -> Tensor:
        """Map `[N, H]` to the logits of one level without ids below it, `[N, V_level]`: a part of what `leave` returns."""
        return LevelsConnector.leave_level(self, hidden, level, sizes)


class DepthLayer(nn.Module):
    """A layer over the levels of each token, `[N, K, D]` → `[N, K, D]`: causal attention, then a gated network, both after a norm."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.network_norm = RMSNorm(dim)
        self.network = SwiGLU(hidden_dim=dim, intermediate_dim=2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, K, D]` to `[N, K, D]`, each level from itself and those below it."""
        query, key, value = rearrange(self.qkv(self.attention_norm(x)), "n k (three h d) -> three n h k d", three=3, h=self.num_heads)
        # Written out: fused kernels do not take batches without tokens, and K is small.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        seen = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        x = x + self.out(rearrange(seen, "n h k d -> n k (h d)"))
        out: Tensor = x + self.network(self.network_norm(x))
        return out
