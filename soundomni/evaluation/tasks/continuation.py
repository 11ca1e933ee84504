"""The task "continue": a clip is cut in the middle of a sound, and the model's continuation should match the original.

Clips are toy sounds, in which signal analysis finds where a sound begins and ends, its pitch, its direction and its
level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soundomni.evaluation.observer import Observer
from soundomni.evaluation.prompts import prompt_of
from soundomni.evaluation.score import Score, Scores, share
from soundomni.evaluation.tasks.comparable import comparable
from soundomni.evaluation.toy_attributes import attribute_scores, heard_attributes

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio
    from soundomni.evaluation.settings import Settings

WINDOW = 0.05
"""Seconds before and after a join that are compared."""

_FADE = 0.012  # seconds at the end of a sound that fade out
_MIN_CLARITY = 0.6
_SEMITONE, _PITCH_CLASS = 1.0, 0.5  # semitones between a pitch and one that is taken for the same, for chirps too, and for notes
_LOUDNESS = 6.0  # dB, half of what is between "quiet" and "loud"


@dataclass(frozen=True)
class Cut:
    """The place where a clip is cut to be continued: in the middle of a tone or a chirp.

    Args:
        join: length of the kept part of the clip in seconds.
        end: end of the cut sound in seconds, without its fade.
        direction: "rising" or "falling" for a chirp, None for a tone.
    """

    join: float
    end: float
    direction: str | None


@dataclass(frozen=True)
class Continuation:
    """A clip that was cut and continued."""

    item: Item
    clip: Audio
    cut: Cut
    made: Audio


def find_cut(clip: Audio, index: int) -> Cut | None:
    """Return where clip number `index` of a list is cut; None if analysis finds no tone or chirp in it.

    In clips of several sounds, the first and the last sound are cut in turn, so that a list has joins in both.
    """
    from soundomni.data.toys.analysis import analyze

    events = [event for event in analyze(clip.waveform, clip.sample_rate).events if event.kind in ("tone", "chirp")]
    if not events:
        return None
    event = events[index % len(events)]
    direction = None if event.sweep is None else ("rising" if event.sweep > 0 else "falling")
    return Cut((event.onset + event.offset) / 2, event.offset - _FADE, direction)


def continue_clips(
    model: SoundOmni | Chain, items: Sequence[Item], clips: Sequence[Audio], settings: Settings, *, observer: Observer
) -> list[Continuation]:
    """Cut every clip in the middle of a sound, and let the model continue it under its own caption.

    Leave out clips that cannot be cut.
    """
    from soundomni.core.inference.editing import Kept

    made = []
    with observer.begin("continuing clips", total=len(items)) as progress:
        for i, (item, clip) in enumerate(zip(items, clips, strict=True)):
            cut = find_cut(clip, i)
            if cut is not None:
                (one,) = model.generate(
                    [prompt_of(item, model)],
                    seconds=item.num_samples / item.sample_rate,
                    num_steps=settings.num_steps,
                    guidance_scale=settings.guidance_scale,
                    of=settings.of,
                    known=[Kept(clip, [(0.0, cut.join)])],
                    seeds=[settings.seed + i],
                )
                made.append(Continuation(item, clip, cut, one))
            progress.advance(1)
    return made


def continuation_scores(continuations: Sequence[Continuation]) -> Scores:
    """Compare continuations with the clips that they continue.

    Returns:
        "direction", the share of chirps that keep their direction; "pitch", the share of sounds whose pitch right after
        the join is within a semitone of the clip's own there; "kept", the share of tones whose pitch class and loudness stay
        the same across the join; "level_step", the median step in level across the join, in dB; "right" and "attributes", the
        scores of the whole clip against its caption.
    """
    import numpy as np

    directions, pitches, kept, steps = [], [], [], []
    for one in continuations:
        before, after = comparable(one.clip, one.made)
        cut, rate = one.cut, one.made.sample_rate
        if cut.direction is not None:
            directions.append(_course(after, cut, rate) == cut.direction)
        pitches.append(_same_pitch(before, after, cut, rate, within=_SEMITONE))
        steps.append(_level_step(before, after, cut, rate))
        if cut.direction is None:
            kept.append(steps[-1] <= _LOUDNESS and _same_pitch(before, after, cut, rate, within=_PITCH_CLASS))
    scores: Scores = {"direction": share(directions)} if directions else {}
    scores |= {"kept": share(kept)} if kept else {}
    attributes = attribute_scores([heard_attributes(one.item, one.made) for one in continuations])
    return scores | {
        "pitch": share(pitches),
        "level_step": Score(float(np.median(steps)), len(steps)),
        "right": attributes["right"],
        "attributes": attributes["attributes"],
    }


def _course(waveform: np.ndarray, cut: Cut, rate: int) -> str | None:
    """Return the direction in which the pitch goes from the join to the end of the sound."""
    middle = (cut.join + cut.end) / 2
    first, last = _pitch(waveform, cut.join, middle, rate), _pitch(waveform, middle, cut.end, rate)
    return None if first is None or last is None else ("rising" if last > first else "falling")


def _same_pitch(before: np.ndarray, after: np.ndarray, cut: Cut, rate: int, *, within: float) -> bool:
    """Return whether the pitch right after the join is within so many semitones of the clip's own there."""
    end = min(cut.join + WINDOW, cut.end)
    true, found = _pitch(before, cut.join, end, rate), _pitch(after, cut.join, end, rate)
    return true is not None and found is not None and abs(12.0 * math.log2(found / true)) <= within


def _pitch(waveform: np.ndarray, start: float, end: float, rate: int) -> float | None:
    """Return the median pitch in Hz of the part from `start` to `end` in seconds; None if it has none."""
    import numpy as np

    from soundomni.data.toys.pitch import pitch_track

    frequency, clarity = pitch_track(waveform[round(start * rate) : round(end * rate)], rate)
    clear = frequency[clarity >= _MIN_CLARITY]
    return float(np.median(clear)) if len(clear) else None


def _level_step(before: np.ndarray, after: np.ndarray, cut: Cut, rate: int) -> float:
    """Return the difference in dB between the level right after the join and that of the clip right before it."""
    import numpy as np

    join, width = round(cut.join * rate), round(WINDOW * rate)

    def level(part: np.ndarray) -> float:
        return float(10.0 * np.log10(np.mean(part**2) + 1e-12))

    return abs(level(after[join : join + width]) - level(before[join - width : join]))
