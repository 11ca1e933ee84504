"""Bounds of the sizes of convolutional codecs: a config of one line can ask for layers that no machine can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from soundomni.core.errors import SpecError, shown
from soundomni.core.limits import check_count

MOST_WIDTH = 65_536
"""Most channels of a layer, and most latent dimensions; Stable Audio's codec has 2048 and 64."""
MOST_STRIDES, LARGEST_STRIDE = 16, 1024
"""Most blocks of an encoder, and how much one of them may shorten a clip."""
MOST_RATIO = 2**24
"""Most samples for each frame."""


def check_strides(strides: Sequence[int], *, name: str = "strides", patch_size: int = 1) -> None:
    """Raise SpecError unless there are 1 to MOST_STRIDES strides from 2 to LARGEST_STRIDE, with a product of at most
    MOST_RATIO.

    Args:
        strides: stride of each block.
        name: their name in errors.
        patch_size: samples of a position before the first stride.
    """
    if not 1 <= len(strides) <= MOST_STRIDES:
        raise SpecError(f"{name} has {len(strides):,} entries; expected 1 to {MOST_STRIDES}")
    if min(strides) < 2 or max(strides) > LARGEST_STRIDE:
        raise SpecError(f"{name} is {shown(list(strides))}; expected strides from 2 to {LARGEST_STRIDE}")
    if patch_size * math.prod(strides) > MOST_RATIO:
        raise SpecError(f"{name} is {shown(list(strides))}; expected strides whose product is at most {MOST_RATIO // patch_size:,}")


def check_widths(base_channels: int, multiples: Sequence[int], *, names: tuple[str, str] = ("base_channels", "channel_multiples")) -> None:
    """Raise SpecError if the channels of a layer, `base_channels` times a multiple, are out of range. `names` are those
    in errors."""
    check_count(names[0], base_channels, most=MOST_WIDTH)
    if not 1 <= len(multiples) <= MOST_STRIDES:
        raise SpecError(f"{names[1]} has {len(multiples):,} entries; expected 1 to {MOST_STRIDES}")
    if min(multiples) < 1:
        raise SpecError(f"{names[1]} is {shown(list(multiples))}; expected at least 1 everywhere")
    if max(multiples) > MOST_WIDTH // base_channels:
        expected = f"at most {MOST_WIDTH // base_channels:,} everywhere, because {names[0]} is {base_channels}"
        raise SpecError(f"{names[1]} is {shown(list(multiples))}; expected {expected}")
