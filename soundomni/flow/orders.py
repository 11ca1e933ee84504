"""Orders in which the codes of a clip are made, one token after the other.

| order  | a token holds                     | tokens of T frames of K levels |
|--------|-----------------------------------|--------------------------------|
| flat   | one code, frame by frame          | K·T + 1                        |
| levels | one code, level by level          | K·T + 1                        |
| delay  | K codes, level k of k frames ago  | T + max(1, K − 1)              |
| frames | the K codes of a frame            | T + 1                          |

`flat` and `levels` are those of AudioLM (Borsos et al. 2022, section III) within and across its stages, `delay` that of MusicGen (Copet
et al. 2023, section 2.1). A clip ends with an id of level 0 where its next frame would begin. In `levels` and `delay`, the rest of
the other levels follows.

A model that makes the levels from `first` on is shown those below, in the same order, before the first token that it makes. They say how
long the clip is, so it has no id that ends it.

Shape letters: B clips, K levels, T frames, N tokens.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor

from soundomni.core.representation import EMPTY, length_mask

Order = Literal["flat", "levels", "delay", "frames"]
Count = TypeVar("Count", int, Tensor)


def num_tokens(order: Order, num_levels: int, frames: int, *, first: int = 0) -> int:
    """Return how many tokens a clip has, its end and the levels below `first` included.

    >>> [num_tokens(order, 4, 10) for order in ("flat", "levels", "delay", "frames")]
    [41, 41, 13, 11]
    >>> [num_tokens(order, 4, 10, first=1) for order in ("flat", "levels", "delay", "frames")]
    [40, 40, 22, 20]
    """
    if first:
        return _width(order, first, frames) + _width(order, num_levels - first, frames)
    if order in ("flat", "levels"):
        return num_levels * frames + 1
    return frames + (max(1, num_levels - 1) if order == "delay" else 1)


def frames_of(order: Order, num_levels: int, tokens: Tensor) -> Tensor:
    """Return the frames of clips of so many tokens `[B]`, of which some levels are given."""
    if order in ("flat", "levels"):
        return tokens // num_levels
    return (tokens - (num_levels - 2 if order == "delay" else 0)) // 2


def _width(order: Order, num_levels: int, frames: Count) -> Count:
    """Return the tokens of the codes of a clip, without its end."""
    if order in ("flat", "levels"):
        return frames * num_levels
    return frames + num_levels - 1 if order == "delay" else frames


def end_token(order: Order, num_levels: int, frames: Count) -> Count:
    """Return the token that ends a clip of so many frames."""
    return frames * num_levels if order == "flat" else frames


def frames_before(order: Order, num_levels: int, token: Count) -> Count:
    """Return the frames of a clip that ends at this token."""
    return token // num_levels if order == "flat" else token


def arrange(codes: Tensor, lengths: Tensor, order: Order, *, end: int, width: int, first: int = 0) -> Tensor:
    """Return codes `[B, K, T]` of clips of `lengths` `[B]` frames as tokens `[B, K, width]`.

    Cells without a code are EMPTY, and so are tokens beyond a clip. `end` is the id that ends a clip, unless the levels below `first` come
    first. `width` is at least the tokens of the longest clip.
    """
    clips, levels, frames = codes.shape
    tokens = codes.new_full((clips, levels, width + 1), EMPTY)
    valid = length_mask(lengths, frames)[:, None]
    index = torch.where(valid, _places(order, levels, frames, lengths, first), width).expand(codes.shape)  # those beyond a clip are cut off
    tokens.scatter_(2, index, codes)
    if not first:
        tokens[:, 0].scatter_(1, end_token(order, levels, lengths)[:, None], end)
    tokens[..., width] = EMPTY
    return tokens[..., :width]


def restore(tokens: Tensor, order: Order, *, end: int) -> tuple[Tensor, Tensor]:
    """Return the codes `[B, K, T]` that tokens `[B, K, N]` hold, 0 beyond a clip, and the frames of the clips `[B]`.

    Raise ValueError for a clip without an end.
    """
    ended = tokens[:, 0] == end
    if not bool(ended.any(1).all()):
        raise ValueError(f"a clip does not end: no token of its level 0 is {end}")
    lengths = frames_before(order, tokens.shape[1], ended.int().argmax(1))
    return codes_of(tokens, order, lengths), lengths


def codes_of(tokens: Tensor, order: Order, lengths: Tensor, *, first: int = 0) -> Tensor:
    """Return the codes `[B, K, T]` that tokens `[B, K, N]` of clips of `lengths` `[B]` frames hold, 0 beyond a clip."""
    levels, frames = tokens.shape[1], int(lengths.max()) if len(lengths) else 0
    valid = length_mask(lengths, frames)[:, None]
    index = torch.where(valid, _places(order, levels, frames, lengths, first), 0).expand(-1, levels, -1)
    return tokens.gather(2, index).masked_fill(~valid, 0)


def _places(order: Order, num_levels: int, frames: int, lengths: Tensor, first: int) -> Tensor:
    """Return the token of each code: `[B, K, T]`."""
    if not first:
        return _in_order(order, num_levels, frames, lengths, ends=True)
    given, made = (_in_order(order, count, frames, lengths, ends=False) for count in (first, num_levels - first))
    return torch.cat([given, made + _width(order, first, lengths)[:, None, None]], dim=1)


def _in_order(order: Order, num_levels: int, frames: int, lengths: Tensor, *, ends: bool) -> Tensor:
    """Return the token of each code, counted from the first code: `[B, K, T]`."""
    level = torch.arange(num_levels, device=lengths.device)[:, None]
    frame = torch.arange(frames, device=lengths.device)
    clip = lengths[:, None, None]
    if order == "flat":
        return (frame * num_levels + level).expand(len(lengths), -1, -1)
    if order == "levels":
        return frame + level * clip + (level > 0).long() * int(ends)  # level 0 then has one more token, the end
    if order == "delay":
        return (frame + level).expand(len(lengths), -1, -1)
    return frame.expand(len(lengths), num_levels, -1)
