"""What connectors share that carry each token by itself: a way in, time and place, and a way out.

Shape letters: N tokens, H hidden dimensions.
"""

from __future__ import annotations

from torch import Tensor, nn

from soundomni.core.interfaces import Connector
from soundomni.experts.sinusoids import TimeAndPlace, place_embedding


class ProjectionConnector(Connector):
    """Enters by one network and leaves by another, token by token.

    Tokens that are generated also carry time and place. A subclass builds the two networks; `outward` ends in a layer of zeros.

    Args:
        inward: `[N, token_dim]` → `[N, H]`.
        outward: `[N, H]` → `[N, token_dim]`; None when nothing is generated.
        hidden_dim: H.
        time_scale: what timesteps are multiplied by before their sinusoids.
    """

    def __init__(self, *, inward: nn.Module, outward: nn.Module | None, hidden_dim: int, time_scale: float) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.inward = inward
        self.outward = outward
        self.time_and_place = None if outward is None else TimeAndPlace(hidden_dim=hidden_dim, time_scale=time_scale, places=self.places)

    @staticmethod
    def places(frames: Tensor, dim: int) -> Tensor:
        """Embeds frame indices `[N]`: float32 `[N, dim]`."""
        return place_embedding(frames, dim)

    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """`[N, token_dim]` → `[N, H]`. A connector that generates needs `timesteps` `[N]` in [0, 1] and `frames` `[N]`.

        Raises ValueError when they are missing, or given to a connector that does not generate.
        """
        hidden: Tensor = self.inward(tokens)
        if self.time_and_place is None:
            if timesteps is not None or frames is not None:
                raise ValueError("this connector was built with generates=False and takes neither timesteps nor frames")
            return hidden
        if timesteps is None or frames is None:
            raise ValueError("this connector was built with generates=True and needs both timesteps and frames")
        out: Tensor = hidden + self.time_and_place(timesteps, frames)
        return out

    def leave(self, hidden: Tensor) -> Tensor:
        """`[N, H]` → `[N, token_dim]`; zero at the start of training. Raises TypeError when the connector does not generate."""
        if self.outward is None:
            raise TypeError("this connector was built with generates=False and has no way out")
        out: Tensor = self.outward(hidden)
        return out


def initialise(layer: nn.Linear, *, std: float) -> nn.Linear:
    """Draws the weight from N(0, std²), sets the bias to zero and returns the layer; std 0 makes a layer of zeros."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
