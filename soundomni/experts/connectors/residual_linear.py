"""The connector of Stable Audio's diffusion transformer.

Shape letters: N tokens, D numbers that enter, P numbers that leave, H hidden dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import Connector
from soundomni.core.representation import TokenSpec
from soundomni.experts.connectors.projection import numbers_in_and_out


class ResidualLinearConnector(Connector):
    """A linear layer each way, without bias, with a residual one of D or P numbers in front of the first and behind the second.

    It tells the backbone neither the timestep nor the place of a token: use it with a backbone that knows both, such as `dit`. Residual
    layers begin at zero, and so does the way back.

    Args:
        tokens: numbers per token, D in and P out (runtime).
        hidden_dim: H (runtime).
        generates: whether tokens are generated: if so, there is a way back (runtime).
    """

    def __init__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool) -> None:
        super().__init__()
        inputs, outputs = numbers_in_and_out("residual-linear", tokens)
        self.before = nn.Linear(inputs, inputs, bias=False)
        self.inward = nn.Linear(inputs, hidden_dim, bias=False)
        self.outward = nn.Linear(hidden_dim, outputs, bias=False) if generates else None
        self.after = nn.Linear(outputs, outputs, bias=False) if generates else None
        for layer in (self.before, self.outward, self.after):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Map `[N, D]` to `[N, H]`."""
        out: Tensor = self.inward(self.before(tokens) + tokens)
        return out

    def leave(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to `[N, P]`; zero at the start of training. Raise TypeError if the connector does not generate."""
        if self.outward is None or self.after is None:
            raise TypeError("this connector was built with generates=False and cannot map tokens back")
        tokens: Tensor = self.outward(hidden)
        return torch.add(self.after(tokens), tokens)
