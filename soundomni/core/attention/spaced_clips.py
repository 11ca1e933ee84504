"""The clips of a stream with room between them, so that a convolution over the whole stream sees no other clip.

Shape letters: N_e stored tokens of a stream, M of them in clips, L rows with the room, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.places import Rows
from soundomni.core.attention.stored_order import APART
from soundomni.core.upload import upload


@dataclass(frozen=True)
class SpacedClips:
    """Where the tokens of a stream lie if `gap` rows of zeros precede each clip and follow the last one.

    Args:
        rows: the M tokens that belong to clips, of the N_e stored ones.
        places: int64 `[M]`, their places among the L rows.
        length: L.
        gap: rows of zeros between two clips.
    """

    rows: Rows
    places: Tensor
    length: int
    gap: int

    def spread(self, stored: Tensor) -> Tensor:
        """Map tokens `[N_e, C]` to `[L, C]`; the room is zero, and tokens outside clips are left out."""
        return stored.new_zeros(self.length, stored.shape[1]).index_copy_(0, self.places, self.rows.of(stored))

    def gather(self, spread: Tensor) -> Tensor:
        """Map `[L - 2 gap, C]`, from a convolution that reaches `gap` rows to both sides, to the tokens of clips, `[M, C]`."""
        return spread.index_select(0, self.places - self.gap)

    def put(self, stored: Tensor, values: Tensor) -> Tensor:
        """Return tokens `[N_e, C]` with the values `[M, C]` in those of clips."""
        return self.rows.put(stored, values)


def space_clips(clips: np.ndarray, gap: int, device: torch.device) -> SpacedClips | None:
    """Space the clips of one stream, given the clip of each stored token, `[N_e]`, or APART; None if there are no clips."""
    rows = np.flatnonzero(clips != APART)
    if not len(rows):
        return None
    before = np.cumsum(np.diff(clips[rows], prepend=APART) != 0)
    places = np.arange(len(rows)) + gap * before
    return SpacedClips(Rows(rows, device), upload(places, device), int(places[-1]) + 1 + gap, gap)
