"""Shared parts of connectors that map each token on its own: a way in, time and place, and a way back.

Shape letters: N tokens, H hidden dimensions.
"""

from __future__ import annotations

from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Connector
from soundomni.core.representation import TokenSpec
from soundomni.experts.sinusoids import TimeAndPlace, place_embedding


class ProjectionConnector(Connector):
    """Maps tokens in by one network and back by another, each token on its own.

    Generated tokens also carry time and place. A subclass builds the two networks; the last layer of `outward` starts
    at zero.

    Args:
        inward: `[N, D]` → `[N, H]`.
        outward: `[N, H]` → `[N, P]`; None if nothing is generated.
        hidden_dim: H.
        time_scale: factor of timesteps before their sinusoids.
    """

    def __init__(self, *, inward: nn.Module, outward: nn.Module | None, hidden_dim: int, time_scale: float) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.inward = inward
        self.outward = outward
        self.time_and_place = None if outward is None else TimeAndPlace(hidden_dim=hidden_dim, time_scale=time_scale, places=self.places)

    @staticmethod
    def places(frames: Tensor, dim: int) -> Tensor:
        """Embed frame indices `[N]`: float32 `[N, dim]`."""
        return place_embedding(frames, dim)

    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Map `[N, D]` to `[N, H]`.

        A connector that generates needs `timesteps` `[N]` in [0, 1] and `frames` `[N]`.

        Raise ValueError if they are missing, or given to a connector that does not generate.
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
        """Map `[N, H]` to `[N, P]`; zero at the start of training.

        Raise TypeError if the connector does not generate.
        """
        if self.outward is None:
            raise TypeError("this connector was built with generates=False and cannot map tokens back")
        out: Tensor = self.outward(hidden)
        return out


def numbers_in_and_out(name: str, tokens: TokenSpec) -> tuple[int, int]:
    """Return D and P of tokens that are numbers. Raise SpecError, which names the connector, for codes."""
    if not tokens.is_numbers:
        raise SpecError(f"connector '{name}' maps numbers, but these tokens are codes. Use the connector codes")
    return tokens.num_inputs, tokens.num_outputs


def initialize(layer: nn.Linear, *, std: float) -> nn.Linear:
    """Draw the weight from N(0, std²), set the bias to zero and return the layer; std 0 makes a layer of zeros."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
