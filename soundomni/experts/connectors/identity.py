"""A connector that leaves features as they are.

Shape letters: N tokens, F feature dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Connector
from soundomni.core.representation import TokenSpec


class IdentityConnector(Connector):
    """Passes tokens on that already have as many dimensions as the backbone takes. It cannot map tokens back.

    Args:
        tokens: numbers per token, F (runtime).
        hidden_dim: dimensions that the backbone takes, F too (runtime).
        generates: whether tokens are generated, which this connector does not do (runtime).
    """

    def __init__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool) -> None:
        super().__init__()
        if generates:
            raise SpecError("connector 'identity' maps nothing back, so it cannot carry what is made. Use the connector linear")
        if tokens.inputs != hidden_dim:
            given = f"{tokens.inputs} numbers" if tokens.is_numbers else "codes"
            told = f"connector 'identity' passes on tokens of {hidden_dim} numbers, but these have {given}"
            raise SpecError(f"{told}. Use the connector linear")
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # tells device and dtype, as parameters of others do

    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Return `[N, F]` as it is."""
        return tokens

    def leave(self, hidden: Tensor) -> Tensor:
        """Raise TypeError: the connector does not generate."""
        raise TypeError("the connector identity cannot map tokens back")
