"""The Mixture-of-Transformers backbone: several transformers over one sequence, joined only by attention.

Shape letters: N tokens, N_e tokens of stream e, P stored tokens of all streams, H hidden dimensions, V vocabulary,
d head dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundomni.core.attention.layout import Layout
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, LossTerms, Router
from soundomni.experts.auxiliary import AuxiliaryLoss, check_names, named_loss
from soundomni.experts.initial import INITIAL_STD, draw_weights
from soundomni.experts.mot_layer import LayerSizes, MoTExpert, MoTLayer
from soundomni.experts.norm import RMSNorm
from soundomni.experts.rope import rope_tables
from soundomni.experts.sizes import check_heads, check_stream, require_positive
from soundomni.experts.swiglu import SwiGLU


class MoTBackbone(Backbone):
    """Pre-norm transformer with separate weights for each stream, except for embedding, head and attention (Liang et
    al. 2024).

    Layers are Qwen2's: RMSNorm, attention with q, k, v biases and rotary positions, SwiGLU. With one stream it is
    Qwen2.

    Args:
        vocab_size: V (runtime).
        router: determines the streams and builds their feed-forward networks (runtime).
        hidden_dim: hidden size H.
        num_layers: number of layers.
        num_heads: number of query heads.
        num_kv_heads: number of key-value heads; None means as many as query heads.
        head_dim: dimensions of each head, d; None means hidden_dim / num_heads.
        intermediate_dim: width of the feed-forward networks; None means 8/3 of hidden_dim, rounded up to a multiple of
            16.
        gen_intermediate_dim: width of the feed-forward networks in all streams but the first; None means
            intermediate_dim.
        qk_norm: RMSNorm on queries and keys in no stream ("none"), in "all", or in all but the first ("gen"). Adding it
            to the first stream changes the function of a pretrained language model without it.
        rope_theta: base of the rotary frequencies.
        norm_eps: eps of every RMSNorm.
        tie_embeddings: whether head and embedding share one matrix.
        vocab_rows: rows of embedding and head; None means V. A checkpoint may have more rows than its tokenizer has
            ids.
        copy_initialize: whether the other streams start as copies of the first, see `copy_streams`.
    """

    takes_empty_streams: ClassVar[bool] = True

    def __init__(
        self,
        *,
        vocab_size: int,
        router: Router,
        hidden_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_dim: int | None = None,
        gen_intermediate_dim: int | None = None,
        qk_norm: Literal["none", "all", "gen"] = "none",
        rope_theta: float = 1e4,
        norm_eps: float = 1e-6,
        tie_embeddings: bool = False,
        vocab_rows: int | None = None,
        copy_initialize: bool = False,
    ) -> None:
        super().__init__()
        whole = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
        whole |= {"head_dim": head_dim, "intermediate_dim": intermediate_dim, "gen_intermediate_dim": gen_intermediate_dim}
        require_positive("mot", whole | {"vocab_rows": vocab_rows})
        rows = vocab_size if vocab_rows is None else vocab_rows
        if rows < vocab_size:
            raise SpecError(f"mot: vocab_rows is {vocab_rows}, but the tokenizer has ids up to {vocab_size - 1}; expected more rows")
        if num_heads % (num_kv_heads or num_heads):
            raise SpecError(f"mot: num_heads is {num_heads}; expected a multiple of num_kv_heads, which is {num_kv_heads}")
        sizes = LayerSizes(
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads if num_kv_heads is not None else num_heads,
            head_dim=check_heads("mot", hidden_dim=hidden_dim, num_heads=num_heads, head_dim=head_dim),
            norm_eps=norm_eps,
        )
        wide = intermediate_dim if intermediate_dim is not None else math.ceil(8 * hidden_dim / 48) * 16
        narrow = gen_intermediate_dim if gen_intermediate_dim is not None else wide
        if copy_initialize and narrow > wide:
            raise SpecError(
                f"mot: gen_intermediate_dim is {narrow} with copy_initialize; expected at most intermediate_dim, which is {wide}"
            )
        self.hidden_dim, self.num_kv_heads, self.head_dim = hidden_dim, sizes.num_kv_heads, sizes.head_dim
        self.rope_theta = rope_theta
        self.copy_initialize = copy_initialize
        self.streams, self.loss_names = router.streams, router.loss_names
        check_names("mot", self.loss_names)

        def expert(stream: int) -> MoTExpert:
            width = wide if stream == 0 else narrow
            network = router.feed_forward(lambda: SwiGLU(hidden_dim=hidden_dim, intermediate_dim=width), hidden_dim)
            return MoTExpert(sizes, qk_norm=qk_norm == "all" or (qk_norm == "gen" and stream > 0), feed_forward=network)

        self.embedding = nn.Embedding(rows, hidden_dim)
        self.blocks = nn.ModuleList(
            MoTLayer(index, {name: expert(stream) for stream, name in enumerate(self.streams)}) for index in range(num_layers)
        )
        self.norms = nn.ModuleDict({name: RMSNorm(hidden_dim, eps=norm_eps) for name in self.streams})
        self.lm_head = None if tie_embeddings else nn.Linear(hidden_dim, rows, bias=False)
        self.reset_parameters()

    @property
    def layers(self) -> nn.ModuleList:
        """The MoTLayers."""
        return self.blocks

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights; a backbone built on the meta device calls it once it has memory.

        Matrices are normal with standard deviation 0.02, those that write to the residual stream 0.02 / sqrt(2 ·
        layers) (GPT-2, Radford et al. 2019, section 2.3); biases are zero, norms one.
        """
        draw_weights(self)
        residual_std = INITIAL_STD / math.sqrt(2 * len(self.blocks))
        for module in self.modules():
            if isinstance(module, MoTExpert):
                nn.init.normal_(module.output.weight, std=residual_std)
            elif isinstance(module, SwiGLU):
                nn.init.normal_(module.down.weight, std=residual_std)
        if self.copy_initialize:
            self.copy_streams()

    @torch.no_grad()
    def copy_streams(self) -> None:
        """Make the other streams copies of the first where shapes agree; SwiGLU.copy_from says what a narrower network
        takes over.

        `copy_initialize` calls it, and so does whoever loads a pretrained language model into the first stream.
        """
        first, *others = self.streams
        for name in others:
            for layer in self.blocks:
                experts = cast(MoTLayer, layer).expert
                experts(name).copy_from(experts(first))
            self.norms[name].load_state_dict(self.norms[first].state_dict())

    def embed(self, token_ids: Tensor) -> Tensor:
        """Map `[N]` int64 to `[N, H]`."""
        out: Tensor = self.embedding(token_ids)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to logits `[N, V]`."""
        if self.lm_head is None:
            return F.linear(hidden, self.embedding.weight)
        out: Tensor = self.lm_head(hidden)
        return out

    def forward(self, streams: Sequence[Tensor], layout: Layout) -> tuple[list[Tensor], LossTerms]:
        """Map streams `[N_e, H]` in stored order to the same streams after all layers and the final norm, and auxiliary
        losses.

        If networks add a loss, it is returned as {its name: (sum, count)}, summed over tokens, streams and layers, so
        that the quotient is the mean per token and layer.
        """
        hidden = list(streams)
        rope = rope_tables(layout.position_ids, head_dim=self.head_dim, theta=self.rope_theta, dtype=hidden[0].dtype)
        losses: list[AuxiliaryLoss | None] = []
        for layer in self.blocks:
            hidden, loss = layer(hidden, rope, layout)
            losses.append(loss)
        normed = [norm(x) if len(x) else x for norm, x in zip(self.norms.values(), hidden, strict=True)]
        return normed, named_loss("mot", self.loss_names, losses, all_ran=all(map(len, hidden)))

    def expert_parameters(self, stream: str) -> Iterator[nn.Parameter]:
        """Yield the parameters that only tokens of `stream` use. Raise SpecError if there is no such stream."""
        check_stream(stream, self.streams)
        for layer in self.blocks:
            yield from cast(MoTLayer, layer).expert(stream).parameters()
        yield from self.norms[stream].parameters()
