"""Synthesis of toy sounds: a recipe and a random generator make a waveform.

What the recipe leaves open (phases, onsets, durations, the exact course of a chirp, the noise itself) is drawn from the
generator, to the extent of `variation`: at 0 a recipe is always the same sound, except for its noise. Levels are exact:
see LEVELS. Events are separated by at least MIN_GAP seconds, clicks of one event by at most MAX_CLICK_SPACING.

Shape letters: S samples, N samples of one event.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from soundomni.data.toys.toy_recipe import CLICK_WINDOW, LEVELS, Event, Recipe, note_frequency

MIN_SAMPLE_RATE = 6000
"""Lowest sample rate, in Hz; lower ones leave no band for high noise."""
MIN_SECONDS = {1: 0.4, 2: 0.8}
"""Shortest clip for a number of events, in seconds."""
MIN_GAP = 0.18
MAX_CLICK_SPACING = 0.085
BANDS = {"white": (0.0, np.inf), "low": (0.0, 700.0), "high": (2000.0, np.inf)}
"""Frequencies of each color of noise, in Hz."""
CENTS_PER_OCTAVE = 1200.0

_MIN_CLICK_SPACING = 0.065
_LEAD = 0.1  # a sustained event leaves up to this share of its slot free on each side
_FADE = 0.008
_CLICK_DECAY = 0.003
_TABLE_SIZE = 8192
_MAX_HARMONICS = 64


def synthesize(
    recipe: Recipe,
    *,
    sample_rate: int,
    seconds: float,
    rng: np.random.Generator,
    variation: float = 1.0,
    detune: Sequence[float] | None = None,
) -> np.ndarray:
    """Make a clip of one or two events.

    Args:
        recipe: events with all attributes of their kind stated.
        sample_rate: in Hz, at least MIN_SAMPLE_RATE.
        seconds: length, at least MIN_SECONDS for the number of events.
        rng: generator for everything that the recipe leaves open.
        variation: from 0, where only noise is random, to 1, where everything is.
        detune: cents by which each event is off its note; None for none.

    Returns:
        float32 `[1, S]` in [-1, 1], with S = round(seconds * sample_rate).
    """
    clip = np.zeros((1, round(seconds * sample_rate)), dtype=np.float32)
    slot = (seconds - MIN_GAP * (len(recipe.events) - 1)) / len(recipe.events)
    for index, event in enumerate(recipe.events):
        begin, end = variation * rng.uniform(0.0, _LEAD * slot, 2) * (1, -1) + index * (slot + MIN_GAP) + np.array((0.0, slot))
        first, last = round(begin * sample_rate), min(round(end * sample_rate), clip.shape[1])
        cents = 0.0 if detune is None else detune[index]
        clip[0, first:last] = _render(event, first, last, sample_rate, rng, variation, cents)
    return np.clip(clip, -1.0, 1.0)


def _render(event: Event, first: int, last: int, rate: int, rng: np.random.Generator, variation: float, cents: float) -> np.ndarray:
    """Return one event `[N]` at its level, for the samples `first` to `last` of a clip; a tone is `cents` off its
    note."""
    num_samples = last - first
    level = 10.0 ** (LEVELS[str(event.loudness)] / 20.0)
    if event.kind == "clicks":
        return np.asarray(level * _clicks(event.clicks or 1, num_samples, rate, rng, variation))
    if event.kind == "tone":
        frequency = note_frequency(str(event.note)) * 2.0 ** (cents / CENTS_PER_OCTAVE)
        wave = _tone(str(event.waveform), frequency, np.arange(first, last) / rate, variation * rng.random(), rate)
    elif event.kind == "chirp":
        wave = _chirp(event.direction == "rising", num_samples, rate, rng, variation)
    else:
        wave = _noise(str(event.color), num_samples, rate, rng)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(round(_FADE * rate)) + 0.5) / round(_FADE * rate))
    wave *= level / np.sqrt(np.mean(wave**2))
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave


def _tone(waveform: str, frequency: float, times: np.ndarray, phase: float, rate: int) -> np.ndarray:
    """Return a steady tone at `times` in seconds, with every harmonic below the Nyquist frequency and none above:
    nothing aliases.

    Its phase, as a share of the period, is that at the beginning of the clip, not of the event: whatever part of a clip
    a tone fills, it is the same tone there, so that what is learned about one place holds for all.
    """
    table = _wavetable(waveform, min(_MAX_HARMONICS, int(0.49 * rate / frequency)))
    place = (frequency * times + phase) % 1.0 * _TABLE_SIZE
    index = place.astype(np.int64)
    return np.asarray(table[index] + (place - index) * (table[index + 1] - table[index]))


@functools.lru_cache(maxsize=256)
def _wavetable(waveform: str, num_harmonics: int) -> np.ndarray:
    """Return one period from its Fourier series `[_TABLE_SIZE + 1]`, the first value repeated at the end for
    interpolation."""
    order = np.arange(1, num_harmonics + 1)
    odd = order % 2 == 1
    amplitudes = {
        "sine": np.where(order == 1, 1.0, 0.0),
        "square": np.where(odd, 1.0 / order, 0.0),
        "sawtooth": 1.0 / order,
        "triangle": np.where(odd, (-1.0) ** (order // 2) / order**2, 0.0),
    }[waveform]
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : num_harmonics + 1] = -1j * amplitudes
    period = np.fft.irfft(spectrum)
    return np.append(period, period[0])


def _chirp(rising: bool, num_samples: int, rate: int, rng: np.random.Generator, variation: float) -> np.ndarray:
    """Return a sine that sweeps 1 to 1.6 octaves at a constant rate in octaves per second, somewhere between 180 and
    910 Hz."""
    low, octaves = _between(180.0, 300.0, rng, variation), _between(1.0, 1.6, rng, variation)
    phase = variation * rng.uniform(0.0, 2.0 * np.pi)
    course = np.linspace(0.0, octaves, num_samples)
    frequency = low * 2.0 ** (course if rising else course[::-1])
    return np.asarray(np.sin(phase + 2.0 * np.pi / rate * np.cumsum(frequency)))


def _noise(color: str, num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise of a flat band: independent normal Fourier coefficients within it, none outside."""
    size = 1 << (num_samples - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1.0 / rate)
    low, high = BANDS[color]
    first, last = np.searchsorted(frequency, [max(low, frequency[1]), high])
    spectrum = np.zeros(len(frequency), dtype=np.complex128)
    spectrum[first:last] = rng.standard_normal((last - first, 2)).view(np.complex128)[:, 0]
    return np.fft.irfft(spectrum)[:num_samples]


def _clicks(count: int, num_samples: int, rate: int, rng: np.random.Generator, variation: float) -> np.ndarray:
    """Return equally spaced damped oscillations; each has an RMS of 1 over CLICK_WINDOW."""
    spacing = _between(_MIN_CLICK_SPACING, MAX_CLICK_SPACING, rng, variation)
    frequency = _between(1000.0, 2000.0, rng, variation)
    time = np.arange(round(CLICK_WINDOW * rate)) / rate
    click = np.exp(-time / _CLICK_DECAY) * np.sin(2.0 * np.pi * frequency * time)
    click /= np.sqrt(np.sum(click**2) / len(click))
    wave = np.zeros(num_samples)
    for index in range(count):
        start = round(index * spacing * rate)
        wave[start : start + len(click)] = click[: num_samples - start]
    return wave


def _between(low: float, high: float, rng: np.random.Generator, variation: float) -> float:
    """Draw around the middle of an interval, of which the share `variation` is used."""
    middle = 0.5 * (low + high)
    return middle + variation * (rng.uniform(low, high) - middle)
