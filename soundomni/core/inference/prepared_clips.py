"""Preparation of clips to keep or to vary, as in the model's training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from soundomni.core.errors import SpecError
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.making import Asked
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.waveform import Audio
from soundomni.core.writing.preparing import Part, find_part, gain, prepared, shape


def prepared_asked(asked: Sequence[Asked], clips: ClipSpec | None) -> list[Asked]:
    """Return what is asked for with the clips to keep and to vary prepared. Raise SpecError as `prepared_kept`."""
    if clips is None:
        return list(asked)
    kept = {id(one.kept): prepared_kept(one.kept, clips) for one in asked if one.kept is not None}  # one may serve all
    varied = {id(one.varied): prepared(one.varied, clips) for one in asked if one.varied is not None}
    return [replace(one, kept=kept.get(id(one.kept)), varied=varied.get(id(one.varied))) for one in asked]


def prepared_kept(kept: Kept, clips: ClipSpec) -> Kept:
    """Return a clip to keep in part, which begins where a training clip would, and has the same level.

    Its end does not change, because the model makes the rest. The spans stay at the same sounds.

    Raise SpecError if a span ends before the clip begins.
    """
    waveform, rate = kept.clip.waveform, kept.clip.sample_rate
    part = find_part(waveform, rate, clips)
    if clips.cut == "random":
        part = Part(0, waveform.shape[1], False)
    level = gain(shape(waveform[:, part.first : part.end], rate, clips, is_cut=part.is_cut), rate, clips)
    clip = Audio.unchecked(waveform[:, part.first :] * np.float32(level), rate)
    seconds = (waveform.shape[1] + 0.5) / rate  # a span is rounded to samples
    return Kept(clip, [_moved(span, part.first / rate, seconds) for span in kept.spans] if part.first else kept.spans)


def _moved(span: tuple[float, float], begin: float, seconds: float) -> tuple[float, float]:
    """Return a span in the rest of a clip of `seconds` from `begin` on. Raise SpecError if the span lies before that.

    One that is not in the clip stays as it is, so that it is refused with its own numbers.
    """
    start, end = span
    if not 0 <= start < end <= seconds:
        return span
    if end <= begin:
        raise SpecError(
            f"the span to keep is ({start}, {end}), but the model takes this clip from {begin:.3g} s on (model.clips). Keep a later part"
        )
    return max(0.0, start - begin), end - begin
