"""Clips that are added to the one that is made, given as audio or as what another model made.

Shape letters: C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import torch

from soundomni.core.assembly.modality import CodecModality, EncoderModality, MadeModality, Modality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError, SpecError, did_you_mean
from soundomni.core.representation import Representation
from soundomni.core.sequence import Clips, Segment
from soundomni.core.waveform import Audio, convert, fit_length, resampled_length
from soundomni.core.writing.prompts import PromptWriter

Given = Audio | Representation
"""A clip as audio, or as the representation `[1, D, T]` or `[1, K, T]` of a codec, as its `encode` returns it."""


class AlignedClips:
    """Attaches given clips to the clip that is made.

    Args:
        model: the network.
        contexts: writes the model's segments.
        made: the modality that is made.
    """

    def __init__(self, model: UnifiedModel, contexts: PromptWriter, made: MadeModality) -> None:
        self._modalities: dict[str, Modality] = {one.name: one for one in model.each() if one.name in made.aligned}
        self._contexts = contexts
        self._made = made
        self._read: dict[tuple[str, int, int], tuple[Given, Segment]] = {}  # one clip may serve all prompts

    def attach(self, slot: Segment, given: Mapping[str, Given]) -> Segment:
        """Return the segment of a clip to make with the given clips, by the name of their modality; longer ones are cut.

        Raises:
            SpecError: the model does not add clips of a modality to the one that is made.
            DataError: a clip is shorter than the one to make, or was made by a codec with another rate or other sizes.
        """
        for name in given:
            if name not in self._modalities:
                takes = f"adds clips of {', '.join(self._modalities)}" if self._modalities else "adds no other clips"
                near = did_you_mean(name, self._modalities)
                raise SpecError(f"given names '{name}', but while it makes '{self._made.name}' the model {takes}.{near}")
        in_order = [name for name in self._made.aligned if name in given]
        return replace(slot, aligned=tuple(self._written_once(name, given[name], slot) for name in in_order))

    def _written_once(self, name: str, clip: Given, slot: Segment) -> Segment:
        key = (name, id(clip), slot.num_samples)
        if key not in self._read:
            self._read[key] = (clip, self._written(name, clip, slot))
        return self._read[key][1]

    def _written(self, name: str, clip: Given, slot: Segment) -> Segment:
        modality = self._modalities[name]
        num_samples = resampled_length(slot.num_samples, self._made.sample_rate, modality.sample_rate)
        segment = self._contexts.added(num_samples, of=name, to=slot)
        if isinstance(clip, Representation):
            return segment.with_values(self._frames(modality, clip, segment))
        waveform = convert(clip, channels=modality.channels, sample_rate=modality.sample_rate)
        if _num_frames(modality, waveform.shape[1]) < segment.num_frames:
            lasts = f"{waveform.shape[1] / modality.sample_rate:g} s"
            raise _too_short(name, lasts, f"{slot.num_samples / self._made.sample_rate:g} s")
        read = segment.with_waveform(fit_length(waveform, num_samples))
        return _encoded(modality, read) if isinstance(modality, CodecModality) else read

    def _frames(self, modality: Modality, clip: Representation, segment: Segment) -> np.ndarray:
        """Return the frames `[D, T]` or `[K, T]` of one clip that is encoded already."""
        if not isinstance(modality, CodecModality):
            raise DataError(f"given '{modality.name}' is a representation, but the model hears this modality. Give it as audio")
        own = modality.codec.spec
        different = [f.name for f in fields(own) if getattr(own, f.name) != getattr(clip.spec, f.name)]
        if different:
            theirs, ours = (getattr(spec, different[0]) for spec in (clip.spec, own))
            made = f"given '{modality.name}' was made by a codec whose {different[0]} is {theirs}"
            raise DataError(f"{made}; the model's codec has {ours}. Use the same codec for both")
        (frames,) = clip.frame_counts
        if frames < segment.num_frames:
            raise _too_short(modality.name, f"{frames} frames", f"{segment.num_frames}")
        values = clip.values[0, :, : segment.num_frames].detach().cpu()
        kind = "float" if own.kind == "continuous" else "int64"
        if len(values) != own.token_dim or (not values.is_floating_point() if kind == "float" else values.dtype != torch.int64):
            found = f"given '{modality.name}' is {values.dtype} with {len(values)} values per frame"
            raise DataError(f"{found}; expected {kind} with {own.token_dim}, as the codec's encode returns")
        if own.kind == "codes" and bool(((values < 0) | (values >= torch.tensor(own.codebook_sizes)[:, None])).any()):
            raise DataError(f"given '{modality.name}' has a code that is not in its codebook; expected codes that its codec has made")
        frames_of: np.ndarray = (values.float() if kind == "float" else values).numpy()
        return frames_of


def _num_frames(modality: Modality, num_samples: int) -> int:
    if isinstance(modality, CodecModality):
        return modality.codec.spec.num_frames(num_samples)
    assert isinstance(modality, EncoderModality), "it has a codec or an encoder"
    return modality.encoder.num_tokens(num_samples)


def _too_short(name: str, found: str, needed: str) -> DataError:
    needed = f"at least {needed}, the length of the clip to make"
    return DataError(f"given '{name}' lasts {found}; expected {needed}. Make a shorter clip, or give a longer one")


@torch.no_grad()
def _encoded(modality: CodecModality, segment: Segment) -> Segment:
    """Return a segment with the codec's frames in place of its waveform, so that the codec runs once for all steps and branches."""
    made = modality.run_codec(Clips.of([segment]).to(modality.device))
    return replace(segment, waveform=None, values=made.values[0, :, : segment.num_frames].cpu().numpy())
