"""Collect letters and syllables that people spoke in 16 languages, from Debian's package klettres-data, for the recipe of drum hits.

    python collect_syllables.py OUT [--packages DIR]

OUT/train and OUT/held-out have the recordings as they are; an eighth of those of each language is held out. Captions in metadata.csv name
the language; each language has its own voices. Of a language, at most 100 recordings are taken. The package is downloaded with apt-get
into DIR and unpacked there, unless it is there already.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from collect import HELD_OUT, unpacked

PACKAGE = "klettres-data"
LANGUAGES = {
    "da": "Danish",
    "de": "German",
    "en": "English",
    "en_GB": "British English",
    "es": "Spanish",
    "fr": "French",
    "he": "Hebrew",
    "hu": "Hungarian",
    "it": "Italian",
    "lt": "Lithuanian",
    "nb": "Norwegian",
    "nds": "Low German",
    "nl": "Dutch",
    "pt_BR": "Brazilian Portuguese",
    "ru": "Russian",
    "uk": "Ukrainian",
}
"""The files of Arabic, Czech, Malayalam and Tswana in the package are truncated."""
MOST, SEED = 100, 7


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="folder of the package (default: packages)")
    args = parser.parse_args(argv)
    if args.out.exists():
        sys.stderr.write(f"'{args.out}' already exists; remove it, or choose another folder\n")
        return 2
    unpacked(args.packages, (PACKAGE,))
    unfinished = args.out.with_name(args.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    rows = []
    draws = random.Random(SEED)
    for code, language in LANGUAGES.items():
        found = sorted((args.packages / PACKAGE / "usr/share/klettres" / code).rglob("*.ogg"))
        draws.shuffle(found)
        found = found[:MOST]
        for place, path in enumerate(found):
            folder = "held-out" if place < max(1, round(len(found) * HELD_OUT)) else "train"
            name = f"{folder}/{code}-{place:03d}.ogg"
            (unfinished / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, unfinished / name)
            rows.append((name, f"a syllable in {language}"))
    with (unfinished / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("file_name", "caption"), *rows])
    unfinished.rename(args.out)
    sys.stdout.write(f"{args.out}: {len(rows)} recordings\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
