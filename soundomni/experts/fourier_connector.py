"""The linear connector with places told finely. Shape letters: N tokens, H hidden dimensions."""

from __future__ import annotations

from torch import nn

from soundomni.experts.projection_connector import ProjectionConnector, initialise
from soundomni.experts.sinusoids import fourier_places


class FourierConnector(ProjectionConnector):
    """`[N, token_dim]` → `[N, H]` and back by one linear layer each, as `linear`; places are Fourier features of the frame index.

    For tokens whose values turn fast with the frame, such as MDCT coefficients of a steady tone: their course is then a linear function of
    the place, which the slow sinusoids of `linear` do not give. Places repeat after H frames, so longer clips are refused.

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
            places=fourier_places,
        )
        self.hidden_dim = hidden_dim

    @property
    def max_frames(self) -> int:
        """H."""
        return self.hidden_dim
