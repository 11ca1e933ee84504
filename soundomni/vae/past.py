"""What causal layers remember between pieces of a clip.

Shape letters: B clips, C channels of a layer, L positions of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Past:
    """The end of what each layer of a network was given so far."""

    def __init__(self) -> None:
        self._ends: dict[nn.Module, Tensor] = {}

    def before(self, layer: nn.Module, values: Tensor, width: int) -> Tensor:
        """Return the `width` positions before `values` `[B, C, L]` and then the values, `[B, C, width + L]`.

        Positions before the start of the clip are zeros.
        """
        longer = self.known_before(layer, values, width)
        return functional.pad(longer, (width + values.shape[-1] - longer.shape[-1], 0))

    def known_before(self, layer: nn.Module, values: Tensor, width: int) -> Tensor:
        """Return what `before` does, but without positions before the start of the clip."""
        longer = torch.cat([self._ends[layer], values], dim=-1) if layer in self._ends else values
        self._ends[layer] = longer[..., max(0, longer.shape[-1] - width) :]
        return longer
