"""A connector with one hidden layer each way. Shape letters: N tokens, H hidden dimensions."""

from __future__ import annotations

from torch import nn

from soundomni.core.representation import TokenSpec
from soundomni.experts.connectors.projection import ProjectionConnector, initialize, numbers_in_and_out
from soundomni.experts.sizes import require_positive


class MLPConnector(ProjectionConnector):
    """Maps `[N, D]` → `[N, H]` and back by Linear–GELU–Linear each; the last layer of the way back starts at
    zero.

    Hidden tokens leave the backbone normalized, so the way back needs no norm of its own.

    Args:
        tokens: numbers per token, D in and P out (runtime).
        hidden_dim: H (runtime).
        generates: whether tokens are generated: if so, they carry time and place, and there is a way back (runtime).
        multiple: width of the hidden layers, in multiples of H.
        time_scale: factor of timesteps in [0, 1] before their sinusoids; 1 as in the original.
    """

    def __init__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool, multiple: int = 2, time_scale: float = 1.0) -> None:
        require_positive("mlp", {"multiple": multiple})
        inputs, outputs = numbers_in_and_out("mlp", tokens)
        super().__init__(
            inward=_mlp(inputs, multiple * hidden_dim, hidden_dim, last_std=0.02),
            outward=_mlp(hidden_dim, multiple * hidden_dim, outputs, last_std=0.0) if generates else None,
            hidden_dim=hidden_dim,
            time_scale=time_scale,
        )


def _mlp(inputs: int, width: int, outputs: int, *, last_std: float) -> nn.Sequential:
    first, last = nn.Linear(inputs, width), nn.Linear(width, outputs)
    return nn.Sequential(initialize(first, std=0.02), nn.GELU(), initialize(last, std=last_std))
