"""What the diffusion transformers of Stable Audio have in common: a backbone over packed clips (Evans et al. 2024a,
section 3.1; Evans et al. 2024b, section 2.2; Peebles and Xie 2023).

Shape letters: N stored tokens, M clips, E hidden dimensions, F condition dimensions, d head dimensions, r rotated dimensions, L leading
tokens of a clip, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from soundomni.core.attention.conditions import SeenConditions
from soundomni.core.attention.layout import Layout
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, LossTerms, Router
from soundomni.core.limits import check_count
from soundomni.experts.auxiliary import check_names, named_loss
from soundomni.experts.dit_layer import NUM_MODULATIONS, DiTLayer, DiTSizes, GatedFeedForward
from soundomni.experts.rope import rope_tables
from soundomni.experts.sizes import MOST_DIM, MOST_LAYERS, check_heads, check_stream

ROPE_THETA, LEAST_ROTATED = 1e4, 32
NUM_TIME_FEATURES = 256
MLP_RATIO = 4


class GlobalEmbedding(nn.Module):
    """Maps the global conditions of clips, `[M + 1, F]` each, to `[M + 1, E]`: Linear of all of them together, SiLU, Linear.

    There are no biases, so a condition that a clip lacks, which is zero, adds nothing.

    Args:
        names: names of the conditions.
        condition_dim, hidden_dim: F and E.
    """

    def __init__(self, names: Sequence[str], *, condition_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.inward = nn.ModuleDict({name: nn.Linear(condition_dim, hidden_dim, bias=False) for name in names})
        self.outward = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor | None:
        """Map `[M + 1, F]` for each name to `[M + 1, E]`; return None if no clip has any of the conditions."""
        given = [layer(vectors[name]) for name, layer in self.inward.items() if name in vectors]
        if not given:
            return None
        out: Tensor = self.outward(nn.functional.silu(torch.stack(given).sum(0)))
        return out


class TimeNetwork(nn.Module):
    """Linear–SiLU–Linear over timestep features: `[M, 256]` → `[M, E]`."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.inward = nn.Linear(NUM_TIME_FEATURES, hidden_dim)
        self.outward = nn.Linear(hidden_dim, hidden_dim)

    def embed(self, features: Tensor) -> Tensor:
        """Map `[M, 256]` to `[M, E]`."""
        out: Tensor = self.outward(nn.functional.silu(self.inward(features.to(self.inward.weight.dtype))))
        return out


class DiTNetwork(Backbone):
    """Diffusion transformer that attends to conditions and knows the timestep of each clip.

    It only has tokens of clips to make: no text, no context. Texts, numbers and other clips are conditions whose
    encoders enter as "cross", "global" or both. Clips with different lengths and prompts share a batch, and each only
    sees itself and its own conditions. Timesteps and global conditions reach the network as one token in front of each
    clip, or scale, shift and gate every layer.

    Args:
        vocab_size: not used, as there is no text.
        router: builds the feed-forward networks.
        sizes: sizes and settings that all layers share.
        num_layers: number of layers.
        time: maps timesteps `[M]` to `[M, E]`.
        condition_dim: dimensions F of condition tokens; None means E.
        project_conditions: whether condition tokens are mapped to E dimensions instead of F before the layers see them.
        num_memory: learned tokens in front of each clip, in addition to the token for timesteps of a network that does
            not modulate.
    """

    plugin: ClassVar[str]
    """Name of the plugin, for errors."""
    takes_empty_streams: ClassVar[bool] = True
    takes_text: ClassVar[bool] = False
    takes_times: ClassVar[bool] = True
    condition_layers: ClassVar[tuple[str, ...]] = ("conditions.key_value", "hints.inward", "hints.outward")

    def __init__(
        self,
        *,
        vocab_size: int,
        router: Router,
        sizes: DiTSizes,
        num_layers: int,
        time: TimeNetwork,
        condition_dim: int | None,
        project_conditions: bool,
        num_memory: int,
    ) -> None:
        super().__init__()
        self.hidden_dim, self.head_dim = sizes.hidden_dim, sizes.head_dim
        self.num_kv_heads = (1 + sizes.differential) * sizes.num_heads
        self._condition_dim = sizes.hidden_dim if condition_dim is None else condition_dim
        self.rotary_dim = rotary_dim(sizes.head_dim)
        self.project_conditions, self.prepends = project_conditions, not sizes.modulates
        self.lead_tokens = num_memory + self.prepends
        self.vocab_size, self.streams, self.loss_names = vocab_size, router.streams, router.loss_names

        def network() -> nn.Module:
            width = MLP_RATIO * sizes.hidden_dim
            return router.feed_forward(lambda: GatedFeedForward(hidden_dim=sizes.hidden_dim, intermediate_dim=width), sizes.hidden_dim)

        self.time = time
        self.conditions: nn.Sequential | None = None
        self.globals: GlobalEmbedding | None = None
        self.memory = nn.Parameter(torch.empty(num_memory, sizes.hidden_dim)) if num_memory else None
        self.modulation: nn.Sequential | None = None
        if sizes.modulates:
            out = nn.Linear(sizes.hidden_dim, NUM_MODULATIONS * sizes.hidden_dim)
            self.modulation = nn.Sequential(nn.Linear(sizes.hidden_dim, sizes.hidden_dim), nn.SiLU(), out)
        self.blocks = nn.ModuleList(DiTLayer(index, sizes, network()) for index in range(num_layers))
        self.reset_parameters()

    @property
    def condition_dim(self) -> int:
        """Dimensions F of condition tokens."""
        return self._condition_dim

    @property
    def layers(self) -> nn.ModuleList:
        """The DiTLayers."""
        return self.blocks

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights as published. For a backbone built on the meta device, call this once it has memory.

        Linear layers start as torch initializes them, except that layers that write to the residual stream start at
        zero; memory is drawn from N(0, 1).
        """
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for layer in self.blocks:
            cast(DiTLayer, layer).begin_at_zero()
        if self.memory is not None:
            nn.init.normal_(self.memory)

    def take_conditions(self, ways: Mapping[str, Collection[str]]) -> None:
        """Add attention to conditions, and the embedding of global conditions. The other weights stay as they were
        drawn."""
        if "cross" in ways:
            width = self.hidden_dim if self.project_conditions else self.condition_dim
            num_heads = self.hidden_dim // self.head_dim
            if width % self.head_dim or num_heads % (width // self.head_dim):
                raise SpecError(
                    f"{self.plugin}: condition_dim is {self.condition_dim}; expected a divisor of hidden_dim, which is "
                    f"{self.hidden_dim}, and a multiple of {self.head_dim}, the size of a head. Choose such a size, or set "
                    "project_conditions"
                )
            first = nn.Linear(self.condition_dim, width, bias=False)
            self.conditions = nn.Sequential(first, nn.SiLU(), nn.Linear(width, width, bias=False))
            for layer in self.blocks:
                cast(DiTLayer, layer).take_conditions(width)
                cast(DiTLayer, layer).begin_at_zero()
        if "global" in ways:
            try:
                self.globals = GlobalEmbedding(sorted(ways["global"]), condition_dim=self.condition_dim, hidden_dim=self.hidden_dim)
            except KeyError as error:  # torch modules already have attributes with some names
                raise SpecError(
                    f"{self.plugin}: a global condition has a name that torch already uses: {error}. Choose another name"
                ) from error

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return `[0, E]` for no tokens. Raise TypeError for others: there is no text."""
        if len(token_ids):
            raise TypeError(f"{len(token_ids)} tokens of text were given, but the backbone {self.plugin} has no text")
        return torch.zeros(0, self.hidden_dim, device=token_ids.device, dtype=self.time.inward.weight.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Map `[0, E]` to `[0, V]`. Raise TypeError for tokens: there is no text."""
        if len(hidden):
            raise TypeError(f"{len(hidden)} tokens of text were given, but the backbone {self.plugin} has no text")
        return hidden.new_zeros(0, self.vocab_size)

    def forward(self, streams: Sequence[Tensor], layout: Layout) -> tuple[list[Tensor], LossTerms]:
        """Map the only stream `[N, E]` to the same tokens after all layers, and return the auxiliary loss of the
        networks, if any.

        The first L tokens of a clip are replaced. There is no norm after the last layer, as published.
        """
        (hidden,) = streams
        seen = layout.conditions
        assert seen is not None and seen.times is not None, "a backbone that takes times gets them"
        vectors = self.time(seen.times)
        added = None if self.globals is None else self.globals(seen.by_name)
        vectors = vectors if added is None else vectors + added
        hidden = self._with_lead(hidden, vectors, seen)
        if self.conditions is not None:
            seen = seen.mapped(self.conditions)
        seen_layout = layout.with_conditions(seen)
        modulation = None if self.modulation is None else self.modulation(vectors)
        precise = torch.promote_types(hidden.dtype, torch.float32)
        rope = rope_tables(layout.position_ids, head_dim=self.rotary_dim, theta=ROPE_THETA, dtype=precise)
        losses = []
        for layer in self.blocks:
            hidden, loss = layer(hidden, rope, modulation, seen_layout)
            losses.append(loss)
        return [hidden], named_loss(self.plugin, self.loss_names, losses, all_ran=bool(len(hidden)))

    def _with_lead(self, hidden: Tensor, vectors: Tensor, seen: SeenConditions) -> Tensor:
        """Return the tokens `[N, E]` with the first L of each clip filled: memory, then the clip's vector."""
        if not self.lead_tokens:
            return hidden
        clips, first = seen.rows[0], seen.first[0]
        parts = [] if self.memory is None else [self.memory.expand(len(clips), -1, -1)]
        if self.prepends:
            parts.append(vectors.index_select(0, clips)[:, None])
        places = first[:, None] + torch.arange(self.lead_tokens, device=first.device)
        return hidden.index_copy(0, places.flatten(), torch.cat(parts, dim=1).flatten(0, 1).to(hidden.dtype))

    def expert_parameters(self, stream: str) -> Iterator[nn.Parameter]:
        """Yield the parameters of all layers. Raise SpecError if there is no stream of this name."""
        check_stream(stream, self.streams)
        yield from self.blocks.parameters()


def check_sizes(plugin: str, router: Router, sizes: Mapping[str, int | None], *, num_memory: int) -> int:
    """Return the dimensions d of a head. Raise SpecError if a size is out of range; None means a default."""
    for name, size in sizes.items():
        if size is not None:
            check_count(f"{plugin}: {name}", size, most=MOST_LAYERS if name == "num_layers" else MOST_DIM)
    check_count(f"{plugin}: num_memory", num_memory, least=0, most=MOST_DIM)
    if len(router.streams) != 1:
        raise SpecError(f"{plugin}: the router has the streams {', '.join(router.streams)}; expected a single one. Use the router dense")
    hidden_dim, num_heads = sizes["hidden_dim"], sizes["num_heads"]
    assert hidden_dim is not None and num_heads is not None, "both have no default"
    head_dim = check_heads(plugin, hidden_dim=hidden_dim, num_heads=num_heads, head_dim=None)
    check_names(plugin, router.loss_names)
    return head_dim


def rotary_dim(head_dim: int) -> int:
    """Return how many of d dimensions are rotated: half of them, but at least 32, or all d if there are fewer."""
    return min(head_dim, max(head_dim // 2, LEAST_ROTATED))
