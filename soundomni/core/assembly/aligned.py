"""Tokens that are added to those of a clip that is made, frame by frame (SoundStorm, Borsos et al. 2023, section 3.1).

Shape letters: N tokens of one modality, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from torch import Tensor

from soundomni.core.assembly.modality import CodecModality, EncoderModality, MadeModality, Modality
from soundomni.core.errors import SpecError
from soundomni.core.upload import upload
from soundomni.core.waveform import resampled_length

CHECKED_SECONDS = 10
"""Length up to which frames of a codec and tokens of an encoder are compared, unless the encoder takes less."""


def add_aligned(
    hidden: Mapping[str, Tensor], num_frames: Mapping[str, np.ndarray], added_to: Mapping[str, Sequence[tuple[str, int]]]
) -> dict[str, Tensor]:
    """Return the tokens of each modality that have places in a sequence, with the aligned tokens added to them.

    Args:
        hidden: name of a modality → the tokens of its clips, `[N, H]`.
        num_frames: name → tokens of each of its clips.
        added_to: name → for the last of its clips, the clip to which each is added: (its modality, its index there).
    """
    first = {name: np.concatenate([[0], np.cumsum(counts)]).astype(np.int64) for name, counts in num_frames.items()}
    joined = dict(hidden)
    for name, hosts in added_to.items():
        placed = len(num_frames[name]) - len(hosts)
        joined[name] = joined[name][: int(first[name][placed])]
    for name, hosts in added_to.items():
        placed = len(num_frames[name]) - len(hosts)
        for host in dict.fromkeys(host for host, _ in hosts):
            pairs = [(placed + i, index) for i, (own, index) in enumerate(hosts) if own == host]
            rows = _rows(first[name], [own for own, _ in pairs], hidden[name])
            places = _rows(first[host], [index for _, index in pairs], hidden[host])
            added = hidden[name].index_select(0, rows).to(joined[host].dtype)
            joined[host] = joined[host].index_add(0, places, added)
    return joined


def _rows(first: np.ndarray, clips: Sequence[int], like: Tensor) -> Tensor:
    """Return the tokens of clips, one clip after the other: int64, on the device of `like`."""
    return upload(np.concatenate([np.arange(first[clip], first[clip + 1]) for clip in clips]), like.device)


def check_aligned(host: MadeModality, other: Modality) -> None:
    """Raise SpecError unless every clip has one token for each frame in both modalities, and as many, so that they can be added."""
    key, advice = f"model.modalities.{host.name}.aligned names '{other.name}'", "Use parts with the same rate, or set that of one of them"
    for one in (host, other):
        if isinstance(one, CodecModality):
            _check_tokens(one, key)
    if isinstance(other, EncoderModality):
        _check_encoder(host, other, key, advice)
        return
    assert isinstance(other, CodecModality), "it has an encoder or a codec"
    rates = [Fraction(one.codec.spec.sample_rate, one.codec.spec.downsampling_ratio) for one in (other, host)]
    if rates[0] != rates[1]:
        raise SpecError(f"{key}, with {float(rates[0]):.6g} frames per second; '{host.name}' has {float(rates[1]):.6g}. {advice}")
    extra = [one.codec.spec.extra_frames for one in (other, host)]
    if extra[0] != extra[1]:
        raise SpecError(f"{key}, with {extra[0]} extra frames per clip; '{host.name}' has {extra[1]}. Use codecs that have as many")


def _check_tokens(modality: CodecModality, key: str) -> None:
    frames = modality.codec.spec.num_frames(CHECKED_SECONDS * modality.codec.spec.sample_rate)
    tokens = modality.num_tokens(frames)
    if tokens != frames:
        found = f"a clip of {frames} frames takes {tokens} tokens in '{modality.name}'"
        raise SpecError(f"{key}, which needs one token for each frame, but {found}. Use an objective with one for each, such as masked")


def _check_encoder(host: MadeModality, other: EncoderModality, key: str, advice: str) -> None:
    """Compare tokens of clips about as long as whole frames, and of long ones: an encoder has no rate, only a count for each length."""
    if other.encoder.spec.source != "waveform":
        raise SpecError(f"{key}, whose encoder reads a {other.encoder.spec.source}, so it has no frames. Put it into model.prompt")
    if other.enters != "prefix":
        raise SpecError(
            f"{key}, which enters as '{other.enters}'; expected 'prefix' for clips that are added. Leave enters out, or aligned"
        )
    spec, ratio = host.codec.spec, host.codec.spec.downsampling_ratio
    seconds = min(CHECKED_SECONDS, other.encoder.spec.max_seconds or CHECKED_SECONDS)
    longest = int(seconds * spec.sample_rate)
    lengths = [count * ratio + shift for count in range(1, 40) for shift in (-1, 0, 1)]
    for samples in [*(length for length in lengths if 0 < length <= longest), longest]:
        own = other.encoder.num_tokens(resampled_length(samples, spec.sample_rate, other.sample_rate))
        if own != spec.num_frames(samples):
            clip = f"for a clip of {samples / spec.sample_rate:g} s"
            raise SpecError(f"{key}, with {own} tokens {clip}; '{host.name}' has {spec.num_frames(samples)}. {advice}")
