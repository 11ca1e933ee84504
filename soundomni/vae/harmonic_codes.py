"""Codes of harmonics and a residual: the latents of the codec `harmonic`, quantized with codebooks that are measured on data.

Shape letters: B clips, C audio channels, S samples, K levels, T frames, D dimensions of a frame's latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.representation import Representation, RepresentationSpec, length_mask
from soundomni.vae.clips import check_codes
from soundomni.vae.harmonic import HarmonicCodec
from soundomni.vae.residual_quantizer import ResidualQuantizer


class HarmonicCodesCodec(Codec):
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
        super().__init__()
        self.harmonic = HarmonicCodec(
            sample_rate=sample_rate,
            channels=channels,
            frame_size=frame_size,
            num_harmonics=num_harmonics,
            pitch_range=pitch_range,
            companding=companding,
        )
        latents = self.harmonic.spec
        self.quantizer = ResidualQuantizer(dim=latents.token_dim, num_codebooks=num_codebooks, codebook_size=codebook_size)
        self._spec = replace(latents, kind="codes", latent_dim=None, codebook_sizes=(codebook_size,) * num_codebooks)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the codes; the last frame only closes the overlap."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """That of `harmonic`: each frame is quantized on its own."""
        return self.harmonic.receptive_field

    @property
    def is_fitted(self) -> bool:
        """Whether the codebooks have been measured."""
        return bool(self.quantizer.fitted)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure the codebooks on clips: pairs of `[B, C, S]` and lengths `[B]`. Raise DataError if there are too few frames."""
        frames = []
        for waveform, lengths in batches:
            latents = self.harmonic.encode(waveform, lengths)
            valid = length_mask(latents.lengths.to(waveform.device), latents.values.shape[-1])
            frames.append(latents.values.transpose(1, 2)[valid])
        self.quantizer.fit(torch.cat(frames) if frames else torch.zeros(0, self.harmonic.spec.token_dim))

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples. Raise DataError, or CheckpointError before a fit."""
        latents = self.harmonic.encode(waveform, lengths)
        batch = len(latents.values)
        codes = self.quantizer.encode(rearrange(latents.values, "b d t -> (b t) d"))
        return Representation(rearrange(codes, "(b t) k -> b k t", b=batch), latents.lengths, self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode codes `[B, k, T]` of the first k levels to `[B, C, (T - 1)·M]`. Raise DataError, or CheckpointError before a fit."""
        check_codes(representation, self._spec)
        valid = length_mask(representation.lengths.to(representation.values.device), representation.values.shape[-1])
        codes = representation.values.masked_fill(~valid[:, None], 0)
        latents = self.quantizer.decode(rearrange(codes, "b k t -> (b t) k"))
        values = rearrange(latents, "(b t) d -> b d t", b=len(codes))
        return self.harmonic.decode(Representation(values, representation.lengths, self.harmonic.spec))
