"""Padding of clips of different lengths: to whole frames, and with zeros beyond each clip.

Shape letters: B clips, C channels (of audio or of a layer), N signals, L positions (samples or frames), S samples, T frames, W samples of
a window, M samples per frame.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from soundomni.core.representation import length_mask


def zero_beyond(values: Tensor, lengths: Tensor) -> Tensor:
    """Map `[B, C, L]` to the same values, but zero beyond the `lengths` `[B]`."""
    within = length_mask(lengths.to(values.device), values.shape[-1])
    return values.masked_fill(~within[:, None], 0.0)


def pad_to_frames(samples: Tensor, hop: int, num_frames: int) -> Tensor:
    """Return `[B, C, S]` with zeros at its end, or cut, so that it has `num_frames` frames of M = `hop` samples."""
    return functional.pad(samples, (0, num_frames * hop - samples.shape[-1]))


def framed(samples: Tensor, window: int, hop: int, num_frames: int, *, before: int) -> Tensor:
    """Map `[N, S]` to overlapping frames `[N, T, W]` with W = `window`: frame t begins `before` samples before t·M, M being `hop`. There
    are zeros beyond the samples."""
    after = max(0, (num_frames - 1) * hop + window - before - samples.shape[-1])
    padded = functional.pad(samples, (before, after))
    return padded.unfold(-1, window, hop)[:, :num_frames] if num_frames else padded.new_zeros(len(padded), 0, window)
