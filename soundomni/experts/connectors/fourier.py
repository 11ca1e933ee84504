"""The linear connector with finely resolved places. Shape letters: N tokens, H hidden dimensions."""

from __future__ import annotations

from torch import Tensor

from soundomni.experts.connectors.linear import LinearConnector
from soundomni.experts.sinusoids import fourier_places


class FourierConnector(LinearConnector):
    """Maps `[N, D]` → `[N, H]` and back by one linear layer each, like `linear`; places are Fourier features of
    the frame index.

    Use it for tokens whose values oscillate fast from frame to frame, such as MDCT coefficients of a steady tone: they
    are then a linear function of the place, which the slow sinusoids of `linear` cannot give. Places repeat after H
    frames, so longer clips are refused.

    It has the arguments of `linear`.
    """

    @staticmethod
    def places(frames: Tensor, dim: int) -> Tensor:
        """Return `fourier_places` of the frames."""
        return fourier_places(frames, dim)

    @property
    def max_frames(self) -> int:
        """Number of frames with distinct places: H."""
        return self.hidden_dim
