"""Collect 666 real drum hits of 16 kinds from three packages of Debian, as they are: mixed formats and channels, at 22 to 48 kHz.

    python collect.py OUT [--packages DIR]

OUT/train         hits for training; one of these files cannot be read
OUT/held-out      an eighth of the hits of each kind, from the same drum kits
OUT/new-kits      hits from two drum kits that occur nowhere else
OUT/metadata.csv  path, caption and drum kit of each hit

The packages are downloaded with apt-get into DIR and unpacked there, unless they are there already. Nothing is installed.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ("hydrogen-drumkits", "sonic-pi-samples", "lmms-common")
NEW_KITS = ("The Black Pearl 1.0", "VariBreaks")
HELD_OUT = 0.12
SEED = 7
KINDS = (
    ("rimshot", r"rim ?shot|rim click|side ?stick|stick|\brim"),
    ("tambourine", r"tambourine"),
    ("cowbell", r"cowbell|\bcb\b|agogo"),
    ("hand clap", r"clap"),
    ("open hi-hat", r"(hat|hh|hihat).*(op|free)|open ?(hh|hat)|ohh|hihat_opened|cymbal_open"),
    ("pedal hi-hat", r"pedal|pd$|foot"),
    ("closed hi-hat", r"(hat|hh|hihat).*(cl|low|ring|choke|tight)|closed|chh|hat.*closed"),
    ("ride cymbal", r"ride"),
    ("crash cymbal", r"crash|china"),
    ("splash cymbal", r"splash"),
    ("tabla", r"tabla"),
    ("djembe", r"djembe"),
    ("conga", r"conga|bongo"),
    ("snare drum", r"snare|\bsn_|sn_"),
    ("kick drum", r"kick|bass ?drum|bassdrum|bd_|drum_bass|drum_heavy_kick"),
    ("tom", r"tom"),
)
"""Each kind and what names of instruments and files look like; the first that fits counts."""
OTHER = r"semi|roll|swish|flink|beats_|sample:|loop|rave_|nasty|fuzz_tom|pedal tambourine"
"""Names of what is not a single hit, or not of one kind."""


@dataclass(frozen=True)
class Hit:
    """A file with one hit."""

    path: Path
    kind: str
    kit: str


def kind_of(name: str) -> str | None:
    """Return the kind of drum that a name tells; None if it tells none."""
    if re.search(OTHER, name, re.IGNORECASE):
        return None
    return next((kind for kind, pattern in KINDS if re.search(pattern, name.lower())), None)


def unpacked(packages: Path, names: Sequence[str]) -> None:
    """Download and unpack the packages that are missing below `packages`."""
    for name in names:
        folder = packages / name
        if folder.is_dir():
            continue
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise SystemExit(f"{tool} is missing; unpack the Debian package {name} into {folder} yourself")
        packages.mkdir(parents=True, exist_ok=True)
        run(["apt-get", "download", name], packages)
        archive = next(iter(packages.glob(f"{name}_*.deb")))
        unfinished = packages / f"{name}.unfinished"
        run(["dpkg", "-x", archive.name, unfinished.name], packages)
        unfinished.rename(folder)


def run(command: Sequence[str], folder: Path) -> None:
    """Run a tool in a folder; its output is only shown if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")


def hits(packages: Path) -> Iterator[Hit]:
    """Yield the hits of all packages, some of them twice."""
    for kit in sorted((packages / "hydrogen-drumkits/usr/share/hydrogen/data/drumkits").iterdir()):
        described = (kit / "drumkit.xml").read_text(encoding="utf-8", errors="replace")
        plain = re.sub(r'\sxmlns(:\w+)?="[^"]*"|\sxsi:\w+="[^"]*"', "", described)
        for instrument in ElementTree.fromstring(plain).iter("instrument"):
            kind = kind_of(instrument.findtext("name") or "")
            for file in instrument.iter("filename") if kind else ():
                if kind and file.text and (kit / file.text).is_file():
                    yield Hit(kit / file.text, kind, kit.name)
    for package, pattern, kit_name in (("sonic-pi-samples", "*.flac", "sonicpi"), ("lmms-common", "samples/drums/*.ogg", "lmms")):
        for path in sorted((packages / package).rglob(pattern)):
            kind = kind_of(path.stem)
            if kind:
                yield Hit(path, kind, kit_name)


def split(found: Sequence[Hit]) -> Iterator[tuple[str, Hit]]:
    """Yield each hit with its subfolder. Of each kind, at least one hit of the kits for training is held out."""
    draws = random.Random(SEED)
    for kind in sorted({hit.kind for hit in found}):
        known = [hit for hit in found if hit.kind == kind and hit.kit not in NEW_KITS]
        draws.shuffle(known)
        held_out = max(1, round(len(known) * HELD_OUT))
        for place, hit in enumerate(known):
            yield ("held-out" if place < held_out else "train"), hit
        for hit in found:
            if hit.kind == kind and hit.kit in NEW_KITS:
                yield "new-kits", hit


def name_of(hit: Hit) -> str:
    """Return a file name that tells the kit."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', hit.kit)}_{re.sub('[^A-Za-z0-9._-]+', '-', hit.path.name)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the hits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="folder of the packages (default: packages)")
    args = parser.parse_args(argv)
    if args.out.exists():
        sys.stderr.write(f"'{args.out}' already exists; remove it, or choose another folder\n")
        return 2
    unpacked(args.packages, PACKAGES)
    found = list({hit.path: hit for hit in reversed(list(hits(args.packages)))}.values())[::-1]
    unfinished = args.out.with_name(args.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("train", "held-out", "new-kits"):
        (unfinished / name).mkdir(parents=True)
    counts: Counter[str] = Counter()
    with (unfinished / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "caption", "kit"])
        for number, (folder, hit) in enumerate(split(found)):
            name = name_of(hit)
            if (unfinished / folder / name).exists():
                name = f"{number}_{name}"
            shutil.copyfile(hit.path, unfinished / folder / name)
            article = "an" if hit.kind[0] in "aeiou" else "a"
            writer.writerow([f"{folder}/{name}", f"{article} {hit.kind}", hit.kit])
            counts[folder] += 1
    unfinished.rename(args.out)
    sys.stdout.write(f"{args.out}: {dict(counts)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
