"""Preallocated keys and values of earlier calls: `[context | slot]` per row.

Shape letters: B rows, L capacity per row, P stored tokens of the call, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.places import Rows
from soundomni.core.attention.stored_order import PADDING


class KVCache:
    """Fixed buffers `[B * L, h_kv, d]` for each layer, with the number of filled places per row.

    A call first says where its tokens go (`begin`), then every layer calls `update`. Tokens become part of the context
    only when `keep` is called: sampling rewrites the same slot at every step, while text decoding keeps each token.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        capacity: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (num_layers, num_rows * capacity, num_kv_heads, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.num_rows = num_rows
        self.capacity = capacity
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        self._places: Rows | None = None
        self._tokens: Rows | None = None
        self._whole = False

    def begin(self, order: np.ndarray, rows: np.ndarray, *, whole: bool) -> None:
        """Set where the tokens of the coming call go: after the contents of their row, in token order.

        Args:
            order: int64 `[P]`, the token at each stored place of the call, PADDING if there is none.
            rows: int64 `[N]`, the row of each token; tokens of a row are consecutive.
            whole: whether `update` returns the whole buffers (later calls) or only the call's own keys and values (the
                first call, whose tokens see only each other).
        """
        counts = np.bincount(rows, minlength=self.num_rows)
        if (self.lengths + counts > self.capacity).any():
            raise ValueError(f"the cache holds {self.capacity} tokens per row; {int((self.lengths + counts).max())} were to be stored")
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        places = rows * self.capacity + self.lengths[rows] + np.arange(len(rows)) - first[rows]
        stored = np.flatnonzero(order != PADDING)
        device = self.keys.device
        self._tokens, self._places = Rows(stored, device), Rows(places[order[stored]], device)
        self._whole = whole

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the call's key and value `[P, h_kv, d]`, and return what its queries may look at."""
        assert self._places is not None and self._tokens is not None, "begin() comes first"
        keys, values = self.keys[layer], self.values[layer]
        self._places.write_to(keys, self._tokens.of(key).to(keys.dtype))
        self._places.write_to(values, self._tokens.of(value).to(values.dtype))
        if self._whole:
            return keys, values
        return key, value

    def keep(self, counts: Sequence[int] | np.ndarray) -> None:
        """Make the first `counts[b]` tokens of the last call part of row b's context."""
        self.lengths += np.asarray(counts, dtype=np.int64)
