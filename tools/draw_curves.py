"""Draw the curves of a run as one picture: `python tools/draw_curves.py RUN OUT.svg METRIC ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from soundomni.cli.page.curves import HEIGHT, WIDTH, curve_svg

COLUMNS = 2
TITLE = 22
STYLE = """
text { font: 11px system-ui, Helvetica, Arial, sans-serif; fill: #52606d }
.title { font-size: 13px; fill: #1f2933 }
.grid { stroke: #e4e7eb } .raw { fill: none; stroke: #b8c5f2 } .smooth { fill: none; stroke: #3b5bdb; stroke-width: 2 }
"""


def main(run: Path, out: Path, metrics: list[str]) -> None:
    """Draws each metric that the run logged, in a grid."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    height = HEIGHT + TITLE
    parts = []
    for place, metric in enumerate(metrics):
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        x, y = WIDTH * (place % COLUMNS), height * (place // COLUMNS)
        curve = curve_svg(metric, points).replace("<svg ", f'<svg y="{TITLE}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        parts.append(f'<g transform="translate({x} {y})"><text class="title" x="44" y="15">{metric}</text>{curve}</g>')
    size = f"{WIDTH * COLUMNS} {height * -(-len(metrics) // COLUMNS)}"
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{STYLE}</style>{paper}'
    out.write_text("\n".join([head, *parts, "</svg>\n"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
