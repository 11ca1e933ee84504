"""Depthwise convolution over the clips of a packed stream.

Shape letters: N_e stored tokens of a stream, L rows with room between clips, M rows that come out, C channels, K taps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from soundomni.core.attention.spaced_clips import SpacedClips

MOST_TAPS = 9
"""Kernels up to this size are faster as shifted products; longer ones as torch's own convolution (measured on a CPU)."""


class DepthwiseConv(nn.Module):
    """Convolves each channel over the frames of each clip, with zeros beyond its ends: `[N_e, C]` → `[N_e, C]`.

    No frame sees another clip, or padding. A token outside clips, such as one of text, is only seen by itself: it gets the middle
    tap.

    Args:
        channels: C.
        kernel_size: K, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @property
    def reach(self) -> int:
        """Frames that are seen to either side."""
        return self.weight.shape[-1] // 2

    def reset_parameters(self) -> None:
        """Draw the taps uniformly within 1 / sqrt(K), as torch does; the bias is zero."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, clips: SpacedClips | None) -> Tensor:
        """Map `[N_e, C]` to `[N_e, C]`.

        Args:
            hidden: stored tokens of a stream.
            clips: its clips, spaced by `reach`; None if it has none.
        """
        weight, bias = self.weight.to(hidden.dtype), self.bias.to(hidden.dtype)
        apart = torch.addcmul(bias, hidden, weight[:, 0, self.reach])
        if clips is None:
            return apart
        spread = clips.spread(hidden)
        if weight.shape[-1] > MOST_TAPS:
            mixed = F.conv1d(spread.T[None], weight, bias, groups=len(bias))[0].T
        else:
            mixed = _Taps.apply(spread, weight[:, 0].T.contiguous(), bias)  # type: ignore[no-untyped-call]
        return clips.put(apart, clips.gather(mixed))


class _Taps(torch.autograd.Function):
    """Adds up K shifted products: `[L, C]`, taps `[K, C]` and a bias `[C]` → `[L - K + 1, C]`.

    Only the input is kept for the backward pass; autograd would keep it once per tap, and add up as many gradients of its size.
    """

    @staticmethod
    def forward(ctx: Any, spread: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(spread, taps)
        rows = len(spread) - len(taps) + 1
        out = torch.addcmul(bias, spread[:rows], taps[0])
        for shift, tap in enumerate(taps.unbind()[1:], start=1):
            out.addcmul_(spread[shift : shift + rows], tap)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spread, taps = ctx.saved_tensors
        rows = len(grad_out)
        grad_spread, grad_taps = torch.zeros_like(spread), []
        for shift, tap in enumerate(taps.unbind()):
            seen = slice(shift, shift + rows)
            grad_spread[seen].addcmul_(grad_out, tap)
            grad_taps.append((spread[seen] * grad_out).sum(0))
        return grad_spread, torch.stack(grad_taps), grad_out.sum(0)
