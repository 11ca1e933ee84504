"""Frames that overlap by half, and their sum.

Shape letters: B clips, C channels, S samples, T frames, M samples from frame to frame.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch.nn import functional

from soundomni.vae.padding import pad_to_frames, zero_beyond


def lapped(samples: Tensor, hop: int, num_frames: int) -> Tensor:
    """Map `[B, C, S]` to frames `[B, C, T, 2M]` with M = `hop`: frame t spans (t - 1)·M to (t + 1)·M, zeros beyond the
    samples."""
    padded = functional.pad(pad_to_frames(samples, hop, num_frames), (hop, 0))
    return padded.unfold(-1, 2 * hop, hop)


def overlap_add(frames: Tensor, num_frames: Tensor) -> Tensor:
    """Map frames `[B, C, T, 2M]`, of clips of `num_frames` `[B]`, to their sum `[B, C, (T - 1)·M]`, zero beyond each
    clip's frames."""
    first, second = frames.chunk(2, dim=-1)
    waveform = rearrange(first[:, :, 1:] + second[:, :, :-1], "b c t m -> b c (t m)")
    return zero_beyond(waveform, (num_frames - 1).clamp_min(0) * first.shape[-1])
