"""The diffusion transformer of Stable Audio 3 as a backbone over packed clips.

It is the transformer of `dit`, with RMSNorm everywhere, timesteps as fixed features, and known frames shown to every
layer (according to the published code of stable-audio-3, 2026).

Shape letters: M clips, E hidden dimensions, F condition dimensions.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor

from soundomni.core.interfaces import Router
from soundomni.experts.dit_layer import DiTLayer, DiTSizes
from soundomni.experts.dit_network import NUM_TIME_FEATURES, DiTNetwork, TimeNetwork, check_sizes
from soundomni.experts.number import fixed_frequencies

LOWEST_LOG_SNR, HIGHEST_LOG_SNR = -12.0, 5.0
MARGIN = 1e-7
"""Timesteps closer to 0 or 1 than this get the log-SNR at this distance."""


class FixedTimes(TimeNetwork):
    """Maps timesteps `[M]` in [0, 1] to `[M, E]`: cosines and sines of fixed frequencies, then Linear–SiLU–Linear.

    The frequencies are those of the encoder `number` with fixed features. They are computed in float32, as published.

    Args:
        hidden_dim: E.
        log_snr: whether to first map a timestep t to its log-SNR log((1 − t) / t), limited to −12 … 5 and scaled to 1 …
            0.
    """

    def __init__(self, hidden_dim: int, *, log_snr: bool) -> None:
        super().__init__(hidden_dim)
        self.log_snr = log_snr

    def forward(self, timesteps: Tensor) -> Tensor:
        """Map `[M]` to `[M, E]`."""
        times = timesteps.float()
        if self.log_snr:
            inside = times.clamp(MARGIN, 1 - MARGIN)
            ratio = torch.log((1 - inside) / inside).clamp(LOWEST_LOG_SNR, HIGHEST_LOG_SNR)
            times = (HIGHEST_LOG_SNR - ratio) / (HIGHEST_LOG_SNR - LOWEST_LOG_SNR)
        # the order of the products matters, see the encoder `number`
        angles = times[:, None] * fixed_frequencies(NUM_TIME_FEATURES // 2, times.device) * 2 * math.pi
        return self.embed(torch.cat([angles.cos(), angles.sin()], dim=-1))


class DiT3Backbone(DiTNetwork):
    """Diffusion transformer of Stable Audio 3, for clips with different lengths and prompts in one batch.

    It differs from `dit` in three ways. Its norms are RMSNorm, in front of every branch and on the queries and keys of
    each head. Its timestep features are fixed. And if the objective shows known frames, every layer has a network of
    its own that adds them, instead of the input. Timesteps and global conditions scale, shift and gate every layer. The
    router has to be `dense`.

    Stable Audio 3 medium has hidden_dim 1536, 24 layers, 24 heads, condition_dim 768 and differential attention; small has hidden_dim
    1024, 20 layers, 16 heads and condition_dim 768.

    Args:
        vocab_size: not used, as there is no text (runtime).
        router: builds the feed-forward networks (runtime).
        hidden_dim: hidden size E.
        num_layers: number of layers.
        num_heads: number of heads; heads of at least 64 dimensions rotate half of them, smaller heads up to 32.
        condition_dim: dimensions F of condition tokens; None means E.
        project_conditions: whether condition tokens are mapped to E dimensions instead of F before the layers see them.
        num_memory: learned tokens in front of each clip.
        differential: whether attention is the difference of two attentions with the same values.
        log_snr_times: whether the network sees the log-SNR of a timestep instead of the timestep.
    """

    plugin: ClassVar[str] = "dit-3"
    takes_hints: ClassVar[bool] = True

    def __init__(
        self,
        *,
        vocab_size: int,
        router: Router,
        hidden_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        condition_dim: int | None = None,
        project_conditions: bool = True,
        num_memory: int = 64,
        differential: bool = False,
        log_snr_times: bool = False,
    ) -> None:
        given: dict[str, int | None] = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": num_heads}
        head_dim = check_sizes(self.plugin, router, given | {"condition_dim": condition_dim}, num_memory=num_memory)
        sizes = DiTSizes(
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            head_dim=head_dim,
            norm="rms",
            head_norm="rms",
            differential=differential,
            modulates=True,
        )
        super().__init__(
            vocab_size=vocab_size,
            router=router,
            sizes=sizes,
            num_layers=num_layers,
            time=FixedTimes(hidden_dim, log_snr=log_snr_times),
            condition_dim=condition_dim,
            project_conditions=project_conditions,
            num_memory=num_memory,
        )

    def take_hints(self, num_hints: int) -> None:
        """Add a network for the hints of frames to every layer; its output starts at zero."""
        for layer in self.blocks:
            cast(DiTLayer, layer).take_hints(num_hints)
            cast(DiTLayer, layer).begin_at_zero()
