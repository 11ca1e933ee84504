"""The Conformer backbone: attention, and convolutions over the frames of each clip (Gulati et al. 2020; the network of SoundStorm,
Borsos et al. 2023, section 3.1).

Shape letters: N tokens, N_e tokens of stream e, H hidden dimensions, V vocabulary, d head dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from soundomni.core.attention.layout import Layout
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, LossTerms, Router
from soundomni.experts.auxiliary import AuxiliaryLoss, check_names, named_loss
from soundomni.experts.conformer_layer import ConformerExpert, ConformerLayer, ConformerSizes, SwishFeedForward
from soundomni.experts.initial import INITIAL_STD, draw_weights
from soundomni.experts.rope import rope_tables
from soundomni.experts.sizes import check_heads, check_stream, require_positive


class ConformerBackbone(Backbone):
    """Conformer with separate weights for each stream, except for embedding, head and attention.

    A layer is a half-step feed-forward network, attention with rotary positions, a convolution module, another half-step
    feed-forward network, and LayerNorm. With the router `dense`, there is one stream, and it is a plain Conformer. The sizes of
    SoundStorm are 12 layers of hidden_dim 1024 with 16 heads, intermediate_dim 4096 and kernel_size 5; with 12 levels of 1024
    codes, that is about 350 million parameters.

    A convolution only sees frames of the same clip. Tokens of causal segments, such as text, are not mixed with their neighbors,
    because they must not see later ones: only attention joins them.

    Args:
        vocab_size: V (runtime).
        router: determines the streams and builds their feed-forward networks (runtime).
        hidden_dim: hidden size H.
        num_layers: number of layers.
        num_heads: number of heads.
        head_dim: dimensions of each head, d; None means hidden_dim / num_heads.
        intermediate_dim: width of the feed-forward networks; None means 4 times hidden_dim.
        kernel_size: taps of the depthwise convolution, odd.
        conv_expansion: channels of the convolution, as a multiple of hidden_dim.
        rope_theta: base of the rotary frequencies.
        norm_eps: eps of every LayerNorm.
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
        head_dim: int | None = None,
        intermediate_dim: int | None = None,
        kernel_size: int = 5,
        conv_expansion: int = 2,
        rope_theta: float = 1e4,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        whole: dict[str, int | None] = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": num_heads, "head_dim": head_dim}
        whole |= {"intermediate_dim": intermediate_dim, "kernel_size": kernel_size, "conv_expansion": conv_expansion}
        require_positive("conformer", whole)
        width_of_head = check_heads("conformer", hidden_dim=hidden_dim, num_heads=num_heads, head_dim=head_dim)
        if kernel_size % 2 == 0:
            near = f"{kernel_size - 1} or {kernel_size + 1}"
            raise SpecError(f"conformer: kernel_size is {kernel_size}; expected an odd number, such as {near}, with a tap in the middle")
        sizes = ConformerSizes(
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            head_dim=width_of_head,
            conv_channels=conv_expansion * hidden_dim,
            kernel_size=kernel_size,
            norm_eps=norm_eps,
        )
        self.hidden_dim, self.num_kv_heads, self.head_dim = hidden_dim, num_heads, sizes.head_dim
        self.rope_theta, self.reach = rope_theta, kernel_size // 2
        self.streams, self.loss_names = router.streams, router.loss_names
        check_names("conformer", self.loss_names)
        width = intermediate_dim if intermediate_dim is not None else 4 * hidden_dim

        def network() -> nn.Module:
            return router.feed_forward(lambda: SwishFeedForward(hidden_dim=hidden_dim, intermediate_dim=width), hidden_dim)

        self.embedding = nn.Embedding(vocab_size, hidden_dim)
        self.blocks = nn.ModuleList(
            ConformerLayer(index, {name: ConformerExpert(sizes, network(), network()) for name in self.streams})
            for index in range(num_layers)
        )
        self.lm_head = nn.Linear(hidden_dim, vocab_size, bias=False)
        self.reset_parameters()

    @property
    def layers(self) -> nn.ModuleList:
        """The ConformerLayers."""
        return self.blocks

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights; a backbone built on the meta device calls it once it has memory.

        Matrices are normal with standard deviation 0.02, those that write to the residual stream 0.02 / sqrt(4 · layers), as there
        are four in a layer (GPT-2, Radford et al. 2019, section 2.3); biases are zero, norms one.
        """
        draw_weights(self)
        residual_std = INITIAL_STD / math.sqrt(4 * len(self.blocks))
        for module in self.modules():
            if isinstance(module, ConformerExpert):
                nn.init.normal_(module.output.weight, std=residual_std)
                nn.init.normal_(module.convolution.pointwise.weight, std=residual_std)
            elif isinstance(module, SwishFeedForward):
                nn.init.normal_(module.down.weight, std=residual_std)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Map `[N]` int64 to `[N, H]`."""
        out: Tensor = self.embedding(token_ids)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to logits `[N, V]`."""
        out: Tensor = self.lm_head(hidden)
        return out

    def forward(self, streams: Sequence[Tensor], layout: Layout) -> tuple[list[Tensor], LossTerms]:
        """Map streams `[N_e, H]` in stored order to the same streams after all layers, each of which ends with a norm, and auxiliary
        losses.

        If networks add a loss, it is returned as {its name: (sum, count)}, summed over tokens, streams, networks and layers.
        """
        hidden = list(streams)
        rope = rope_tables(layout.position_ids, head_dim=self.head_dim, theta=self.rope_theta, dtype=hidden[0].dtype)
        clips = [layout.spaced_clips(stream, self.reach) for stream in range(len(hidden))]
        losses: list[AuxiliaryLoss | None] = []
        for layer in self.blocks:
            hidden, loss = layer(hidden, rope, clips, layout)
            losses.append(loss)
        return hidden, named_loss("conformer", self.loss_names, losses, all_ran=all(map(len, hidden)))

    def expert_parameters(self, stream: str) -> Iterator[nn.Parameter]:
        """Yield the parameters that only tokens of `stream` use. Raise SpecError if there is no such stream."""
        check_stream(stream, self.streams)
        for layer in self.blocks:
            yield from cast(ConformerLayer, layer).expert(stream).parameters()
