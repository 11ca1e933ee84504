"""A training curve as SVG: every logged value, faint, and their moving average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Points = Sequence[tuple[int, float | None]]

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 38
_MOST_TICKS = 5
REACH = 0.04
"""How far the moving average reaches to each side, as a share of the points."""


def smooth(points: Points) -> list[tuple[int, float | None]]:
    """Return for each point the mean over it and equally many points before and after it, up to REACH of all; None
    stays None.

    The mean is centered, and narrower near both ends, so that it does not lag behind a falling curve.
    """
    reach = max(1, round(REACH * len(points)))
    smoothed: list[tuple[int, float | None]] = []
    for i, (step, value) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        around = [other for _, other in points[i - near : i + near + 1] if other is not None]
        smoothed.append((step, None if value is None else sum(around) / len(around)))
    return smoothed


def curve_svg(name: str, points: Points) -> str:
    """Draw one loss over steps; the axis of the loss is logarithmic if all values are above 0.

    Args:
        name: name of the loss.
        points: (step, value) in order of steps, with at least one value.
    """
    values = [value for _, value in points if value is not None]
    low, high = min(values), max(values)
    logarithmic = low > 0
    ticks = log_ticks(low, high) if logarithmic else linear_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    change: Callable[[float], float] = math.log if logarithmic else float
    span = change(high) - change(low) or 1.0
    last = max(points[-1][0], 1)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / last

    def y(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (change(value) - change(low)) / span)

    label = f"Loss {name} over {points[-1][0]} steps, from {values[0]:.3g} to {values[-1]:.3g}."
    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    steps = [tick for tick in linear_ticks(0, last) if tick <= last]
    parts += [f'<text x="{x(tick):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>' for tick in steps]
    parts.append(f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">step</text>')
    for kind, line in (("raw", points), ("smooth", smooth(points))):
        parts.append(f'<path class="{kind}" d="{_path([(x(step), None if v is None else y(v)) for step, v in line])}"/>')
    return "".join([*parts, "</svg>"])


def linear_ticks(low: float, high: float) -> list[float]:
    """Return at most six round numbers, evenly spaced, from at or below `low` to at or above `high`.

    >>> linear_ticks(0, 1150)
    [0.0, 500.0, 1000.0, 1500.0]
    """
    step = next(step for step in _round_numbers((high - low) / _MOST_TICKS or 1.0) if step * _MOST_TICKS >= high - low)
    first = math.floor(low / step)
    return [round(index * step, 10) for index in range(first, max(first + 1, math.ceil(high / step)) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return numbers 1, 2 and 5 times a power of ten, or only the powers if that is enough, around `low` to `high`.

    >>> log_ticks(0.03, 4.0)
    [0.01, 0.1, 1.0, 10.0]
    >>> log_ticks(0.4, 2.4)
    [0.2, 0.5, 1.0, 2.0, 5.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    coarse, fine = ([float(f"{factor}e{power}") for power in powers for factor in factors] for factors in ((1,), (1, 2, 5)))
    numbers = coarse if sum(low <= number <= high for number in coarse) > 1 else fine
    below = max((number for number in numbers if number <= low), default=numbers[0])
    above = min((number for number in numbers if number >= high), default=numbers[-1])
    return [number for number in numbers if below <= number <= above]


def _round_numbers(least: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, starting at or below `least`."""
    power = math.floor(math.log10(least))
    return [factor * 10.0**p for p in (power, power + 1) for factor in (1, 2, 5)]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """Return the path of a line through points; it is broken where a value is missing."""
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return " ".join(parts)
