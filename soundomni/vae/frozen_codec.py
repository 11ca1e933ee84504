"""Codecs of codes whose trained networks come from elsewhere: frozen, and run on one clip at a time. Some only encode.

A batch is not run at once, although convolutions would allow it: how a library adds up numbers depends on the shapes
that it gets, and the last bit of a latent decides between two entries of a codebook that are equally near. So each clip
has the shape that it has on its own, and its codes are the same in every batch.

Shape letters: B clips, C audio channels, S samples, K codebooks, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.clips import check_codes, check_waveform

MOST_CODEBOOKS = 256
"""Most codebooks in a spec from a stranger."""
MOST_SAMPLES = 2**24
"""Samples of a clip if transformers computes a network's padding in float32, which has no odd numbers beyond this."""


class FrozenTokens(Codec):
    """A network that makes codes of whole clips, one by one, and is never trained.

    Args:
        network: the network; it becomes frozen, and stays in evaluation mode.
        spec: spec of the codes.
    """

    network: Any

    def __init__(self, network: nn.Module, spec: RepresentationSpec) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self._spec = spec

    @abstractmethod
    def encode_clip(self, clip: Tensor) -> Tensor:
        """Map one clip `[1, C, S]` of at least one sample to its codes `[1, K, T]`. Raise DataError."""

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the codes."""
        return self._spec

    def train(self, mode: bool = True) -> Self:
        """Keep the network in evaluation mode: some networks drop codebooks at random in training."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples; nothing is random. Raise DataError."""
        check_waveform(waveform, lengths, self._spec)
        shape = (len(waveform), self._spec.token_dim, self._spec.num_frames(waveform.shape[-1]))
        values = torch.zeros(shape, dtype=torch.int64, device=waveform.device)
        for clip, count, row in zip(waveform.to(self._dtype), lengths.tolist(), values, strict=True):
            if count:
                row[:, : self._spec.num_frames(count)] = self.encode_clip(clip[None, :, :count])[0]
        return Representation(values, self._spec.frame_lengths(lengths), self._spec)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype


class FrozenCodec(FrozenTokens):
    """Frozen tokens with a network that also decodes them, one clip at a time."""

    @abstractmethod
    def decode_clip(self, codes: Tensor) -> Tensor:
        """Map codes `[1, K, T]`, T ≥ 1, also of fewer levels, to samples `[1, C, S]`; beyond those comes silence. Raise
        DataError."""

    @torch.no_grad()
    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, K, T]`, also of fewer levels, to `[B, C, T · ratio]`, zero beyond each clip's frames.

        Raise DataError.
        """
        check_codes(representation, self._spec)
        values, ratio = representation.values, self._spec.downsampling_ratio
        shape = (len(values), self._spec.channels, values.shape[-1] * ratio)
        waveform = torch.zeros(shape, dtype=self._dtype, device=values.device)
        for codes, frames, row in zip(values, representation.lengths.tolist(), waveform, strict=True):
            if frames:
                decoded = self.decode_clip(codes[None, :, :frames])[0, :, : frames * ratio]
                row[:, : decoded.shape[-1]] = decoded
        return waveform


def check_codebooks(total_codebooks: int, num_codebooks: int | None, codebook_size: int) -> int:
    """Return how many codebooks are used: `num_codebooks`, or all of them for None.

    Raise SpecError if a number is out of its range.
    """
    check_count("total_codebooks", total_codebooks, most=MOST_CODEBOOKS)
    if codebook_size < 2 or codebook_size & (codebook_size - 1):
        raise SpecError(f"codebook_size is {codebook_size}; expected a power of 2, at least 2")
    used = total_codebooks if num_codebooks is None else num_codebooks
    if not 1 <= used <= total_codebooks:
        raise SpecError(f"num_codebooks is {used}; expected a number from 1 to {total_codebooks}, which is total_codebooks")
    return used


def check_first_layer(channels: int, num_filters: int) -> None:
    """Raise SpecError unless there are at most 2 channels and at least 2 filters, which residual blocks halve."""
    if channels > 2 or num_filters < 2:
        raise SpecError(f"channels is {channels} and num_filters is {num_filters}; expected at most 2 channels and at least 2 filters")


def check_samples(network: str, samples: int) -> None:
    """Raise DataError if a clip has more than MOST_SAMPLES samples."""
    if samples > MOST_SAMPLES:
        raise DataError(f"the clip has {samples:,} samples; {network} takes at most {MOST_SAMPLES:,}. Split the clip")
