"""What critics return: the sum over clips, and the number of clips.

Shape letters: B clips.
"""

from __future__ import annotations

import torch
from torch import Tensor


def share(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and count of the losses `[B]` of clips."""
    return values.sum(), torch.tensor(float(len(values)), device=values.device)


def nothing(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum 0 and the count 0 of clips that are too short; the sum has gradients for `values`, which are
    zero."""
    return 0.0 * values.sum(), torch.zeros((), device=values.device)
