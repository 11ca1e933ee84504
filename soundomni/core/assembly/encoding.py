"""Encoding of clips with the same bits in every batch, so that clips may be encoded before a run as well as in it.

How a library adds up numbers depends on the shapes that it gets: a convolution over a batch, or over a padded clip,
differs in the last bits from one over the clip by itself. So a network gets one clip at a time, without padding. That
is not slower on a CPU, and spares the work on padding. A transform without parameters treats each frame on its own, and
gets many clips at once.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from soundomni.core.full_precision import full_precision
from soundomni.core.interfaces import Codec
from soundomni.core.representation import Representation

CODEC_SAMPLES = 1 << 22
"""Samples, of all channels, that a codec without parameters encodes at once."""


def encode_clips(
    codec: Codec,
    waveform: Tensor,
    lengths: Tensor,
    generators: Sequence[torch.Generator] | None = None,
    *,
    num_samples: Sequence[int] | None = None,
) -> Representation:
    """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, as `codec.encode` does; no clip's bits depend on the
    others.

    Args:
        codec: the codec.
        waveform, lengths, generators: as for `Codec.encode`.
        num_samples: the lengths on the host; without them, a network waits for the device.

    Returns:
        Values `[B, D, T]` or `[B, K, T]`, T being the frames of S samples.
    """
    with full_precision(waveform.device):
        if next(codec.parameters(), None) is None:
            return _many_at_once(codec, waveform, lengths, generators)
        counts = lengths.tolist() if num_samples is None else num_samples
        return _one_by_one(codec, waveform, lengths, generators, counts)


def _many_at_once(codec: Codec, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None) -> Representation:
    count = max(1, CODEC_SAMPLES // max(1, waveform.shape[1] * waveform.shape[2]))
    groups = [slice(first, first + count) for first in range(0, max(1, len(waveform)), count)]
    parts = [codec.encode(waveform[group], lengths[group], generators[group] if generators else None) for group in groups]
    if len(parts) == 1:
        return parts[0]
    return Representation(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]), parts[0].spec)


def _one_by_one(
    codec: Codec, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None, counts: Sequence[int]
) -> Representation:
    frames = codec.spec.num_frames(waveform.shape[-1])
    values: Tensor | None = None
    with parametrize.cached():  # normalized weights are computed once for all clips
        for i, count in enumerate(counts):
            one = slice(i, i + 1)
            clip = waveform[one, :, : max(1, count)]
            part = codec.encode(clip, lengths[one], generators[one] if generators else None).values
            values = part.new_zeros(len(waveform), part.shape[1], frames) if values is None else values
            values[one, :, : part.shape[-1]] = part
    if values is None:
        return codec.encode(waveform, lengths)
    return Representation(values, codec.spec.frame_lengths(lengths), codec.spec)
