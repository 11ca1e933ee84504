"""A codec without weights: the modified discrete cosine transform, which is exactly invertible.

Frames of 2M windowed samples overlap by half and give M coefficients each. The aliasing of one frame cancels that of
the next when they are added (time-domain aliasing cancellation: Princen and Bradley 1987; Malvar 1992, section 5.2):

    X[k] = sqrt(2 / M) · sum_n w[n]·x[n]·cos(π / M · (n + n0)·(k + 1/2)),   n0 = (M + 1) / 2,   w[n]² + w[n + M]² = 1

The scale makes the transform orthonormal: white noise of unit variance has coefficients of unit variance. Both
directions are one complex FFT of 2M points between two rotations, for any M.

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
from soundomni.core.upload import upload
from soundomni.vae.clips import at_least_float32, check_audio_format, check_latent, check_waveform
from soundomni.vae.overlap import lapped, overlap_add
from soundomni.vae.padding import zero_beyond

Window = Literal["sine", "kbd"]

KBD_ALPHA = 4.0
COMPANDING_KNEE = 1e-4
"""Coefficients below this are companded linearly: the slope of |x|^p is infinite at zero, and gradients would be as
well."""


class MDCTCodec(Codec):
    """The modified discrete cosine transform: exactly invertible, with nothing to learn.

    Latents are `[B, C·M, T]` with T = ceil(S / M) + 1, channel by channel: coefficient k of channel c is row c·M + k.
    Decoding restores the samples to float precision.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C.
        frame_size: samples per frame, M.
        window: "sine"; or "kbd", Kaiser-Bessel-derived with alpha 4, which suppresses distant frequencies better and
            close ones less well.
        companding: exponent p in (0, 1] of sign(x)·|x|^p, which brings quiet coefficients nearer to loud ones; 1
            changes nothing.

    Raises:
        SpecError: an argument is out of range.
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
            raise SpecError(f"frame_size is {frame_size}; expected at least 1")
        if window not in get_args(Window):
            raise SpecError(f"window is '{window}'; expected sine or kbd.{did_you_mean(window, get_args(Window))}")
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
        """Spec of the latents; the last frame only closes the overlap."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """No frames beyond its own: a frame depends only on its two blocks of M samples, and a block on its two
        frames."""
        return ReceptiveField(encode=0, decode=0)

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip. Raise DataError."""
        check_waveform(waveform, lengths, self._spec)
        samples = zero_beyond(at_least_float32(waveform), lengths)
        frames = lapped(samples, self.frame_size, self._spec.num_frames(samples.shape[-1]))
        values = compand(self._analyze(frames), self.companding)
        return Representation(rearrange(values, "b c t m -> b (c m) t"), self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, C·M, T]` to `[B, C, (T - 1)·M]`, zero beyond `spec.num_samples` of each clip's frames.

        Raise DataError.
        """
        check_latent(representation, self._spec)
        values = zero_beyond(at_least_float32(representation.values), representation.lengths)
        coefficients = rearrange(values, "b (c m) t -> b c t m", c=self._spec.channels)
        frames = self._synthesize(expand(coefficients, self.companding))
        return overlap_add(frames, representation.lengths)

    def _analyze(self, frames: Tensor) -> Tensor:
        """Map `[..., 2M]` samples to `[..., M]` coefficients."""
        window, sample_turn, coefficient_turn = self._tables(frames)
        spectrum = torch.fft.fft(frames * window * sample_turn)[..., : self.frame_size]
        coefficients: Tensor = (spectrum * coefficient_turn).real
        return coefficients

    def _synthesize(self, coefficients: Tensor) -> Tensor:
        """Map `[..., M]` coefficients to `[..., 2M]` windowed samples, aliasing included."""
        window, sample_turn, coefficient_turn = self._tables(coefficients)
        spectrum = torch.fft.fft(coefficients * coefficient_turn, n=2 * self.frame_size)
        frames: Tensor = (spectrum * sample_turn).real * window
        return frames

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        complex_dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        window, sample_turn, coefficient_turn = map(torch.from_numpy, _tables(self.frame_size, self.window))
        tables = window.to(like.dtype), sample_turn.to(complex_dtype), coefficient_turn.to(complex_dtype)
        window, sample_turn, coefficient_turn = (upload(table, like.device) for table in tables)
        return window, sample_turn, coefficient_turn


@lru_cache(maxsize=16)
def _tables(hop: int, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the window `[2M]` and the rotations of samples `[2M]` and of coefficients `[M]`, in double precision.

    The cosine is the real part of a product of three rotations: exp(-i·π·n·k / M) of the FFT, one that depends only on
    n, and one only on k. They are arrays and not buffers, so that a module that is built without memory, or cast, keeps
    its transform.
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
    """Raise SpecError for a power that is out of range."""
    if not 0.0 < power <= 1.0:
        raise SpecError(f"companding is {power}; expected a number above 0 and at most 1")


def compand(values: Tensor, power: float) -> Tensor:
    """Return sign(x)·|x|^power, linear for |x| below COMPANDING_KNEE."""
    if power == 1.0:
        return values
    size = values.abs()
    curved = size.clamp_min(COMPANDING_KNEE) ** power
    return values.sign() * torch.where(size > COMPANDING_KNEE, curved, size * COMPANDING_KNEE ** (power - 1.0))


def expand(values: Tensor, power: float) -> Tensor:
    """Undo `compand`."""
    if power == 1.0:
        return values
    size, knee = values.abs(), COMPANDING_KNEE**power
    curved = size.clamp_min(knee) ** (1.0 / power)
    return values.sign() * torch.where(size > knee, curved, size * COMPANDING_KNEE ** (1.0 - power))
