"""Semantic tokens without a network: clusters of the shapes of mel spectra.

They take the place of the clusters of a speech network's features (Lakhotia et al. 2021, section 3.1) if there is no
such network, and say what is heard rather than how loud it is. With few cepstral coefficients (Davis and Mermelstein
1980), they tell speech sounds apart, but not pitches. In the narrow band of the fundamentals, they tell notes apart, but not
instruments.

Shape letters: B clips, S samples, T frames, W samples per window, M mel bins, E dimensions of a frame's shape, D those
of a frame with its neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, NoReturn

import torch
from torch import Generator, Tensor
from torch.nn import functional

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.mel_filters import mel_filters
from soundomni.core.representation import Representation, RepresentationSpec, length_mask
from soundomni.vae.clips import check_audio_format, check_band, check_waveform
from soundomni.vae.padding import framed
from soundomni.vae.residual_quantizer import ResidualQuantizer

MOST_SAMPLES, MOST_MELS, MOST_CONTEXT, MOST_CLUSTERS = 2**16, 1024, 100, 2**16
"""Limits for specs from strangers: samples of a frame and of a window, mel bins, frames on one side, and centroids."""


class MelKmeansCodec(Codec):
    """Semantic tokens: for each frame, the nearest of the centroids of mel spectra, which are measured on the first clips
    of the data when a run begins.

    Codes are `[B, 1, T]`. The codec only encodes: semantic tokens have no waveform, and `decode` raises DataError.

    A frame is described by the logarithm of its mel spectrum, with `floor` added before, minus its mean, so that
    loudness has no part in it: a frame below the floor is all zeros. With `num_coefficients`, only the first
    coefficients of its cosine transform are kept, which are the coarse shape of the spectrum without its harmonics.
    The descriptions of `context` frames before and after are joined to it.

    Frames are around the samples from t·N to (t + 1)·N, N being `frame_size`, or, if they are `lapped`, around the sample
    t·N, with one frame more at the end. Codecs with overlapping frames, such as harmonic-codes, have such frames.

    Args:
        sample_rate: sample rate in Hz.
        frame_size: samples of a frame.
        window: samples W of a Hann window around the middle of a frame, at least `frame_size`.
        num_mels: number of mel bins M on the HTK mel scale, at least 2.
        frequencies: lowest and highest frequency in Hz of the mel bins; null for 0 Hz and half the sample rate.
        num_coefficients: cepstral coefficients that are kept, below M; null keeps the whole spectrum.
        context: frames before and after a frame that are part of its description.
        num_clusters: number of centroids, and so of codes.
        floor: added to the magnitude of a mel bin, in which a sine of amplitude 1 is about 1.
        lapped: whether frames are where overlapping frames are, so that the tokens can be aligned with codes of such a codec.

    Raises:
        SpecError: an argument is out of range.
    """

    decodes: ClassVar[bool] = False
    _filters: Tensor
    _cosines: Tensor
    _window: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        frame_size: int = 320,
        window: int = 1024,
        num_mels: int = 64,
        frequencies: tuple[float, float] | None = None,
        num_coefficients: int | None = None,
        context: int = 0,
        num_clusters: int = 100,
        floor: float = 0.01,
        lapped: bool = False,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, 1)
        check_count("frame_size", frame_size, most=MOST_SAMPLES)
        check_count("window", window, most=MOST_SAMPLES)
        check_count("num_clusters", num_clusters, most=MOST_CLUSTERS)
        _check_shape(frame_size, window, num_mels, num_coefficients, context, floor)
        self.context = context
        self.floor = floor
        self._spec = RepresentationSpec(
            kind="codes",
            sample_rate=sample_rate,
            channels=1,
            downsampling_ratio=frame_size,
            codebook_sizes=(num_clusters,),
            extra_frames=int(lapped),
        )
        band = check_band(frequencies, sample_rate)
        filters = torch.from_numpy(mel_filters(num_mels=num_mels, n_fft=window, sample_rate=sample_rate, scale="htk", frequencies=band))
        self.register_buffer("_filters", filters.float(), persistent=False)
        self.register_buffer("_cosines", _cosines(num_mels, num_coefficients).float(), persistent=False)
        self.register_buffer("_window", torch.hann_window(window), persistent=False)
        self.quantizer = ResidualQuantizer(dim=len(self._cosines) * (2 * context + 1), num_codebooks=1, codebook_size=num_clusters)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the codes."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """The frames that the window and the context reach beyond a frame."""
        frame_size = self._spec.downsampling_ratio
        beyond = len(self._window) - frame_size * (1 + self._spec.extra_frames)
        return ReceptiveField(encode=self.context + math.ceil(beyond / 2 / frame_size), decode=0)

    @property
    def is_fitted(self) -> bool:
        """Whether the centroids have been measured."""
        return bool(self.quantizer.fitted)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure the centroids on clips: pairs of `[B, 1, S]` and lengths `[B]`. Raise DataError if there are too few frames."""
        frames = [self.quantizer.codebooks.new_zeros(0, self.quantizer.codebooks.shape[-1])]
        for waveform, lengths in batches:
            described = self.features(waveform, lengths)
            valid = length_mask(self._spec.frame_lengths(lengths).to(waveform.device), described.shape[1])
            frames.append(described[valid])
        self.quantizer.fit(torch.cat(frames))

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[Generator] | None = None) -> Representation:
        """Encode `[B, 1, S]`, clips of `lengths` `[B]` samples; nothing is random. Raise DataError, or CheckpointError before a fit."""
        features = self.features(waveform, lengths)
        codes = self.quantizer.encode(features.flatten(0, 1)).reshape(features.shape[0], 1, features.shape[1])
        return Representation(codes, self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> NoReturn:
        """Raise DataError: semantic tokens have no waveform."""
        raise DataError("mel-kmeans only encodes: semantic tokens have no waveform. Make acoustic codes from them, and decode those")

    @torch.no_grad()
    def features(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return the descriptions of frames, float32 `[B, T, D]`; those beyond a clip are undefined. Raise DataError."""
        check_waveform(waveform, lengths, self._spec)
        hann, filters, cosines = (buffer.float() for buffer in (self._window, self._filters, self._cosines))
        window, hop, samples = len(hann), self._spec.downsampling_ratio, waveform.shape[-1]
        frames = self._spec.num_frames(samples)
        within = length_mask(lengths.to(waveform.device), samples)
        before = window // 2 if self._spec.extra_frames else (window - hop) // 2
        with torch.autocast(waveform.device.type, enabled=False):
            pieces = framed(waveform[:, 0].float() * within, window, hop, frames, before=before)
            magnitudes = torch.fft.rfft(pieces * hann).abs() * (2.0 / hann.sum())
            shapes = (magnitudes @ filters.T + self.floor).log() @ cosines.T
        valid = length_mask(self._spec.frame_lengths(lengths).to(shapes.device), frames)
        return self._with_context(shapes * valid[..., None])

    def _with_context(self, shapes: Tensor) -> Tensor:
        """Map `[B, T, E]` to `[B, T, D]`: each frame joined with its neighbors, zero beyond the ends."""
        if not self.context:
            return shapes
        padded = functional.pad(shapes, (0, 0, self.context, self.context))
        frames = shapes.shape[1]
        return torch.cat([padded[:, i : i + frames] for i in range(2 * self.context + 1)], -1)


def _cosines(num_mels: int, num_coefficients: int | None) -> Tensor:
    """Return the matrix that maps log-mel spectra to descriptions, float64 `[E, M]`: it removes the mean, or is an orthonormal cosine
    transform without its constant."""
    if num_coefficients is None:
        return torch.eye(num_mels, dtype=torch.float64) - 1.0 / num_mels
    order = torch.arange(1, num_coefficients + 1, dtype=torch.float64)[:, None]
    middles = torch.arange(num_mels, dtype=torch.float64) + 0.5
    return math.sqrt(2.0 / num_mels) * torch.cos(torch.pi / num_mels * order * middles)


def _check_shape(frame_size: int, window: int, num_mels: int, num_coefficients: int | None, context: int, floor: float) -> None:
    """Raise SpecError for a description that cannot be computed."""
    if not 2 <= num_mels <= MOST_MELS:
        raise SpecError(f"num_mels is {num_mels}; expected a number from 2 to {MOST_MELS:,}")
    if window < frame_size:
        raise SpecError(f"window is {window}; expected at least frame_size, {frame_size}")
    if num_coefficients is not None and not 1 <= num_coefficients < num_mels:
        raise SpecError(f"num_coefficients is {num_coefficients}; expected a number from 1 to {num_mels - 1}, or null")
    if not 0 <= context <= MOST_CONTEXT:
        raise SpecError(f"context is {context}; expected a number from 0 to {MOST_CONTEXT}")
    if not 0 < floor < math.inf:
        raise SpecError(f"floor is {floor}; expected a number above 0")
