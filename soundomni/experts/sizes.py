"""Checks of sizes given by a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.limits import check_count

MOST_LAYERS = 256
MOST_DIM = 65_536
"""Most dimensions of a diffusion transformer; that of Stable Audio Open has 1536, in 24 layers."""
MOST_SIZE = 2**24
"""Largest size of any network; torch can count the numbers of a matrix whose sides are a few times as long."""


def require_positive(plugin: str, sizes: Mapping[str, int | None]) -> None:
    """Raise SpecError if a size is below 1 or above MOST_SIZE, for layers MOST_LAYERS; None means a default."""
    for name, size in sizes.items():
        if size is not None:
            check_count(f"{plugin}: {name}", size, most=MOST_LAYERS if name == "num_layers" else MOST_SIZE)


def check_heads(plugin: str, *, hidden_dim: int, num_heads: int, head_dim: int | None) -> int:
    """Return the dimensions of a head, hidden_dim / num_heads for None. Raise SpecError unless they are whole and even."""
    if head_dim is None and hidden_dim % num_heads:
        raise SpecError(f"{plugin}: hidden_dim is {hidden_dim}; expected a multiple of num_heads, which is {num_heads}")
    width = head_dim if head_dim is not None else hidden_dim // num_heads
    if width % 2:
        raise SpecError(f"{plugin}: head_dim is {width}; expected an even number, which rotary positions need")
    return width


def check_stream(stream: str, streams: Sequence[str]) -> None:
    """Raise SpecError if there is no expert stream of this name."""
    if stream not in streams:
        known = ", ".join(f"'{name}'" for name in streams)
        raise SpecError(f"unknown expert stream '{stream}'; expected one of {known}.{did_you_mean(stream, streams)}")
