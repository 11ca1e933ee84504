"""The linear connector with places told finely. Shape letters: N tokens, H hidden dimensions."""

from __future__ import annotations

from torch import Tensor

from soundomni.experts.connectors.linear import LinearConnector
from soundomni.experts.sinusoids import fourier_places


class FourierConnector(LinearConnector):
    """`[N, token_dim]` → `[N, H]` and back by one linear layer each, as `linear`; places are Fourier features of the frame index.

    For tokens whose values turn fast with the frame, such as MDCT coefficients of a steady tone: their course is then a linear function of
    the place, which the slow sinusoids of `linear` do not give. Places repeat after H frames, so longer clips are refused.

    Arguments are those of `linear`.
    """

    @staticmethod
    def places(frames: Tensor, dim: int) -> Tensor:
        """See `fourier_places`."""
        return fourier_places(frames, dim)

    @property
    def max_frames(self) -> int:
        """H."""
        return self.hidden_dim
