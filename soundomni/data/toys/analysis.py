"""Sounds measured from their waveforms: events, and their kind, pitch, course, count, level and spectrum.

It hears the attributes of toy recipes in any audio, clean or generated, so that a model can be judged attribute by
attribute. It is plain signal processing without learned parts: energy for segments and clicks, the normalized square
difference for pitch, ratios of harmonics for the waveform, and ratios of band densities for the color of noise.

Shape letters: C channels, S samples, M frames of the envelope, N samples of an event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soundomni.core.errors import DataError
from soundomni.data.toys.pitch import pitch_track
from soundomni.data.toys.toy_recipe import CLICK_WINDOW, LEVELS, Event, Kind, Recipe, agreement, nearest_note

MIN_SAMPLE_RATE = 6000
SILENCE_DB = -55.0
"""A clip that never exceeds this level (dB of full scale) has no event."""

_HOP = 0.0025
_MERGE_GAP = 0.12  # seconds: longer than between clicks of one event, shorter than between events
_MIN_EVENT = 0.012
_MIN_RANGE = 10.0  # dB between the loudest frame and the quietest stretch; if it is less, the event fills the clip
_MAX_CLICK = 0.05
_TRIM = 0.012  # seconds at each end of a sustained event that are fades, not the sound itself
_MIN_CLARITY = 0.65
_MIN_SWEEP = 4.0  # semitones between the first and the last third
_MAX_SPECTRUM_SECONDS = 4.0
_LOW_BAND, _HIGH_BAND = (100.0, 700.0), (2000.0, 3600.0)
_COLOR_DB = 7.0


@dataclass(frozen=True, kw_only=True)
class EventReport:
    """One measured event.

    Args:
        kind: tone, chirp, clicks or noise.
        onset, offset: in seconds.
        level: in dB of full scale: RMS of a sustained event; for clicks, RMS over CLICK_WINDOW.
        centroid: power-weighted mean frequency in Hz.
        harmonicity: how periodic it is, from 0 to 1.
        pitch: fundamental frequency of a tone, in Hz.
        waveform: waveform of a tone with the most similar harmonics: sine, square, sawtooth or triangle.
        sweep: for a chirp, semitones from its first to its last third, negative if falling.
        clicks: number of clicks.
        color: color of noise: white, low or high.
    """

    kind: Kind
    onset: float
    offset: float
    level: float
    centroid: float
    harmonicity: float
    pitch: float | None = None
    waveform: str | None = None
    sweep: float | None = None
    clicks: int | None = None
    color: str | None = None

    @property
    def event(self) -> Event:
        """The nearest event of a recipe: nearest note, nearest loudness."""
        return Event(
            kind=self.kind,
            loudness=min(LEVELS, key=lambda name: abs(LEVELS[name] - self.level)),
            waveform=self.waveform,
            note=None if self.pitch is None else nearest_note(self.pitch),
            direction=None if self.sweep is None else ("rising" if self.sweep > 0 else "falling"),
            clicks=self.clicks,
            color=self.color,
        )


@dataclass(frozen=True)
class SoundReport:
    """A measured clip: its events in order, its RMS level in dB of full scale (-inf for silence), its length in
    seconds."""

    events: tuple[EventReport, ...]
    level: float
    seconds: float

    @property
    def recipe(self) -> Recipe:
        """The nearest recipe."""
        return Recipe(tuple(event.event for event in self.events))


def analyze(waveform: np.ndarray, rate: int) -> SoundReport:
    """Measure a clip.

    Args:
        waveform: float `[C, S]` or `[S]`, full scale 1; channels are averaged.
        rate: in Hz, at least MIN_SAMPLE_RATE.

    Raises:
        DataError: the rate is lower, or samples are not finite.
    """
    if rate < MIN_SAMPLE_RATE:
        raise DataError(f"the sample rate is {rate} Hz; expected at least {MIN_SAMPLE_RATE} Hz for sound analysis. Resample the clip")
    if not np.isfinite(waveform).all():
        raise DataError("the clip has samples that are NaN or infinite; expected finite ones for sound analysis")
    if not np.size(waveform):
        return SoundReport((), -np.inf, 0.0)
    signal = np.atleast_2d(np.asarray(waveform, dtype=np.float64)).mean(0)
    signal = signal - signal.mean()
    envelope = _envelope(signal, rate)
    events = tuple(_measure(signal, envelope, first, last, rate) for first, last in _segments(envelope))
    return SoundReport(events, _decibels(np.mean(signal**2)), len(signal) / rate)


def compare(recipe: Recipe, report: SoundReport) -> dict[str, bool]:
    """Return for each attribute that a recipe states whether the sound has it; the attributes are those of `agreement`.

    A pitch counts within half a semitone, a loudness by the nearer level, a count and an order if they are exact.
    """
    return agreement(recipe, report.recipe)


def _decibels(power: float | np.floating) -> float:
    return float(10.0 * np.log10(power)) if power > 0 else -np.inf


def _envelope(signal: np.ndarray, rate: int) -> np.ndarray:
    """Return the level in dB `[M]` of windows of CLICK_WINDOW, centered on every _HOP seconds; at least -200."""
    half = round(CLICK_WINDOW * rate / 2)
    energy = np.pad(np.cumsum(np.pad(signal, half) ** 2), (1, 0))
    centers = np.round(np.arange(0.0, len(signal) / rate, _HOP) * rate).astype(int)
    power = (energy[np.minimum(centers + 2 * half, len(energy) - 1)] - energy[centers]) / (2 * half)
    return np.asarray(10.0 * np.log10(np.maximum(power, 1e-20)))


def _runs(active: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last + 1) of each run of True."""
    edges = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _segments(envelope: np.ndarray) -> list[tuple[int, int]]:
    """Return the frames (first, last + 1) of each event: stretches clearly above the quietest _MERGE_GAP seconds of the
    clip.

    Above a background the threshold is 7 dB, or a third of the range if that is less, so that a quiet event next to a
    loud one still counts. An event that fills the clip leaves no background to compare with. Nothing counts 30 dB below
    the loudest frame.
    """
    peak = envelope.max()
    if peak < SILENCE_DB:
        return []
    width = min(round(_MERGE_GAP / _HOP), len(envelope))
    power = np.pad(np.cumsum(10.0 ** (envelope / 10.0)), (1, 0))
    floor = 10.0 * np.log10(max(1e-20, (power[width:] - power[:-width]).min() / width))
    above = min(7.0, (peak - floor) / 3.0) if peak - floor > _MIN_RANGE else -np.inf
    threshold = max(peak - 30.0, floor + above)
    merged: list[tuple[int, int]] = []
    for first, last in _runs(envelope > threshold):
        if merged and (first - merged[-1][1]) * _HOP < _MERGE_GAP:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return [(first, last) for first, last in merged if (last - first) * _HOP >= _MIN_EVENT]


def _measure(signal: np.ndarray, envelope: np.ndarray, first: int, last: int, rate: int) -> EventReport:
    """Measure the event in frames `first` to `last`."""
    onset, offset = first * _HOP, min(last * _HOP, len(signal) / rate)
    part = signal[round(onset * rate) : round(offset * rate)]
    levels = envelope[first:last]
    clicks = _click_levels(levels)
    if clicks is not None:
        power = np.mean(10.0 ** (clicks / 10.0))
        _, clarity = pitch_track(part, rate)
        return EventReport(
            kind="clicks",
            onset=onset,
            offset=offset,
            level=_decibels(power),
            centroid=_centroid(part, rate),
            harmonicity=float(np.median(clarity)),
            clicks=len(clicks),
        )
    trim = min(round(_TRIM * rate), len(part) // 4)
    return _measure_sustained(part[trim : len(part) - trim], onset, offset, rate)


def _click_levels(levels: np.ndarray) -> np.ndarray | None:
    """Return the level of each click, or None if the event is sustained.

    Clicks are short bursts between deep valleys; the threshold is half way down to the valleys, 6 to 10 dB below the
    peak.
    """
    depth = levels.max() - np.percentile(levels, 10)
    bursts = _runs(levels > levels.max() - np.clip(depth / 2.0, 6.0, 10.0))
    if max(end - begin for begin, end in bursts) * _HOP > _MAX_CLICK:
        return None
    return np.array([levels[begin:end].max() for begin, end in bursts])


def _measure_sustained(part: np.ndarray, onset: float, offset: float, rate: int) -> EventReport:
    """Measure a tone, chirp or noise `[N]`, given without its fades."""
    frequency, clarity = pitch_track(part, rate)
    kind: Kind = "noise"
    pitch = waveform = sweep = color = None
    if np.median(clarity) < _MIN_CLARITY:
        color = _color(part, rate)
    else:
        voiced = frequency[clarity >= _MIN_CLARITY]
        third = (len(voiced) + 2) // 3
        course = 12.0 * float(np.log2(np.median(voiced[-third:]) / np.median(voiced[:third])))
        if abs(course) >= _MIN_SWEEP:
            kind, sweep = "chirp", course
        else:
            kind = "tone"
            pitch, waveform = _tone(part, float(np.median(voiced)), rate)
    return EventReport(
        kind=kind,
        onset=onset,
        offset=offset,
        level=_decibels(np.mean(part**2)),
        centroid=_centroid(part, rate),
        harmonicity=float(np.clip(np.median(clarity), 0.0, 1.0)),
        pitch=pitch,
        waveform=waveform,
        sweep=sweep,
        color=color,
    )


def _spectrum(part: np.ndarray, rate: int, *, padding: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies in Hz and magnitudes of the middle of the event under a Hann window, zero-padded `padding`
    times."""
    size = min(len(part), round(_MAX_SPECTRUM_SECONDS * rate))
    start = (len(part) - size) // 2
    length = padding << max(1, (size - 1).bit_length())
    magnitude = np.abs(np.fft.rfft(part[start : start + size] * np.hanning(size + 2)[1:-1], length))
    return np.fft.rfftfreq(length, 1.0 / rate), magnitude


def _centroid(part: np.ndarray, rate: int) -> float:
    frequency, magnitude = _spectrum(part, rate)
    power = magnitude**2
    return float((frequency * power).sum() / max(power.sum(), 1e-30))


def _tone(part: np.ndarray, pitch: float, rate: int) -> tuple[float, str]:
    """Refine the pitch at the spectral peak of the fundamental, and name the waveform by the second and third
    harmonics.

    Relative to the fundamental they are (0, 0) for a sine, (0, 1/3) for a square, (1/2, 1/3) for a sawtooth and (0,
    1/9) for a triangle wave; the thresholds are the geometric means, with 1/60 in place of 0.
    """
    frequency, magnitude = _spectrum(part, rate, padding=4)
    reach = max(0.02 * pitch, 1.5 * rate / len(part))

    def strongest(order: int) -> int:
        low, high = np.searchsorted(frequency, [order * pitch - reach, order * pitch + reach])
        return int(low + np.argmax(magnitude[low : high + 1])) if low < len(magnitude) else 0

    fundamental = strongest(1)
    pitch = float(frequency[fundamental])
    second, third = (magnitude[strongest(order)] / magnitude[fundamental] for order in (2, 3))
    if second > np.sqrt(1 / 2 * 1 / 60):
        return pitch, "sawtooth"
    if third > np.sqrt(1 / 3 * 1 / 9):
        return pitch, "square"
    return pitch, "triangle" if third > np.sqrt(1 / 9 * 1 / 60) else "sine"


def _color(part: np.ndarray, rate: int) -> str:
    """Return the color of noise from its density in a low and a high band, which does not depend on the sample rate."""
    frequency, magnitude = _spectrum(part, rate)
    density = [float(np.mean(magnitude[(frequency >= low) & (frequency < high)] ** 2)) for low, high in (_LOW_BAND, _HIGH_BAND)]
    difference = _decibels(density[0] + 1e-30) - _decibels(density[1] + 1e-30)
    if abs(difference) < _COLOR_DB:
        return "white"
    return "low" if difference > 0 else "high"
