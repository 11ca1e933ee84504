"""Numbers that the host knows, on the device of a model, without making the host wait for the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """Return an array or a tensor of the host on `device`; a tensor that is there already comes back as it is.

    A copy to a GPU from ordinary memory ends with the host waiting until the GPU has done all that it was asked before. So the copy is made
    from pinned memory, which torch keeps for the next one.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
