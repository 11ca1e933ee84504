"""Routing by hidden state: in every layer, each token picks k of several feed-forward networks.

Shape letters: N tokens, H hidden dimensions, E networks, k networks per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Router
from soundomni.core.sequence import Role
from soundomni.experts.dense import DenseRouter
from soundomni.experts.grouped import run_grouped, runs_grouped
from soundomni.experts.modality import ModalityRouter
from soundomni.experts.swiglu import SwiGLU


class TopKRouter(Router):
    """Static streams whose feed-forward networks are mixtures, gated by the hidden state.

    The gates of the k largest softmax probabilities are renormalized to sum to one (Mixtral, Jiang et al. 2024, section
    2.1), and the load is balanced by the auxiliary loss of Switch Transformer (Fedus et al. 2021, eq. 4–6).

    Args:
        num_experts: networks per stream and layer, E.
        k: networks that each token runs through.
        by_modality: whether "und" and "gen" have separate attention and norms, as in ModalityRouter; otherwise one
            stream, "all".
        balance: weight of the auxiliary loss, α of eq. 4; the reported loss includes it.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("load_balance",)

    def __init__(self, *, num_experts: int = 4, k: int = 2, by_modality: bool = True, balance: float = 0.01) -> None:
        if not 1 <= k <= num_experts:
            raise SpecError(f"top-k: k is {k}; expected 1 to num_experts, which is {num_experts}")
        self.num_experts = num_experts
        self.k = k
        self.balance = balance
        self._static: Router = ModalityRouter() if by_modality else DenseRouter()

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams: "und" and "gen", or only "all"."""
        return self._static.streams

    def stream_of(self, role: Role) -> int:
        """Return the index of the stream that tokens of this role run through."""
        return self._static.stream_of(role)

    def feed_forward(self, build: Callable[[], nn.Module], hidden_dim: int) -> nn.Module:
        """Build a TopKFeedForward over E networks made by `build`."""
        networks = [build() for _ in range(self.num_experts)]
        return TopKFeedForward(networks, hidden_dim=hidden_dim, k=self.k, balance=self.balance)


class TopKFeedForward(nn.Module):
    """A sparse mixture of networks: `[N, H]` → `([N, H], (load-balance loss sum, tokens))`.

    Every network runs on exactly the tokens that chose it, even if there are none, so that all parameters take part in
    every backward pass on every rank. In bf16 on CUDA, SwiGLU networks run at once; otherwise, determining the split sizes waits for
    the device once per call.

    Padding rows do not count. They are zero on entry, because nothing in the backbone adds a bias to the residual
    stream of a token that neither carries an input nor attends. So rows of zeros are left out of the loss and its
    count, a bias-free gate gets no gradient from them, and networks without biases leave them zero.
    """

    def __init__(self, networks: Sequence[nn.Module], *, hidden_dim: int, k: int, balance: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.gate = nn.Linear(hidden_dim, len(networks), bias=False)
        self.k = k
        self.balance = balance

    def forward(self, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the mixture of `[N, H]` and (α · E · Σ_i f_i Σ_x p_i(x), number of tokens x that are not padding)."""
        logits = self.gate(hidden)
        probabilities = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        gates, chosen = probabilities.topk(self.k, dim=-1)
        gates = (gates / gates.sum(dim=-1, keepdim=True)).to(hidden.dtype)
        return self._mix(hidden, gates, chosen), self._load_balance(hidden, probabilities, chosen)

    def _mix(self, hidden: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Run the `chosen` `[N, k]` networks, each on its own tokens, and sum their outputs weighted by `gates` `[N,
        k]`."""
        order = chosen.flatten().argsort(stable=True)
        rows = hidden.index_select(0, order // self.k)
        ones = torch.ones_like(order)
        sizes = torch.zeros(len(self.networks), dtype=torch.int64, device=order.device).index_add(0, chosen.flatten(), ones)
        if runs_grouped(list(self.networks), rows):
            outputs = run_grouped([cast(SwiGLU, network) for network in self.networks], rows, sizes)
        else:
            parts = torch.split(rows, sizes.tolist())
            outputs = torch.cat([network(part) for network, part in zip(self.networks, parts, strict=True)])
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        mixed = rearrange(outputs.index_select(0, back), "(n k) h -> n k h", k=self.k)
        return torch.einsum("nkh,nk->nh", mixed, gates.to(mixed.dtype))

    def _load_balance(self, hidden: Tensor, probabilities: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, with f_i the share of choices that fell on network i and p_i its probability; α per token if
        balanced."""
        real = hidden.detach().ne(0).any(dim=-1).to(probabilities.dtype)
        count = real.sum()
        choices = probabilities.new_zeros(len(self.networks)).index_add(0, chosen.flatten(), real.repeat_interleave(self.k))
        share = choices / (self.k * count).clamp(min=1)
        loss = self.balance * len(self.networks) * (share * (real @ probabilities)).sum()
        return loss, count
