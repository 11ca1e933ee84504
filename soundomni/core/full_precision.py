"""Codecs and spectrograms compute in float32, whatever the model around them computes in.

On CUDA, cuDNN rounds what convolutions multiply to TF32, which has 10 bits of mantissa, unless a program forbids it, and cuBLAS does so
if a program allows it. Autocast would compute in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_EXACT = "ieee"


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute on `device` without autocast and without TF32 inside this context; settings are as before afterwards."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        backends: Any = torch.backends  # its types lack these settings
        kinds = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        before = [kind.fp32_precision for kind in kinds]
        try:
            for kind in kinds:
                kind.fp32_precision = _EXACT
            yield
        finally:
            for kind, precision in zip(kinds, before, strict=True):
                kind.fp32_precision = precision
