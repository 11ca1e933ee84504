"""Codes of mel bands: the latents of the codec `mel-magnitude`, quantized with codebooks that are measured on data."""

from __future__ import annotations

from typing import ClassVar

from soundomni.vae.measured_codes import MeasuredCodesCodec
from soundomni.vae.mel_magnitude import MelMagnitudeCodec


class MelCodesCodec(MeasuredCodesCodec):
    """The power of mel bands as K codes per frame, without a network and without training; decoding finds the phases.

    The codebooks are measured on the first clips of the data when a run begins, and belong to the saved model. There are few frames a
    second, and no phases to encode, so small models can learn the codes; speech stays intelligible.

    Args:
        num_codebooks: number of levels, K.
        codebook_size: entries of each level.
        sample_rate, channels, frame_size, window, num_mels, frequencies, floor, rounds: as in MelMagnitudeCodec.

    Raises:
        SpecError: an argument is out of range.
    """

    keeps_waveform: ClassVar[bool] = False

    def __init__(
        self,
        *,
        num_codebooks: int = 6,
        codebook_size: int = 256,
        sample_rate: int = 16000,
        channels: int = 1,
        frame_size: int = 256,
        window: int = 1024,
        num_mels: int = 64,
        frequencies: tuple[float, float] | None = None,
        floor: float = 1e-6,
        rounds: int = 32,
    ) -> None:
        latents = MelMagnitudeCodec(
            sample_rate=sample_rate,
            channels=channels,
            frame_size=frame_size,
            window=window,
            num_mels=num_mels,
            frequencies=frequencies,
            floor=floor,
            rounds=rounds,
        )
        super().__init__(latents, num_codebooks=num_codebooks, codebook_size=codebook_size)
