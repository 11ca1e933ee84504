"""Runs of equal codes: a code and how many frames it lasts, as one id.

A run of code c and d frames is the id c·M + d − 1, where M is the longest run. Longer runs are divided: all parts but the last are M
frames long. So every sequence of codes has exactly one sequence of runs, and the runs of its beginning follow from its beginning,
except for how long the last one lasts.

Shape letters: B clips, T frames, N runs, M frames of the longest run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.representation import EMPTY, length_mask


def collapse(codes: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return the runs `[B, T]` of codes `[B, T]` of clips of `lengths` `[B]` frames, EMPTY beyond a clip's, and their number `[B]`.

    >>> runs, counts = collapse(torch.tensor([[2, 2, 2, 2, 0, 1, 1]]), torch.tensor([7]), 3)
    >>> runs.tolist(), counts.tolist()  # 2 for 3 frames, 2 for 1, 0 for 1, 1 for 2
    ([[8, 6, 0, 4, -2, -2, -2]], [4])
    """
    valid = length_mask(lengths, codes.shape[1])
    frame = torch.arange(codes.shape[1], device=codes.device)
    changes = torch.ones_like(valid)
    changes[:, 1:] = codes[:, 1:] != codes[:, :-1]
    since = frame - (frame * changes).cummax(1).values
    begins = valid & (since % longest == 0)
    index = (begins.cumsum(1) - 1).clamp(min=0)
    # The last frame of a run has its highest id.
    runs = torch.full_like(codes, EMPTY).scatter_reduce(1, index, (codes * longest + since % longest).where(valid, EMPTY), "amax")
    return runs, begins.sum(1)


def expand(runs: Tensor, counts: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return the codes `[B, T]` of the first `counts` `[B]` runs of `[B, N]`, 0 beyond a clip, and the frames of the clips `[B]`."""
    last = frames_before(runs, counts, longest)
    ends = torch.where(length_mask(counts, runs.shape[1]), runs % longest + 1, 0).cumsum(1)
    frame = torch.arange(int(last.max()) if len(last) else 0, device=runs.device).expand(len(runs), -1)
    index = torch.searchsorted(ends, frame.contiguous(), right=True).clamp(max=max(runs.shape[1] - 1, 0))
    codes = runs.gather(1, index) // longest
    return codes.masked_fill(~length_mask(last, frame.shape[1]), 0), last


def frames_before(runs: Tensor, counts: Tensor, longest: int) -> Tensor:
    """Return how many frames the first `counts` `[B]` runs of `[B, N]` have: `[B]`."""
    return torch.where(length_mask(counts, runs.shape[1]), runs % longest + 1, 0).sum(1)
