"""Measure how the passes of a soundstorm-toy change what it makes, and draw it: `python tools/measure_iterations.py MODEL`.

It writes docs/images/iterations.svg and prints the table of docs/tutorials/soundstorm.md. It takes about ten minutes on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

from soundomni import SoundOmni
from soundomni.cli.stderr_observer import StderrObserver
from soundomni.core.spec.schema import Slot
from soundomni.evaluation import evaluate

OUT = Path(__file__).parents[1] / "docs" / "images" / "iterations.svg"
NOTES = ["C4", "D4", "E4", "F4", "G4", "A4", "B4"]
SOUNDS = Slot("toy-sounds", {"seed": 31, "seconds": 0.5, "events": [1, 1], "variation": 0.0, "notes": NOTES})
CLIPS = 200
PASSES = (1, 2, 4, 8, 16, 32)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620, 300, 48, 190, 14, 42
LINES = (("level 0, others with one pass", "#3b5bdb"), ("other levels, level 0 with 16", "#e8590c"))
STYLE = "text { font: 12px system-ui, Helvetica, Arial, sans-serif; fill: #52606d } .grid { stroke: #e4e7eb }"


def main(model: str) -> None:
    first = {passes: measured(model, [passes, 1]) for passes in PASSES}
    others = {passes: first[16] if passes == 1 else measured(model, [16, passes]) for passes in PASSES}
    print("| passes | " + " | ".join(map(str, PASSES)) + " |")
    print("|---|" + "---|" * len(PASSES))
    for (label, _), found in zip(LINES, (first, others), strict=True):
        for name, of in (("attributes", 0), ("every attribute of a clip", 1)):
            print(f"| {label}: {name} | " + " | ".join(f"{100 * found[passes][of]:.1f}" for passes in PASSES) + " |")
    OUT.write_text(picture([{passes: 100 * found[passes][0] for passes in PASSES} for found in (first, others)]), encoding="utf-8")


def measured(name: str, iterations: list[int]) -> tuple[float, float]:
    """Return the shares of attributes, and of clips with every attribute, that are right after this many passes of the levels."""
    model = SoundOmni.from_pretrained(name, overrides={"model.modalities.acoustic.sampler.init_args.iterations": str(iterations)})
    made = evaluate(model, SOUNDS, tasks=["generate"], limit=CLIPS, observer=StderrObserver())["generated"]
    return made["attributes"], made["right"]


def picture(curves: list[dict[int, float]]) -> str:
    """Return both curves as SVG: percent of the attributes over passes, which double from tick to tick."""
    values = [value for curve in curves for value in curve.values()]
    low, high = 5 * int(min(values) // 5), 5 * (int(max(values) // 5) + 1)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(passes: int) -> float:
        return LEFT + wide * PASSES.index(passes) / (len(PASSES) - 1)

    def y(value: float) -> float:
        return TOP + tall * (1 - (value - low) / (high - low))

    label = "Attributes right over the number of passes of a level"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    parts.append(f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>')
    for tick in range(low, high + 1, 5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + wide}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick} %</text>')
    parts += [f'<text x="{x(one):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{one}</text>' for one in PASSES]
    parts.append(f'<text x="{LEFT + wide / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">passes of the level; attributes right</text>')
    for row, ((name, color), curve) in enumerate(zip(LINES, curves, strict=True)):
        for line, words in enumerate(name.split(", ")):
            place = TOP + 20 + 52 * row + 16 * line
            parts.append(f'<text x="{LEFT + wide + 12}" y="{place}" style="fill: {color}">{words}</text>')
        points = " ".join(f"{x(passes):.1f},{y(value):.1f}" for passes, value in curve.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(passes):.1f}" cy="{y(value):.1f}" r="3" fill="{color}"/>' for passes, value in curve.items()]
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main(sys.argv[1])
