"""A picture of a sound: its waveform above its spectrogram on a logarithmic frequency axis.

Shape letters: C channels, S samples, F frequencies, T frames.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soundomni.core.errors import DataError
from soundomni.core.files.whole_files import write_whole
from soundomni.metrics.waveform_distances import magnitudes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RANGE_DB = 80.0
_QUIETEST_TOP_DB = -60.0  # a silent clip is drawn as silence, not as amplified rounding errors
_MAX_FRAMES = 1000
_MAX_POINTS = 20000
_MAX_STRETCHES = 1500
_NUM_ROWS = 256
_TITLE_SIZE = 11
_LINE_HEIGHT = 0.035  # of a title, as a share of the picture's height
_TITLE_WIDTH = 0.9  # share of the picture's width
_MAX_LINES = 3
_MOST_LETTERS = 1000
_MOST_ACCENTS = 2
_TICKS_HZ = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)


def save_spectrogram(path: str | Path, waveform: np.ndarray, rate: int, *, title: str | None = None) -> Path:
    """Draw a clip and write it as PNG in one step: the file is complete or does not exist.

    Args:
        path: path of the picture; its directory must exist.
        waveform: float `[C, S]`, full scale 1, any number of channels and at least one sample. The channels' waveforms
            are drawn over each other; the spectrogram shows their mean power.
        rate: in Hz.
        title: printed above the picture, never as markup, on at most _MAX_LINES lines; letters that the font lacks are
            drawn as boxes.

    Returns:
        the path.

    Raises:
        DataError: the picture cannot be written, or the clip is empty or not finite.
    """
    if waveform.ndim != 2 or waveform.size == 0 or not np.isfinite(waveform).all():
        raise DataError(f"the waveform has shape {tuple(waveform.shape)}; expected [C, S] with at least one sample, all finite")
    path = Path(path)
    try:
        write_whole(path, _draw(waveform, rate, title))
    except OSError as error:
        raise DataError(
            f"the picture '{path}' cannot be written: {error.strerror or error}; name a file in a writable directory"
        ) from error
    return path


def log_spectrogram(waveform: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the spectrogram that the picture shows.

    Args:
        waveform: float `[C, S]`.
        rate: in Hz.

    Returns:
        level in dB `[F, T]` (0 for a sine of full scale, at least -200), frequencies in Hz `[F]`, logarithmically
        spaced up to the Nyquist frequency, and times in seconds `[T]`, at most about 1000 of them.
    """
    fft_size = 1 << max(8, round(np.log2(0.064 * rate)))
    hop = max(1, fft_size // 16, -(-waveform.shape[1] // _MAX_FRAMES))
    # one channel after another: all of them at once could take C times the memory
    power = sum(magnitudes(channel[None], fft_size, hop)[0] ** 2 for channel in waveform.astype(np.float64)) / len(waveform)
    linear = np.fft.rfftfreq(fft_size, 1.0 / rate)
    rows = np.geomspace(max(20.0, linear[1]), rate / 2, _NUM_ROWS)
    level = 10.0 * np.log10(np.maximum(_log_rows(power, rows / linear[1]), 1e-20))
    return level, rows, np.arange(power.shape[1]) * hop / rate


def _log_rows(power: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Map linear frequency bins `[bins, T]` to rows at fractional bins `place` `[F]`, ascending up to the last bin.

    Rows narrower than a bin are interpolated; wider ones show their strongest bin, so that no narrow line falls between
    two rows.
    """
    below = np.minimum(place.astype(int), len(power) - 2)
    share = (place - below)[:, None]
    interpolated = power[below] * (1.0 - share) + power[below + 1] * share
    step = np.sqrt(place[1] / place[0])
    first = np.clip(np.ceil(place / step).astype(int), 0, len(power) - 1)
    strongest = np.maximum.reduceat(power, first, axis=0)
    is_wide = np.append(first[1:], len(power)) > first
    return np.asarray(np.where(is_wide[:, None], strongest, interpolated))


def _draw(waveform: np.ndarray, rate: int, title: str | None) -> bytes:
    """Return the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=100)
    canvas = FigureCanvasAgg(figure)
    below = figure.add_axes((0.11, 0.1, 0.77, 0.57))  # places are fixed, because finding them would take half of the time
    scale = figure.add_axes((0.89, 0.1, 0.02, 0.57))
    lines = _draw_title(figure, title, canvas.get_renderer()) if title else 0
    above = figure.add_axes((0.11, 0.69, 0.77, 0.28 - _LINE_HEIGHT * lines), sharex=below)
    above.tick_params(labelbottom=False)
    for axes in (above, below):
        axes.yaxis.set_label_coords(-0.105, 0.5)
    _draw_waveform(above, waveform, rate)
    mesh = _draw_levels(below, waveform, rate)
    below.set_xlim(0.0, waveform.shape[1] / rate)
    figure.colorbar(mesh, cax=scale, label="level (dB)")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        _ignore_missing_glyphs()
        canvas.print_png(buffer)
    return buffer.getvalue()


def _draw_title(figure: Figure, title: str, renderer: Any) -> int:
    """Draw a title at the top, as it is, and return its number of lines.

    matplotlib wraps text as mathematics even if it draws it as text, and fails on a "$".
    """
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=_TITLE_SIZE)
    widest = _TITLE_WIDTH * figure.bbox.width

    def fits(line: str) -> bool:
        return bool(renderer.get_text_width_height_descent(line, font, ismath=False)[0] <= widest)

    with warnings.catch_warnings():
        _ignore_missing_glyphs()
        lines = _wrapped(_plain(title)[:_MOST_LETTERS], fits)
    place: dict[str, Any] = {"x": 0.5, "y": 1.0 - 0.3 * _LINE_HEIGHT, "horizontalalignment": "center", "verticalalignment": "top"}
    figure.text(**place, s="\n".join(lines), fontproperties=font, parse_math=False, usetex=False)
    return len(lines)


def _plain(title: str) -> str:
    """Return a title on one line, with a replacement character for each one that cannot be drawn, such as control
    characters.

    Accents beyond _MOST_ACCENTS on one letter are left out, because they would push the sound out of the picture.
    """
    letters: list[str] = []
    accents = 0
    for letter in unicodedata.normalize("NFC", " ".join(title.split())):
        category = unicodedata.category(letter)
        accents = accents + 1 if category in ("Mn", "Me") else 0
        if category != "Cf" and accents <= _MOST_ACCENTS:  # Cf: format characters, which have no shape
            letters.append(letter if letter.isprintable() else "\ufffd")
    return "".join(letters)


def _wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Break text into lines that fit, between words if possible; text beyond _MAX_LINES ends in dots."""
    lines = [""]
    for letter in text:
        if fits(lines[-1] + letter):
            lines[-1] += letter
            continue
        if len(lines) == _MAX_LINES:
            lines[-1] = lines[-1][:-1] + "…"
            break
        before, space, word = lines[-1].rpartition(" ")
        lines[-1:] = [before, word + letter] if space and letter != " " else [lines[-1], letter.strip()]
    return lines


def _ignore_missing_glyphs() -> None:
    """Silence matplotlib's warnings about letters and scripts that its font lacks, within `warnings.catch_warnings`."""
    for message in (r"(?s)Glyph \d+ .* missing from font", "Matplotlib currently does not support"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)


def _draw_waveform(axes: Axes, waveform: np.ndarray, rate: int) -> None:
    """Draw every channel; long clips as the lowest and highest sample in each of _MAX_STRETCHES stretches, which looks
    the same."""
    alpha = max(0.15, 0.9 / np.sqrt(len(waveform)))
    starts = np.unique(np.linspace(0, waveform.shape[1], _MAX_STRETCHES, endpoint=False).astype(int))
    for channel in waveform:
        if len(channel) <= _MAX_POINTS:
            axes.plot(np.arange(len(channel)) / rate, channel, linewidth=0.6, alpha=alpha, marker="." if len(channel) < 50 else None)
        else:
            low, high = np.minimum.reduceat(channel, starts), np.maximum.reduceat(channel, starts)
            axes.fill_between(starts / rate, low, high, linewidth=0.6, alpha=alpha)
    limit = max(1e-3, 1.05 * float(np.abs(waveform).max()))
    axes.set_ylim(-limit, limit)
    axes.set_ylabel("amplitude")
    axes.grid(alpha=0.3)


def _draw_levels(axes: Axes, waveform: np.ndarray, rate: int) -> Any:
    """Draw the spectrogram and return the mesh, for its color bar."""
    level, rows, time = log_spectrogram(waveform, rate)
    top = max(float(level.max()), _QUIETEST_TOP_DB)
    step = time[1] - time[0] if len(time) > 1 else 1.0 / rate
    growth = (rows[1] / rows[0]) ** 0.5
    mesh = axes.pcolormesh(
        np.append(time - step / 2, max(time[-1] + step / 2, waveform.shape[1] / rate)),
        np.append(rows / growth, rows[-1] * growth),
        level,
        vmin=top - _RANGE_DB,
        vmax=top,
        cmap="magma",
        rasterized=True,
    )
    ticks = [tick for tick in _TICKS_HZ if rows[0] <= tick <= rows[-1]]
    axes.set_yscale("log")
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(rows[0], rows[-1])
    axes.set_ylabel("frequency (Hz)")
    axes.set_xlabel("time (s)")
    return mesh
