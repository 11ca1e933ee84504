"""Short-time spectra under Hann windows of unit energy: white noise of unit variance has bins of unit variance,
whatever the window.

The hop is a quarter of the window.

Shape letters: B clips, C audio channels, S samples, W samples per window, F = W // 2 + 1 frequency bins, T frames.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from soundomni.vae.clips import at_least_float32


def spectrum(waveform: Tensor, window: int, *, center: bool) -> Tensor:
    """Map `[B, C, S]` to complex `[B, C, F, T]`, in float32 at least.

    Args:
        waveform: `[B, C, S]`.
        window: W, even.
        center: if True, frame t is centered on sample t · W / 4, with silence around the clip, and T = S // (W / 4) +
            1; otherwise frames lie within the clip, which has at least W samples.
    """
    waveform = at_least_float32(waveform)
    shape = torch.hann_window(window, device=waveform.device, dtype=waveform.dtype)
    with torch.autocast(waveform.device.type, enabled=False):
        bins = torch.stft(
            rearrange(waveform, "b c s -> (b c) s"),
            window,
            window // 4,
            window=shape / torch.linalg.vector_norm(shape),
            center=center,
            pad_mode="constant",
            return_complex=True,
        )
    return rearrange(bins, "(b c) f t -> b c f t", b=len(waveform))


def as_channels(bins: Tensor) -> Tensor:
    """Map complex `[B, C, F, T]` to real `[B, 2·C, T, F]`: the real parts of all channels, then the imaginary ones."""
    return rearrange([bins.real, bins.imag], "part b c f t -> b (part c) t f")
