"""Codes that quantize the latents of another codec, with codebooks that are measured on data, see residual_quantizer.py.

Shape letters: B clips, C audio channels, S samples, K levels, T frames, D dimensions of a frame's latents, M samples per frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec, length_mask
from soundomni.vae.clips import check_codes
from soundomni.vae.frozen_codec import MOST_CODEBOOKS
from soundomni.vae.residual_quantizer import ResidualQuantizer


class MeasuredCodesCodec(Codec):
    """The latents of a codec without weights as K codes per frame, each frame on its own.

    Args:
        latents: the codec whose latents are quantized.
        num_codebooks: number of levels, K.
        codebook_size: entries of each level.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(self, latents: Codec, *, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        check_count("num_codebooks", num_codebooks, most=MOST_CODEBOOKS)
        self.latents = latents
        self.quantizer = ResidualQuantizer(dim=latents.spec.token_dim, num_codebooks=num_codebooks, codebook_size=codebook_size)
        self._spec = replace(latents.spec, kind="codes", latent_dim=None, codebook_sizes=(codebook_size,) * num_codebooks)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the codes."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """The receptive field of the codec of the latents: each frame is quantized on its own."""
        return self.latents.receptive_field

    @property
    def is_fitted(self) -> bool:
        """Whether the codebooks have been measured."""
        return bool(self.quantizer.fitted)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure the codebooks on clips: pairs of `[B, C, S]` and lengths `[B]`. Raise DataError if there are too few frames."""
        frames = []
        for waveform, lengths in batches:
            latents = self.latents.encode(waveform, lengths)
            valid = length_mask(latents.lengths.to(waveform.device), latents.values.shape[-1])
            frames.append(latents.values.transpose(1, 2)[valid])
        self.quantizer.fit(torch.cat(frames) if frames else torch.zeros(0, self.latents.spec.token_dim))

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples. Raise DataError, or CheckpointError before a fit."""
        latents = self.latents.encode(waveform, lengths)
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
        return self.latents.decode(Representation(values, representation.lengths, self.latents.spec))
