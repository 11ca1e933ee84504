"""Write one HTML page, which needs no other file: what a model of drum hits makes, next to real hits, and its numbers.

python page.py --sounds my-sounds --measured measured --out index.html
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import soundfile
from measure import JUDGED, read

from soundomni.cli.page.sounds import picture
from soundomni.core.waveform import Audio, fit_length, match_channels, resample
from soundomni.core.writing.preparing import prepared
from soundomni.data.audio import read_audio
from soundomni.data.spectrogram import log_spectrogram

RATE = 24000
"""Every clip on the page has this rate, so that the pictures have the same axes."""
SHOWN = 3
STYLE = """
:root { color-scheme: light dark; --ink: #1d1d20; --paper: #faf9f7; --line: #dcd8d0; --wrong: #ab2f1d }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e7e4; --paper: #131316; --line: #37373d; --wrong: #ff9d8a } }
body { margin: 0 auto; max-width: 64rem; padding: 1rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif }
table { border-collapse: collapse } th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left } section { margin-top: 2rem; border-top: 1px solid var(--line) }
.clips { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 14rem }
img { display: block; width: 100%; height: 6rem; image-rendering: auto } audio { width: 100%; height: 2rem }
figcaption { font-size: 0.85rem } .wrong { color: var(--wrong) }
"""


def figure(clip: Audio, text: str, *, wrong: bool = False) -> str:
    """Return a clip with its spectrogram, a player, and a line of text."""
    mono = fit_length(resample(match_channels(clip.waveform, 1), clip.sample_rate, RATE), RATE)
    level, _, _ = log_spectrogram(mono, RATE)
    wav = BytesIO()
    soundfile.write(wav, mono[0], RATE, format="WAV", subtype="PCM_16")
    image, sound = (base64.b64encode(data).decode() for data in (picture(level), wav.getvalue()))
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="Spectrogram of {escape(text)}">'
        f'<audio controls preload="none" aria-label="Play {escape(text)}" src="data:audio/wav;base64,{sound}"></audio>'
        f"<figcaption{' class=wrong' if wrong else ''}>{escape(text)}</figcaption></figure>"
    )


def section(caption: str, numbers: Mapping[str, Any], made: Iterable[str], real: Iterable[str]) -> str:
    """Return what was made from a caption, and held-out hits with that caption."""
    text = (
        f"{numbers['training clips']} training clips. Made: the nearest training clip is right for {numbers['nearest']:g} %, the "
        f"classifier for {numbers['classified']:g} %. Named: {numbers['named']:g} % of {numbers['of']}."
    )
    return f'<section><h2>{escape(caption)}</h2><p>{text}</p><div class="clips">{"".join([*made, *real])}</div></section>'


def table(report: Mapping[str, Any]) -> str:
    """Return the scores of made and real clips."""
    columns = {"made": "made", "codec": "held-out hits through the codec", "held-out": "held-out hits", "new-kits": "hits of new kits"}
    rows = [f"<tr><th>{escape(name)}</th>{''.join(f'<td>{report[key][name]:g}</td>' for key in columns)}</tr>" for name in report["made"]]
    said = "".join(f"<td>{report['described'].get(key, '–')}</td>" for key in columns)
    head = "".join(f"<th>{name}</th>" for name in columns.values())
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}<tr><th>named correctly, %</th>{said}</tr></table>"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=Path, required=True, help="folder made by collect.py")
    parser.add_argument("--measured", type=Path, required=True, help="folder written by measure.py")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    args = parser.parse_args(argv)
    report = json.loads((args.measured / "report.json").read_text(encoding="utf-8"))
    clips, captions = read(args.sounds, "held-out")
    sections = []
    for caption, numbers in report["captions"].items():
        rows = [row for row in report["clips"] if row["caption"] == caption][:SHOWN]
        made = [
            figure(
                Audio(*read_audio(args.measured / row["file"])),
                "made" if row["nearest"] == caption else f"made; nearest is {row['nearest']}",
                wrong=row["nearest"] != caption,
            )
            for row in rows
        ]
        own = [clip for clip, its in zip(clips, captions, strict=True) if its == caption][:1]
        sections.append(section(caption, numbers, made, [figure(prepared(clip, JUDGED), "a real hit, held out") for clip in own]))
    args.out.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Drum hits made by a small model</title><style>{STYLE}</style></head><body><h1>Drum hits made by a small model</h1>"
        f"<p>Shares are in percent, bandwidths in Hz. Spectrograms go from the lowest frequency at the bottom to {RATE // 2000} kHz.</p>"
        f"{table(report)}{''.join(sections)}</body></html>\n",
        encoding="utf-8",
    )
    sys.stdout.write(f"{args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
