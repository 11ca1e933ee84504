"""Write the table of run_rows.sh in Markdown: what each row changes, and what its model makes and names.

    python table.py --work work --out rows.md

If the file has the two lines BEGIN and END, only what is between them is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import Any

BEGIN, END = "<!-- rows of examples/drum-hits/run_rows.sh -->", "<!-- end of rows -->"
CODEC = {"oobleck": "oobleck", "soundstream-masked": "soundstream", "soundstream-tokens": "soundstream"}
"""Rows whose codec has to be trained first, and its run."""
ROWS = {
    "as-they-are": "files as they are, the objective of `demo`, 8 kHz",
    "prepared": "… clips prepared, rare captions drawn more often",
    "x-prediction": "… x-prediction with mean 1.6 and min_timestep 0.3",
    "recipe": "… `mel-magnitude` at 24 kHz: the spec `recordings`",
    "unbalanced": "the recipe, with each clip drawn once per epoch",
    "oobleck": "the recipe with an Oobleck trained on the hits, 16 kHz",
    "soundstream-masked": "codes of a SoundStream trained on the hits, 16 kHz, masked",
    "soundstream-tokens": "the same codes, one token after another",
}


RARE = 20
"""Kinds with fewer training clips than this are rare."""


def minutes(work: Path, name: str) -> float:
    """Return the processor time of training a row, and its codec, in minutes."""
    runs = [f"{name}-model", *([CODEC[name]] if name in CODEC else [])]
    return sum(float((work / "runs" / f"{run}.seconds").read_text(encoding="utf-8")) for run in runs) / 60


def lines(work: Path) -> Iterator[str]:
    """Yield the lines of the table; rows that were not measured are left out."""
    columns = ("codec | nearest | … of rare kinds | classified | novelty | bright kinds", "named, held out | … new kits | … rare kinds")
    yield f"| | {columns[0]} | {columns[1]} | processor time |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    real: dict[str, Any] = {}
    for name, text in ROWS.items():
        path = work / "measured" / name / "report.json"
        if not path.exists():
            sys.stderr.write(f"left out: '{path}' does not exist\n")
            continue
        report = real = json.loads(path.read_text(encoding="utf-8"))
        said, rare = report["described"], [one for one in report["captions"].values() if one["training clips"] < RARE]
        made = scores(report["made"], f"{fmean(one['nearest'] for one in rare):.0f} %")
        named = fsum(one["named"] * one["of"] for one in rare) / sum(one["of"] for one in rare)
        heard = f"{said['held-out']:.0f} % | {said['new-kits']:.0f} % | {named:.0f} %"
        yield f"| {text} | {report['codec']['nearest']:.0f} % | {made} | {heard} | {minutes(work, name):.0f} min |"
    if real:
        yield f"| *held-out hits* | | {scores(real['held-out'], '')} | | | | |"
        yield f"| *hits of new kits* | | {scores(real['new-kits'], '')} | | | | |"


def scores(found: dict[str, Any], rare: str) -> str:
    """Return the cells of judged clips."""
    bright = found["bandwidth of bright kinds"] / 1000
    return f"{found['nearest']:.0f} % | {rare} | {found['classified']:.0f} % | {found['novelty']:.2f} | {bright:.1f} kHz"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder in which run_rows.sh worked")
    parser.add_argument("--out", type=Path, required=True, help="file to write, or page with a place for the table")
    args = parser.parse_args(argv)
    table = "\n".join(lines(args.work))
    page = args.out.read_text(encoding="utf-8") if args.out.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        parser.error(f"'{args.out}' does not have the lines '{BEGIN}' and '{END}'; put them where the table goes")
    args.out.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
