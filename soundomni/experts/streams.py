"""Joining the tokens of expert streams, and taking them apart. Shape letters: N_e tokens of stream e, P tokens of all streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the tokens of streams `[N_e, ...]` one after the other, `[P, ...]`; those of one stream are not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def apart(tokens: Tensor, streams: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tokens `[P, ...]` as those of each stream, `[N_e, ...]`."""
    return [tokens] if len(streams) == 1 else torch.split(tokens, [len(stream) for stream in streams])
