"""The connector of BAGEL and of the original SoundOmni: one linear layer each way. Shape letters: N tokens, H hidden dimensions."""

from __future__ import annotations

from torch import nn

from soundomni.experts.connectors.projection import ProjectionConnector, initialise


class LinearConnector(ProjectionConnector):
    """`[N, token_dim]` → `[N, H]` and back by one linear layer each; the way out starts at zero weight and bias.

    Args:
        token_dim: numbers per token (runtime).
        hidden_dim: H (runtime).
        generates: whether tokens are generated: they then carry time and place, and there is a way out (runtime).
        time_scale: what timesteps in [0, 1] are multiplied by before their sinusoids; 1 as in the original.
    """

    def __init__(self, *, token_dim: int, hidden_dim: int, generates: bool, time_scale: float = 1.0) -> None:
        super().__init__(
            inward=initialise(nn.Linear(token_dim, hidden_dim), std=0.02),
            outward=initialise(nn.Linear(hidden_dim, token_dim), std=0.0) if generates else None,
            hidden_dim=hidden_dim,
            time_scale=time_scale,
        )
