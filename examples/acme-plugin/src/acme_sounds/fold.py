"""A codec without weights: frames that do not overlap, each through an orthonormal discrete cosine transform (DCT-II).

Shape letters: B clips, C audio channels, S samples, M samples per frame, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.representation import Representation, RepresentationSpec
from torch import Tensor


class FoldCodec(Codec):
    """Latents `[B, C·M, T]`, coefficient k of channel c in row c·M + k, T = ceil(S / M). Decoding restores the samples.

    Args:
        sample_rate: in Hz.
        channels: C.
        frame_size: M.

    Raises:
        SpecError: an argument is below 1.
    """

    def __init__(self, *, sample_rate: int = 16000, channels: int = 1, frame_size: int = 64) -> None:
        super().__init__()
        for name, value in {"sample_rate": sample_rate, "channels": channels, "frame_size": frame_size}.items():
            if value < 1:
                raise SpecError(f"{name} is {value}; expected at least 1")
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=frame_size,
            latent_dim=channels * frame_size,
        )

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents."""
        return self._spec

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip."""
        if waveform.ndim != 3 or waveform.shape[1] != self._spec.channels:
            raise DataError(f"the waveform is {list(waveform.shape)}; expected [clips, {self._spec.channels} channels, samples]")
        size = self._spec.downsampling_ratio
        inside = torch.arange(waveform.shape[-1], device=waveform.device) < lengths[:, None, None]
        samples = torch.where(inside, waveform, 0.0)
        samples = torch.nn.functional.pad(samples, (0, -samples.shape[-1] % size))
        frames = rearrange(samples, "b c (t m) -> b c t m", m=size) @ cosines(size, samples).T
        return Representation(rearrange(frames, "b c t m -> b (c m) t"), self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, C·M, T]` to `[B, C, T·M]`."""
        frames = rearrange(representation.values, "b (c m) t -> b c t m", c=self._spec.channels)
        waveform: Tensor = rearrange(frames @ cosines(frames.shape[-1], frames), "b c t m -> b c (t m)")
        return waveform


def cosines(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II matrix `[M, M]`, with frequency k in row k, in the dtype and on the device of
    `like`."""
    steps = torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2.0 / size) * torch.cos(math.pi / size * steps[:, None] * (steps + 0.5))
    matrix[0] /= math.sqrt(2.0)
    return matrix.to(like)
