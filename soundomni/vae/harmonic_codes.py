"""Codes of harmonics and a residual: the latents of the codec `harmonic`, quantized with codebooks that are measured on data."""

from __future__ import annotations

from soundomni.vae.harmonic import HarmonicCodec
from soundomni.vae.measured_codes import MeasuredCodesCodec


class HarmonicCodesCodec(MeasuredCodesCodec):
    """The latents of `harmonic` as K codes per frame, without a network and without training.

    The codebooks are measured on the first clips of the data when a run begins (see residual_quantizer.py), and belong to the saved
    model. What a codebook has no entry for is lost, so this codec is for narrow data, such as toy sounds; it shows what a
    model of codes needs.

    Args:
        num_codebooks: number of levels, K.
        codebook_size: entries of each level.
        sample_rate, channels, frame_size, num_harmonics, pitch_range, companding: as in HarmonicCodec.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        num_codebooks: int = 4,
        codebook_size: int = 256,
        sample_rate: int = 8000,
        channels: int = 1,
        frame_size: int = 128,
        num_harmonics: int = 15,
        pitch_range: tuple[float, float] = (125.0, 1000.0),
        companding: float = 0.5,
    ) -> None:
        latents = HarmonicCodec(
            sample_rate=sample_rate,
            channels=channels,
            frame_size=frame_size,
            num_harmonics=num_harmonics,
            pitch_range=pitch_range,
            companding=companding,
        )
        super().__init__(latents, num_codebooks=num_codebooks, codebook_size=codebook_size)
