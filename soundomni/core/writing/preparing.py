"""Preparation of clips for a model's task, in training and in use: the part that counts, one length, one level.

Shape letters: C audio channels, S samples of a clip, L samples of a prepared one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soundomni.core.loudness import loudness
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.waveform import Audio, fit_length

ONSET_SHARE, ONSET_SECONDS = 0.05, 0.005
"""Share of the peak that the onset reaches, and seconds that are kept before it."""
FADE_SECONDS = 0.05
"""Length of the fade-out where a clip is cut."""
SHORT = 10
"""What is kept before the onset, and the fade-out, each take at most one part in this many of a clip."""
SILENT_PEAK = 1e-4
"""A clip that never reaches this, -80 dB, counts as silence: no onset is looked for, and it does not become louder."""
_SAME = 1e-6
"""A gain this close to 1 comes from rounding and is not applied, so that a prepared clip stays as it is."""


@dataclass(frozen=True)
class Part:
    """The part of a clip that is used.

    Args:
        first, end: its samples, [first, end).
        is_cut: whether the clip goes on after it.
    """

    first: int
    end: int
    is_cut: bool


def prepared_length(num_samples: int, sample_rate: int, clips: ClipSpec) -> int:
    """Return L for a clip of S samples: the whole samples within `clips.seconds`, or S without it."""
    return num_samples if clips.seconds is None else max(1, int(clips.seconds * sample_rate + 1e-6))


def prepare(waveform: np.ndarray, sample_rate: int, clips: ClipSpec, *, draw: float = 0.0) -> np.ndarray:
    """Return a clip, float32 `[C, S]`, as `[C, L]`. Preparing it again changes nothing but rounding.

    Args:
        waveform: the clip.
        sample_rate: its rate in Hz.
        clips: how to prepare it.
        draw: the random place at which a clip is cut, from 0, the first one, to below 1.
    """
    part = find_part(waveform, sample_rate, clips, draw=draw)
    return finish(waveform[:, part.first : part.end], sample_rate, clips, is_cut=part.is_cut)


def known_part(num_samples: int, sample_rate: int, clips: ClipSpec, *, draw: float = 0.0) -> Part | None:
    """Return the part of a clip of S samples that is used, or None if only the samples themselves can tell."""
    if clips.trim is not None or clips.cut == "onset":
        return None
    return _plain_part(num_samples, sample_rate, clips, draw)


def find_part(waveform: np.ndarray, sample_rate: int, clips: ClipSpec, *, draw: float = 0.0) -> Part:
    """Return the part of a clip `[C, S]` that is used. The arguments are those of `prepare`."""
    total = waveform.shape[1]
    known = known_part(total, sample_rate, clips, draw=draw)
    if known is not None:
        return known
    loud = np.abs(waveform).max(axis=0)
    peak = float(loud.max())
    if peak < SILENT_PEAK:
        return _plain_part(total, sample_rate, clips, draw)
    wanted = prepared_length(total, sample_rate, clips)
    begin, end = (0, total) if clips.trim is None else _sounding(loud, clips.trim)
    if clips.cut == "random":
        if total <= wanted:
            return Part(0, total, False)
        low, high = (begin, end - wanted) if end - begin >= wanted else (max(0, end - wanted), min(begin, total - wanted))
        first = low + int(draw * (high - low + 1))
        return Part(first, first + wanted, True)
    if clips.cut == "onset":
        onset = int(np.argmax(loud >= ONSET_SHARE * peak))
        begin = max(0, onset - min(int(ONSET_SECONDS * sample_rate), wanted // SHORT))
    return Part(begin, min(end, begin + wanted), end > begin + wanted)


def finish(part: np.ndarray, sample_rate: int, clips: ClipSpec, *, is_cut: bool) -> np.ndarray:
    """Return a copy of the part of a clip that is used, at its final length and level, `[C, L]`.

    Args:
        part: the part, `[C, at most L]`.
        sample_rate, clips: as in `prepare`.
        is_cut: whether the clip goes on after it.
    """
    shaped = shape(part, sample_rate, clips, is_cut=is_cut)
    factor = gain(shaped, sample_rate, clips)
    return shaped if factor == 1.0 else shaped * np.float32(factor)


def shape(part: np.ndarray, sample_rate: int, clips: ClipSpec, *, is_cut: bool) -> np.ndarray:
    """Do what `finish` does, except for the level."""
    wanted = prepared_length(part.shape[1], sample_rate, clips)
    shaped = np.array(fit_length(part, wanted), dtype=np.float32)
    if clips.cut == "random":
        return shaped
    fade = min(int(FADE_SECONDS * sample_rate), wanted // SHORT)
    if is_cut and fade:
        shaped[:, -fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    if clips.trim is not None and (peak := np.abs(shaped)).max() >= SILENT_PEAK:
        shaped[:, _sounding(peak.max(axis=0), clips.trim)[1] :] = 0.0  # what has become quiet in the fade-out, too
    return shaped


def gain(shaped: np.ndarray, sample_rate: int, clips: ClipSpec) -> float:
    """Return the factor that gives a clip `[C, L]` its level; 1 for silence."""
    peak = float(np.abs(shaped).max())
    if peak < SILENT_PEAK:
        return 1.0
    factor = 1.0
    if clips.peak is not None:
        factor = clips.peak / peak
    elif clips.loudness is not None and np.isfinite(measured := loudness(shaped, sample_rate)):
        factor = min(10.0 ** ((clips.loudness - measured) / 20.0), 1.0 / peak)
    return 1.0 if abs(factor - 1.0) < _SAME else factor


def prepared(clip: Audio, clips: ClipSpec | None) -> Audio:
    """Return a clip for a model, prepared as in its training, except that a random cut takes the start."""
    return clip if clips is None else Audio.unchecked(prepare(clip.waveform, clip.sample_rate, clips), clip.sample_rate)


def _plain_part(num_samples: int, sample_rate: int, clips: ClipSpec, draw: float) -> Part:
    wanted = prepared_length(num_samples, sample_rate, clips)
    room = max(0, num_samples - wanted)
    first = int(draw * (room + 1)) if clips.cut == "random" else 0
    return Part(first, min(num_samples, first + wanted), num_samples > first + wanted)


def _sounding(loud: np.ndarray, trim: float) -> tuple[int, int]:
    """Return the samples, [first, end), between which `[S]` absolute samples reach `trim` decibels below their peak."""
    places = np.flatnonzero(loud >= loud.max() * 10.0 ** (-trim / 20.0))
    return int(places[0]), int(places[-1]) + 1
