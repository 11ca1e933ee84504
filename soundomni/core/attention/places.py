"""Places of tokens in stored tensors.

Shape letters: N tokens, P stored tokens (padding included), R chosen rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.stored_order import PADDING, StoredOrder
from soundomni.core.upload import upload


def token_places(stored: StoredOrder) -> np.ndarray:
    """Return int64 `[N]`: the stored place of each token."""
    filled = np.flatnonzero(stored.order != PADDING)
    places = np.empty(len(filled), dtype=np.int64)
    places[stored.order[filled]] = filled
    return places


class Rows:
    """R rows of stored tensors `[P, ...]`: a slice if they are consecutive, so that nothing is copied; otherwise an
    index."""

    def __init__(self, places: np.ndarray, device: torch.device) -> None:
        self._first, self._count = int(places[0]) if len(places) else 0, len(places)
        self._index = None if (np.diff(places) == 1).all() else upload(places, device)

    def of(self, stored: Tensor) -> Tensor:
        """Return the rows `[R, ...]`, a view if possible."""
        if self._index is None and self._count == stored.shape[0]:
            return stored
        if self._index is None:
            return stored.narrow(0, self._first, self._count)
        return stored.index_select(0, self._index)

    def put(self, stored: Tensor, values: Tensor) -> Tensor:
        """Return the tensor with values `[R, ...]` in these rows, and its own in the others."""
        if self._index is not None:
            return stored.index_copy(0, self._index, values)
        if self._count == len(stored):
            return values
        return torch.cat([stored[: self._first], values, stored[self._first + self._count :]])

    def add_to(self, stored: Tensor, values: Tensor) -> None:
        """Add values `[R, ...]` to the rows; a row that occurs twice receives both."""
        if self._index is None:
            stored.narrow(0, self._first, self._count).add_(values)
        else:
            stored.index_add_(0, self._index, values)

    def write_to(self, stored: Tensor, values: Tensor) -> None:
        """Overwrite the rows with values `[R, ...]`; of a row that occurs twice, one value stays."""
        if self._index is None:
            stored.narrow(0, self._first, self._count).copy_(values)
        else:
            stored.index_copy_(0, self._index, values)
