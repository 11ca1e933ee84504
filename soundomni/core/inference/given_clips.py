"""Clips that are given to the one that is made, as audio or as what another model made.

There are three ways: aligned clips are added to the one that is made, those of the prompt come before it, and of its own modality
come the levels of codes that the model does not make.

Shape letters: C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.encoding import encode_clips
from soundomni.core.assembly.modality import CodecModality, EncoderModality, MadeModality, Modality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError, SpecError, did_you_mean
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.core.sequence import Segment
from soundomni.core.waveform import Audio, convert, fit_length, resampled_length
from soundomni.core.writing.prompts import PromptWriter

Read = TypeVar("Read")
Given = Audio | Representation
"""A clip as audio, or as the representation `[1, D, T]` or `[1, K, T]` of a codec, as its `encode` returns it."""


class GivenClips:
    """Writes given clips, by the name of their modality.

    Args:
        model: the network.
        contexts: writes the model's segments.
        made: the modality that is made.
    """

    def __init__(self, model: UnifiedModel, contexts: PromptWriter, made: MadeModality) -> None:
        self._modalities = {one.name: one for one in model.each()}
        self._contexts = contexts
        self._made = made
        self._read: dict[tuple[str, str, int, int], tuple[Given, Any]] = {}  # one clip may serve all prompts; it keeps its id

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of the modalities of which a clip can be given."""
        own = (self._made.name,) if self._made.first_level else ()
        return tuple(dict.fromkeys((*self._made.aligned, *self._contexts.in_prompt, *own)))

    def check(self, given: Mapping[str, Given]) -> None:
        """Raise SpecError if the model does not take clips of a modality, or DataError if it needs one that is missing."""
        for name in given:
            if name not in self.taken:
                takes = f"takes clips of {', '.join(self.taken)}" if self.taken else "takes no other clips"
                near = did_you_mean(name, self.taken)
                raise SpecError(f"given names '{name}', but to make '{self._made.name}' the model {takes}.{near}")
        if self._made.first_level and self._made.name not in given:
            levels = f"the levels of '{self._made.name}' from {self._made.first_level} on"
            raise DataError(f"this model makes only {levels}, so it needs those below. Pass them as given={{'{self._made.name}': ...}}")

    def with_aligned(self, slot: Segment, given: Mapping[str, Given]) -> Segment:
        """Return the segment of a clip to make with the given clips that are added to it; longer ones are cut.

        Raise DataError if a clip is shorter than the one to make, or was made by a codec with another rate or other sizes.
        """
        names = [name for name in self._made.aligned if name in given]
        added = (self._once("added", name, given[name], slot.num_samples, partial(self._aligned, slot)) for name in names)
        return replace(slot, aligned=tuple(added))

    def in_prompt(self, given: Mapping[str, Given]) -> dict[str, Segment]:
        """Return the segments of the given clips that the prompt holds, of any length, prepared as in training.

        Raise DataError for a clip that was made by a codec with another rate or other sizes, or that is too long.
        """
        names = [name for name in self._contexts.in_prompt if name in given]
        return {name: self._once("prompt", name, given[name], 0, self._in_prompt) for name in names}

    def lower_levels(self, given: Mapping[str, Given], slot: Segment) -> Tensor | None:
        """Return the codes `[K, T]` of the levels that the model does not make, for a clip to make; longer ones are cut.

        None if it makes all levels. Raise DataError as `with_aligned`.
        """
        if not self._made.first_level:
            return None
        name = self._made.name
        return self._once("lower", name, given[name], slot.num_samples, partial(self._lower, slot))

    def _once(self, use: str, name: str, clip: Given, num_samples: int, read: Callable[[str, Given], Read]) -> Read:
        """Return what `read` returns for a given clip of modality `name`, and keep it for other clips to make of as many samples."""
        key = (use, name, id(clip), num_samples)
        if key not in self._read:
            self._read[key] = (clip, read(name, clip))
        found: Read = self._read[key][1]
        return found

    def _lower(self, slot: Segment, name: str, clip: Given) -> Tensor:
        made = self._made
        if isinstance(clip, Representation):
            values = _values(made, clip, made.first_level)
        else:
            waveform = convert(clip, channels=made.channels, sample_rate=made.sample_rate)
            values = _encoded(made, waveform[:, : slot.num_samples])[: made.first_level]
        if values.shape[1] < slot.num_frames:
            raise _too_short(made.name, f"{values.shape[1]} frames", f"{slot.num_frames}")
        return torch.from_numpy(values[:, : slot.num_frames])

    def _aligned(self, slot: Segment, name: str, clip: Given) -> Segment:
        modality = self._modalities[name]
        num_samples = resampled_length(slot.num_samples, self._made.sample_rate, modality.sample_rate)
        segment = self._contexts.added(num_samples, of=name, to=slot)
        if isinstance(clip, Representation):
            values = _values(modality, clip)
            if values.shape[1] < segment.num_frames:
                raise _too_short(name, f"{values.shape[1]} frames", f"{segment.num_frames}")
            return segment.with_values(values[:, : segment.num_frames])
        waveform = convert(clip, channels=modality.channels, sample_rate=modality.sample_rate)
        if _num_frames(modality, waveform.shape[1]) < segment.num_frames:
            lasts = f"{waveform.shape[1] / modality.sample_rate:g} s"
            raise _too_short(name, lasts, f"{slot.num_samples / self._made.sample_rate:g} s")
        return _read(modality, segment, fit_length(waveform, num_samples))

    def _in_prompt(self, name: str, clip: Given) -> Segment:
        modality = self._modalities[name]
        if isinstance(clip, Representation):
            values = _values(modality, clip)
            num_samples = clip.spec.num_samples(values.shape[1])
            if clip.spec.num_frames(num_samples) != values.shape[1]:
                raise DataError(f"given '{modality.name}' has {values.shape[1]} frames; expected at least {clip.spec.num_frames(1)}")
            self._check_length(modality, values.shape[1], num_samples)
            return self._contexts.given(num_samples, of=modality.name).with_values(values)
        waveform = convert(self._contexts.prepared(clip), channels=modality.channels, sample_rate=modality.sample_rate)
        self._check_length(modality, _num_frames(modality, waveform.shape[1]), waveform.shape[1])
        return _read(modality, self._contexts.given(waveform.shape[1], of=modality.name), waveform)

    def _check_length(self, modality: Modality, num_frames: int, num_samples: int) -> None:
        """Raise DataError for a clip that is longer than its connector or encoder takes."""
        seconds = num_samples / modality.sample_rate
        if isinstance(modality, CodecModality):
            modality.check_frames(num_frames)
        elif isinstance(modality, EncoderModality) and seconds > (most := modality.encoder.spec.max_seconds or seconds):
            raise DataError(f"given '{modality.name}' lasts {seconds:.1f} s; the encoder takes at most {most:g} s. Cut it first")


def check_made_for(name: str, made: RepresentationSpec, wanted: RepresentationSpec) -> None:
    """Raise DataError if a given clip of modality `name` has another rate or other sizes than the model's codec."""
    different = [f.name for f in fields(wanted) if getattr(wanted, f.name) != getattr(made, f.name)]
    if different:
        theirs, ours = (getattr(spec, different[0]) for spec in (made, wanted))
        told = f"given '{name}' was made by a codec whose {different[0]} is {theirs}"
        raise DataError(f"{told}; the model's codec has {ours}. Use the same codec for both")


def _values(modality: Modality, clip: Representation, levels: int | None = None) -> np.ndarray:
    """Return the frames `[D, T]` of one clip that is encoded already, or `[K, T]`: the first `levels`, by default those of the model."""
    if not isinstance(modality, CodecModality):
        raise DataError(f"given '{modality.name}' is a representation, but the model hears this modality. Give it as audio")
    most = modality.most_levels if levels is None else levels
    wanted, made = modality.codec.spec.with_levels(most), clip.spec
    if isinstance(modality, MadeModality):  # it need not have the levels that the model does not have either
        made = made.with_levels(most)
    check_made_for(modality.name, made, wanted)
    (frames,) = clip.frame_counts
    values = clip.values[0, :, :frames].detach().cpu()
    codes, dim = wanted.codebook_sizes, clip.spec.token_dim
    if len(values) != dim or (values.dtype != torch.int64 if codes else not values.is_floating_point()):
        found = f"given '{modality.name}' is {values.dtype} with {len(values)} values per frame"
        raise DataError(f"{found}; expected {'int64' if codes else 'float'} with {dim}, as the codec's encode returns")
    values = values[: wanted.token_dim]
    if codes and bool(((values < 0) | (values >= torch.tensor(codes)[:, None])).any()):
        raise DataError(f"given '{modality.name}' has a code that is not in its codebook; expected codes that its codec has made")
    frames_of: np.ndarray = (values if codes else values.float()).numpy()
    return frames_of


def _num_frames(modality: Modality, num_samples: int) -> int:
    if isinstance(modality, CodecModality):
        return modality.codec.spec.num_frames(num_samples)
    assert isinstance(modality, EncoderModality), "it has a codec or an encoder"
    return modality.encoder.num_tokens(num_samples)


def _too_short(name: str, found: str, needed: str) -> DataError:
    needed = f"at least {needed}, the length of the clip to make"
    return DataError(f"given '{name}' lasts {found}; expected {needed}. Make a shorter clip, or give a longer one")


def _read(modality: Modality, segment: Segment, waveform: np.ndarray) -> Segment:
    """Return a segment with its clip: that of a codec encoded, so that the codec runs once for all steps and branches."""
    if isinstance(modality, CodecModality):
        return segment.with_values(_encoded(modality, waveform)[: modality.most_levels])
    return segment.with_waveform(waveform)


@torch.no_grad()
def _encoded(modality: CodecModality, waveform: np.ndarray) -> np.ndarray:
    """Return what the codec makes of one clip `[C, S]`: `[D, T]` or `[K, T]`, not normalized."""
    num_samples = waveform.shape[1]
    clip = torch.from_numpy(waveform)[None].to(modality.device)
    lengths = torch.tensor([num_samples], device=modality.device)
    values = encode_clips(modality.codec, clip, lengths, None, num_samples=(num_samples,)).values
    encoded: np.ndarray = values[0, :, : modality.codec.spec.num_frames(num_samples)].cpu().numpy()
    return encoded
