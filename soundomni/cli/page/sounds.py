"""From an audio file to what the page shows: its bytes, its outline, its spectrogram, and what signal analysis hears in
it.

Shape letters: C channels, S samples, F frequencies, T frames.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from soundomni.cli.page.report import Sound, Verdict

if TYPE_CHECKING:
    import numpy as np

    from soundomni.data.toys.toy_recipe import Recipe

LEVELS = (-80.0, -10.0)
"""dB of full scale at the ends of the colors: the same in all pictures, so that quiet clips look quiet."""
COLOR_MAP = "magma"
LOWEST = 50.0
"""Lowest frequency shown, in Hz: no toy sound is below it, and it would take up most of a logarithmic axis."""
STRETCHES = 240


def show_sound(path: Path, root: Path) -> Sound:
    """Read an audio file below `root`, the page's folder. Raise UnreadableAudioError if it cannot be read."""
    import numpy as np

    from soundomni.data.audio import read_audio
    from soundomni.data.spectrogram import log_spectrogram

    waveform, rate = read_audio(path)
    level, rows, _ = log_spectrogram(waveform, rate)
    level, rows = level[rows >= LOWEST], rows[rows >= LOWEST]
    half_row = float(np.sqrt(rows[1] / rows[0]))
    return Sound(
        file=path.relative_to(root).as_posix(),
        wav=path.read_bytes(),
        spectrogram=picture(level),
        size=(level.shape[1], level.shape[0]),
        frequencies=(float(rows[0]) / half_row, float(rows[-1]) * half_row),
        outline=outline(waveform),
        seconds=waveform.shape[1] / rate,
    )


def picture(level: np.ndarray) -> bytes:
    """Return the PNG of levels in dB `[F, T]`, the lowest frequency at the bottom, in the colors of LEVELS."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, level, cmap=COLOR_MAP, vmin=LEVELS[0], vmax=LEVELS[1], origin="lower", format="png", metadata={"Software": "soundomni"})
    return buffer.getvalue()


def colors() -> bytes:
    """Return the PNG of all colors from the lowest to the highest level."""
    import numpy as np

    return picture(np.linspace(*LEVELS, 256)[None])


def outline(waveform: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Return the lowest and the highest sample of any channel of `[C, S]` in each of at most STRETCHES stretches."""
    import numpy as np

    starts = np.unique(np.linspace(0, waveform.shape[1], STRETCHES, endpoint=False).astype(int))
    low = np.minimum.reduceat(waveform, starts, axis=1).min(0)
    high = np.maximum.reduceat(waveform, starts, axis=1).max(0)
    return tuple((round(float(a), 4), round(float(b), 4)) for a, b in zip(low, high, strict=True))


def judge(recipe: Recipe, path: Path) -> tuple[Verdict, ...]:
    """Return for each attribute that a recipe states what signal analysis hears in an audio file."""
    from soundomni.data.audio import read_audio
    from soundomni.data.toys.analysis import analyze, compare

    report = analyze(*read_audio(path))
    wanted, heard = attributes(recipe), attributes(report.recipe)
    return tuple(
        Verdict(name=name, wanted=wanted[name], heard=heard.get(name, ""), right=right) for name, right in compare(recipe, report).items()
    )


def attributes(recipe: Recipe) -> dict[str, str]:
    """Return the values of the attributes that `agreement` compares, in words, ordered by time if there are several
    events.

    >>> from soundomni.data.toys.toy_language import parse_caption >>> attributes(parse_caption("two loud clicks, then
    white noise")) {'events': '2', 'kinds': 'clicks, noise', 'order': 'clicks, noise', 'clicks': '2', 'noise': 'white',
    'loudness': 'loud'}
    """
    events = recipe.events
    columns: dict[str, list[str | int | None]] = {
        "kinds": [event.kind for event in events],
        "order": [event.kind for event in events],
        "waveform": [event.waveform for event in events],
        "pitch": [event.note for event in events],
        "direction": [event.direction for event in events],
        "clicks": [event.clicks for event in events],
        "noise": [event.color for event in events],
        "loudness": [event.loudness for event in events],
    }
    stated = {name: ", ".join(str(value) for value in values if value is not None) for name, values in columns.items()}
    return {"events": str(len(events)), **{name: text for name, text in stated.items() if text}}
