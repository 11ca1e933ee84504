"""The connector of BAGEL and the original SoundOmni: one linear layer each way.

Shape letters: N tokens, H hidden dimensions.
"""

from __future__ import annotations

from torch import nn

from soundomni.core.representation import TokenSpec
from soundomni.experts.connectors.projection import ProjectionConnector, initialize, numbers_in_and_out


class LinearConnector(ProjectionConnector):
    """Maps `[N, D]` → `[N, H]` and back by one linear layer each; the output layer starts with zero weight and
    bias.

    Args:
        tokens: numbers per token, D in and P out (runtime).
        hidden_dim: H (runtime).
        generates: whether tokens are generated: if so, they carry time and place, and there is an output layer
            (runtime).
        time_scale: factor of timesteps in [0, 1] before their sinusoids; 1 as in the original.
    """

    def __init__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool, time_scale: float = 1.0) -> None:
        inputs, outputs = numbers_in_and_out("linear", tokens)
        super().__init__(
            inward=initialize(nn.Linear(inputs, hidden_dim), std=0.02),
            outward=initialize(nn.Linear(hidden_dim, outputs), std=0.0) if generates else None,
            hidden_dim=hidden_dim,
            time_scale=time_scale,
        )
