"""The diffusion transformer of Stable Audio as a backbone over packed clips (Evans et al. 2024a, section 3.1; Evans et al. 2024b, section
2.2; Peebles and Xie 2023).

Shape letters: M clips, E hidden dimensions, F condition dimensions.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import Router
from soundomni.experts.dit_layer import DiTSizes
from soundomni.experts.dit_network import NUM_TIME_FEATURES, DiTNetwork, TimeNetwork, check_sizes


class LearnedTimes(TimeNetwork):
    """Maps timesteps `[M]` in [0, 1] to `[M, E]`: cosines and sines of learned frequencies, then Linear–SiLU–Linear.

    Features are computed in at least float32.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__(hidden_dim)
        self.frequencies = nn.Parameter(torch.empty(NUM_TIME_FEATURES // 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the frequencies from N(0, 1)."""
        nn.init.normal_(self.frequencies)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Map `[M]` to `[M, E]`."""
        precise = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = 2 * math.pi * timesteps.to(precise)[:, None] * self.frequencies.to(precise)
        return self.embed(torch.cat([angles.cos(), angles.sin()], dim=-1))


class DiTBackbone(DiTNetwork):
    """Diffusion transformer of Stable Audio Open, for clips with different lengths and prompts in one batch.

    It only has tokens of clips that are made: no text, no context. Texts, numbers and clips are conditions, whose
    encoders enter as "cross", "global" or both. Timesteps and global conditions reach the network as one token in front
    of each clip, or scale, shift and gate every layer. The router has to be `dense`.

    Stable Audio Open has hidden_dim 1536, 24 layers, 24 heads and condition_dim 768; Stable Audio Open Small has hidden_dim 1024, 16
    layers, 8 heads, condition_dim 768, project_conditions and head_norm "layer".

    Args:
        vocab_size: not used, as there is no text (runtime).
        router: builds the feed-forward networks (runtime).
        hidden_dim: hidden size E.
        num_layers: number of layers.
        num_heads: number of heads; those of a size below 64 rotate all of their dimensions but at most 32, others half of them.
        condition_dim: dimensions F of condition tokens; None means E.
        project_conditions: whether condition tokens are mapped to E dimensions instead of F before layers see them.
        conditioning: "prepend" for a token in front of each clip, or "adaln" for modulated layers.
        head_norm: LayerNorm on the queries and keys of each head ("layer"), or none.
        num_memory: learned tokens in front of each clip, in addition to that of "prepend".
        differential: whether attention is the difference of two attentions with the same values.
    """

    plugin: ClassVar[str] = "dit"

    def __init__(
        self,
        *,
        vocab_size: int,
        router: Router,
        hidden_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        condition_dim: int | None = None,
        project_conditions: bool = False,
        conditioning: Literal["prepend", "adaln"] = "prepend",
        head_norm: Literal["none", "layer"] = "none",
        num_memory: int = 0,
        differential: bool = False,
    ) -> None:
        given: dict[str, int | None] = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": num_heads}
        head_dim = check_sizes(self.plugin, router, given | {"condition_dim": condition_dim}, num_memory=num_memory)
        sizes = DiTSizes(
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            head_dim=head_dim,
            norm="layer",
            head_norm=head_norm,
            differential=differential,
            modulates=conditioning == "adaln",
        )
        super().__init__(
            vocab_size=vocab_size,
            router=router,
            sizes=sizes,
            num_layers=num_layers,
            time=LearnedTimes(hidden_dim),
            condition_dim=condition_dim,
            project_conditions=project_conditions,
            num_memory=num_memory,
        )
