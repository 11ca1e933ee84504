"""Make spoken digits with espeak-ng and sox: several voices, pitches and speeds, in mixed files as in real folders.

    python make_speech.py OUT [--per-voice N] [--seed S]

OUT/train         recordings for training; one file in it is broken
OUT/files         held-out recordings of the same voices
OUT/voices        recordings of voices that occur nowhere else

Each recording is `<digit>-<voice>-<number>.<wav|flac|mp3>` at 8, 16 or 44.1 kHz, mono or stereo, with its word in
`<stem>.txt`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland")
TRAINED = ("", "+m1", "+m2", "+m3", "+m4", "+m7", "+f1", "+f2", "+f3", "+f5")
HELD_OUT = ("+m6", "+f4")
PITCHES = (35, 42, 50, 58, 65)
SPEEDS = (150, 162, 175, 188, 200)
RATES = (8000, 16000, 44100)
FORMATS = ("wav", "flac", "mp3")
SECONDS = 0.6
HELD_OUT_FILES = 0.1


@dataclass(frozen=True)
class Recording:
    """One file to make."""

    folder: str
    stem: str
    digit: str
    voice: str
    pitch: int
    speed: int
    rate: int
    channels: int
    suffix: str


def plan(per_voice: int, seed: int) -> list[Recording]:
    """Choose pitch, speed and format of `per_voice` recordings of each digit by each voice."""
    rng = random.Random(seed)
    recordings = []
    for variants, unheard in ((TRAINED, False), (HELD_OUT, True)):
        for voice in (accent + variant for accent in ACCENTS for variant in variants):
            for digit in DIGITS:
                settings = rng.sample([(pitch, speed) for pitch in PITCHES for speed in SPEEDS], per_voice)
                for number, (pitch, speed) in enumerate(settings):
                    folder = "voices" if unheard else "files" if rng.random() < HELD_OUT_FILES else "train"
                    name = voice.replace("+", "-")
                    recordings.append(
                        Recording(
                            folder=folder,
                            stem=f"{digit}-{name}-{number:02d}",
                            digit=digit,
                            voice=voice,
                            pitch=pitch,
                            speed=speed,
                            rate=rng.choice(RATES),
                            channels=rng.choice((1, 2)),
                            suffix=rng.choice(FORMATS),
                        )
                    )
    return recordings


def speak(recording: Recording, out: Path) -> None:
    """Speak one digit, remove the silence around it, and convert it to SECONDS and to its rate, channels and format."""
    with tempfile.TemporaryDirectory() as folder:
        spoken, shaped = Path(folder) / "spoken.wav", Path(folder) / "shaped.wav"
        pitch, speed = str(recording.pitch), str(recording.speed)
        run(["espeak-ng", "-v", recording.voice, "-p", pitch, "-s", speed, "-w", str(spoken), recording.digit])
        trim = ["silence", "1", "0.01", "0.5%", "reverse", "silence", "1", "0.01", "0.5%", "reverse"]
        fit = ["gain", "-n", "-3", "pad", "0.01", str(SECONDS), "trim", "0", str(SECONDS)]
        run(["sox", str(spoken), "-b", "16", "-r", str(recording.rate), "-c", str(recording.channels), str(shaped), *trim, *fit])
        target = out / recording.folder / f"{recording.stem}.{recording.suffix}"
        if recording.suffix == "mp3":  # sox needs an extra package to write MP3; libsndfile does not
            waveform, rate = soundfile.read(shaped)
            soundfile.write(target, waveform, rate)
        elif recording.suffix == "flac":
            run(["sox", str(shaped), str(target)])
        else:
            shutil.move(shaped, target)
    target.with_suffix(".txt").write_text(recording.digit + "\n", encoding="utf-8")


def run(command: Sequence[str]) -> None:
    """Run a tool; its output is only shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr.strip()}")


def break_one(folder: Path) -> Path:
    """Add a recording whose second half is missing."""
    whole = min(folder.glob("*.wav"))
    broken = folder / "broken.wav"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    broken.with_suffix(".txt").write_text(whole.with_suffix(".txt").read_text())
    return broken


def main(argv: Sequence[str] | None = None) -> int:
    """Make all recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-voice", type=int, default=9, help="recordings of each digit by each voice (default: 9)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for tool in ("espeak-ng", "sox"):
        if shutil.which(tool) is None:
            sys.stderr.write(f"{tool} is missing: sudo apt-get install espeak-ng sox\n")
            return 2
    if args.out.exists():
        sys.stderr.write(f"'{args.out}' already exists; remove it, or choose another folder\n")
        return 2
    unfinished = args.out.with_name(args.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in ("train", "files", "voices"):
        (unfinished / folder).mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda recording: speak(recording, unfinished), plan(args.per_voice, args.seed)))
    break_one(unfinished / "train")
    unfinished.rename(args.out)
    counts = {name: len(list((args.out / name).glob("*.txt"))) for name in ("train", "files", "voices")}
    sys.stdout.write(f"{args.out}: {counts}, of which one is broken\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
