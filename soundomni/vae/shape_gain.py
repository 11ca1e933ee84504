"""MDCT frames as a shape and a gain: how a frame is distributed over frequency and, separately, how loud it is.

A sound then has the same shape at any level, as in shape-gain coding (Gersho and Gray 1992, section 12.10; the bands of
Opus, Valin et al. 2013), so that what a model learns about a quiet sound holds for a loud one.

Shape letters: B clips, C audio channels, M samples per frame (hop), T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.clips import at_least_float32, check_latent
from soundomni.vae.level import FLOOR, LOWEST, MARGIN, from_level, to_level
from soundomni.vae.mdct import MDCTCodec, Window, check_companding, compand, expand


class ShapeGainCodec(Codec):
    """The modified discrete cosine transform, split into the shape of each frame and its level.

    Latents are `[B, C·M + 1, T]`: the MDCT coefficients of a frame, all channels together, divided by their RMS, and
    the level of that RMS.

    A frame whose RMS is below FLOOR has the lowest level, and its shape fades: silence has no shape.

    Decoding restores the samples to float precision. There is nothing to learn.

    Args:
        sample_rate, channels, frame_size, window: as in MDCTCodec.
        companding: exponent p in (0, 1] of sign(x)·|x|^p, for the shape.

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
        check_companding(companding)
        self.companding = companding
        self.frames = MDCTCodec(sample_rate=sample_rate, channels=channels, frame_size=frame_size, window=window, companding=1.0)
        self._spec = replace(self.frames.spec, latent_dim=self.frames.spec.token_dim + 1)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents; the last frame only closes the overlap."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """Receptive field of the MDCT frames."""
        return self.frames.receptive_field

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip. Raise DataError."""
        encoded = self.frames.encode(waveform, lengths)
        size = encoded.values.square().mean(dim=1, keepdim=True).sqrt().clamp_min(FLOOR)
        values = torch.cat([compand(encoded.values / size, self.companding), to_level(size)], dim=1)
        return Representation(values, encoded.lengths, self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, C·M + 1, T]` to `[B, C, (T - 1)·M]`, zero beyond `spec.num_samples` of each clip's frames.

        Raise DataError.
        """
        check_latent(representation, self._spec)
        values = at_least_float32(representation.values)
        shape, gain = values[:, :-1], values[:, -1:]
        # A predicted shape does not have unit size; only the frame's gain determines how loud it is.
        spread = expand(shape, self.companding)
        power = spread.square().mean(dim=1, keepdim=True)
        sounds = (gain > LOWEST + MARGIN) & (power > 0)
        coefficients = torch.where(sounds, spread / power.clamp_min(torch.finfo(power.dtype).tiny).sqrt(), spread) * from_level(gain)
        return self.frames.decode(Representation(coefficients, representation.lengths, self.frames.spec))
