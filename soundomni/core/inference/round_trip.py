"""A clip through a codec and back: whole or in pieces, with all levels of its codes or only the first ones.

Shape letters: C audio channels, S samples, K levels, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from soundomni.core.assembly.chunked import CHUNK_SECONDS, chunk_frames_of, decode_in_chunks, device_of, encode_in_chunks
from soundomni.core.full_precision import full_precision
from soundomni.core.inference.inputs import as_number
from soundomni.core.interfaces import Codec
from soundomni.core.limits import check_seconds
from soundomni.core.representation import Representation
from soundomni.core.waveform import Audio, convert, fit_length


def round_trip(codec: Codec, clip: Audio, *, chunk_seconds: float | None = None) -> Audio:
    """Encode and decode a clip; the result has the codec's rate and channels and the clip's length.

    Args:
        codec: the codec, on the device on which it computes.
        clip: a clip of at least one sample.
        chunk_seconds: a longer clip goes through the codec in pieces of this length. The audio is the same, and the
            device only needs memory for one piece. None means pieces of 30 s, or the whole clip if the codec cannot
            work in pieces.

    Returns:
        `[C, S]`, S being `resampled_length` of the clip's samples.

    Raises:
        SpecError: `chunk_seconds` is out of its range, or the codec cannot work in pieces.
        DataError: the clip cannot have the codec's channels.
    """
    return next(round_trips(codec, clip, [None], chunk_seconds=chunk_seconds))


def round_trips(codec: Codec, clip: Audio, levels: Sequence[int | None], *, chunk_seconds: float | None = None) -> Iterator[Audio]:
    """Encode a clip once, and yield it decoded from the first k levels of its codes for each k of `levels`.

    Args:
        codec, clip, chunk_seconds: as for `round_trip`.
        levels: numbers of levels, from 1 to K of the codec's spec; None for all that the codec has, or for latents.

    Raises:
        SpecError, DataError: as for `round_trip`.
    """
    waveform = torch.from_numpy(convert(clip, channels=codec.spec.channels, sample_rate=codec.spec.sample_rate))[None]
    frames = _chunk_frames(codec, chunk_seconds)
    codes = _encode(codec, waveform, frames)
    for count in levels:
        decoded = _decode(codec, codes.with_values(codes.values[:, :count]), frames)
        yield Audio.unchecked(fit_length(decoded[0].float().cpu().numpy(), waveform.shape[-1]), codec.spec.sample_rate)


def encoded(codec: Codec, clip: Audio, *, chunk_seconds: float | None = None) -> Representation:
    """Return what a clip becomes, `[1, D or K, T]`; arguments and errors are those of `round_trip`."""
    waveform = torch.from_numpy(convert(clip, channels=codec.spec.channels, sample_rate=codec.spec.sample_rate))[None]
    return _encode(codec, waveform, _chunk_frames(codec, chunk_seconds))


def _chunk_frames(codec: Codec, chunk_seconds: float | None) -> int | None:
    """Return the frames of a piece; None for whole clips."""
    if chunk_seconds is None and codec.receptive_field is None:
        return None
    seconds = CHUNK_SECONDS if chunk_seconds is None else as_number("chunk_seconds", chunk_seconds)
    check_seconds(seconds, name="chunk_seconds")
    return chunk_frames_of(codec.spec, seconds)


@torch.no_grad()
def _encode(codec: Codec, waveform: Tensor, chunk_frames: int | None) -> Representation:
    """Encode `[1, C, S]`, in pieces if `chunk_frames` is given."""
    if chunk_frames is not None:
        return encode_in_chunks(codec, waveform, torch.tensor([waveform.shape[-1]]), chunk_frames=chunk_frames)
    batch = waveform.to(device_of(codec, waveform))
    with full_precision(batch.device):
        return codec.encode(batch, torch.tensor([batch.shape[-1]], device=batch.device))


@torch.no_grad()
def _decode(codec: Codec, encoded: Representation, chunk_frames: int | None) -> Tensor:
    """Decode to `[1, C, S]`, in pieces if `chunk_frames` is given."""
    if chunk_frames is not None:
        return decode_in_chunks(codec, encoded, chunk_frames=chunk_frames)
    with full_precision(encoded.values.device):
        return codec.decode(encoded)
