"""A codec without weights: the modified discrete cosine transform, which is exactly invertible.

Frames of 2M windowed samples overlap by half and give M coefficients each. The aliasing of one frame cancels that of the next when
they are added (time-domain aliasing cancellation: Princen and Bradley 1987; Malvar 1992, section 5.2):

    X[k] = sqrt(2 / M) · sum_n w[n]·x[n]·cos(π / M · (n + n0)·(k + 1/2)),   n0 = (M + 1) / 2,   w[n]² + w[n + M]² = 1

The scale makes the transform orthonormal: white noise of unit variance has coefficients of unit variance. Both directions are one
complex FFT of 2M points between two rotations, for any M.

Shape letters: B clips, C audio channels, S samples, M samples per frame (hop), T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.clips import at_least_float32, check_audio_format, check_latent, check_waveform
from soundomni.vae.overlap import lapped, overlap_add
from soundomni.vae.padding import zero_beyond

Window = Literal["sine", "kbd"]

KBD_ALPHA = 4.0
COMPANDING_KNEE = 1e-4
"""Coefficients below this are companded linearly: the slope of |x|^p is infinite at zero, and so would gradients be."""


class MDCTCodec(Codec):
    """Latents `[B, C·M, T]`, channel by channel (coefficient k of channel c is row c·M + k), T = ceil(S / M) + 1.

    Decoding gives back the samples to float precision. There is nothing to train and nothing to load.

    Args:
        sample_rate: in Hz.
        channels: C.
        frame_size: M.
        window: "sine", or "kbd", Kaiser-Bessel-derived with alpha 4, which leaks less far and resolves close tones less well.
        companding: p in (0, 1] of sign(x)·|x|^p, which brings quiet coefficients nearer to loud ones; 1 leaves them as they are.

    Raises:
        SpecError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        frame_size: int = 128,
        window: Window = "sine",
        companding: float = 1.0,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        if frame_size < 1:
            raise SpecError(f"frame_size must be at least 1, {frame_size} was given")
        if window not in get_args(Window):
            raise SpecError(f"window must be sine or kbd, '{window}' was given.{did_you_mean(window, get_args(Window))}")
        check_companding(companding)
        self.frame_size = frame_size
        self.window: Window = window
        self.companding = companding
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=frame_size,
            latent_dim=channels * frame_size,
            extra_frames=1,
        )

    @property
    def spec(self) -> RepresentationSpec:
        """Of the latents; the last frame only closes the overlap."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """A frame is made of its two blocks of M samples and nothing else, and a block of its two frames."""
        return ReceptiveField(encode=0, decode=0)

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encodes `[B, C, S]`, clips of `lengths` `[B]` samples; what lies beyond a clip is taken as silence. Raises DataError."""
        check_waveform(waveform, lengths, self._spec)
        samples = zero_beyond(at_least_float32(waveform), lengths)
        frames = lapped(samples, self.frame_size, self._spec.num_frames(samples.shape[-1]))
        values = compand(self._analyse(frames), self.companding)
        return Representation(rearrange(values, "b c t m -> b (c m) t"), self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decodes `[B, C·M, T]` to `[B, C, (T - 1)·M]`, zero beyond `spec.num_samples` of each clip's frames. Raises DataError."""
        check_latent(representation, self._spec)
        values = zero_beyond(at_least_float32(representation.values), representation.lengths)
        coefficients = rearrange(values, "b (c m) t -> b c t m", c=self._spec.channels)
        frames = self._synthesise(expand(coefficients, self.companding))
        return overlap_add(frames, representation.lengths)

    def _analyse(self, frames: Tensor) -> Tensor:
        """`[..., 2M]` samples → `[..., M]` coefficients."""
        window, sample_turn, coefficient_turn = self._tables(frames)
        spectrum = torch.fft.fft(frames * window * sample_turn)[..., : self.frame_size]
        coefficients: Tensor = (spectrum * coefficient_turn).real
        return coefficients

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        """`[..., M]` coefficients → `[..., 2M]` windowed samples, aliasing included."""
        window, sample_turn, coefficient_turn = self._tables(coefficients)
        spectrum = torch.fft.fft(coefficients * coefficient_turn, n=2 * self.frame_size)
        frames: Tensor = (spectrum * sample_turn).real * window
        return frames

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        complex_dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        window, sample_turn, coefficient_turn = map(torch.from_numpy, _tables(self.frame_size, self.window))
        return window.to(like), sample_turn.to(like.device, complex_dtype), coefficient_turn.to(like.device, complex_dtype)


@lru_cache(maxsize=16)
def _tables(hop: int, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the window `[2M]` and the rotations of samples `[2M]` and of coefficients `[M]`, in double precision.

    The cosine is the real part of a product of three turns, exp(-i·π·n·k / M) of the FFT, one of n alone and one of k alone. These
    are arrays and no buffers, so that a module that is built without memory, or cast, keeps its transform.
    """
    n, k = np.arange(2 * hop), np.arange(hop)
    sample_turn = np.exp(-0.5j * np.pi / hop * n)
    coefficient_turn = np.sqrt(2.0 / hop) * np.exp(-0.5j * np.pi / hop * (hop + 1) * (k + 0.5))
    if window == "sine":
        return np.sin(np.pi * (n + 0.5) / (2 * hop)), sample_turn, coefficient_turn
    kaiser = np.cumsum(np.kaiser(hop + 1, np.pi * KBD_ALPHA))
    rising = np.sqrt(kaiser[:-1] / kaiser[-1])
    return np.concatenate([rising, rising[::-1]]), sample_turn, coefficient_turn


def check_companding(power: float) -> None:
    """Raises SpecError for a power out of its range."""
    if not 0.0 < power <= 1.0:
        raise SpecError(f"companding must lie in (0, 1], {power} was given")


def compand(values: Tensor, power: float) -> Tensor:
    """Returns sign(x)·|x|^power, linear for |x| below COMPANDING_KNEE."""
    if power == 1.0:
        return values
    size = values.abs()
    curved = size.clamp_min(COMPANDING_KNEE) ** power
    return values.sign() * torch.where(size > COMPANDING_KNEE, curved, size * COMPANDING_KNEE ** (power - 1.0))


def expand(values: Tensor, power: float) -> Tensor:
    """Undoes `compand`."""
    if power == 1.0:
        return values
    size, knee = values.abs(), COMPANDING_KNEE**power
    curved = size.clamp_min(knee) ** (1.0 / power)
    return values.sign() * torch.where(size > knee, curved, size * COMPANDING_KNEE ** (1.0 - power))
