"""Make phrases of two spoken digits with espeak-ng and sox, for the chain text → semantic tokens → acoustic codes → speech.

    python make_phrases.py OUT [--count N] [--settings N] [--seed S]

OUT/train         phrases of the voices of make_speech.py that are trained on, `<number>.wav` at 8 kHz, with their words in
                  `<number>.txt`
OUT/prompts       the first word of a phrase, by voices that occur nowhere else, as `<digit>-<voice>.wav`
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from make_speech import ACCENTS, DIGITS, HELD_OUT, PITCHES, SPEEDS, TRAINED, run

RATE = 8000
GAP = 0.08
"""Seconds between the words of a phrase."""


@dataclass(frozen=True)
class Speaker:
    """A voice with a pitch and a speed."""

    voice: str
    pitch: int
    speed: int


def speakers(variants: Sequence[str], count: int, rng: random.Random) -> list[Speaker]:
    """Choose `count` pitches and speeds of each voice."""
    settings = [(pitch, speed) for pitch in PITCHES for speed in SPEEDS]
    voices = [accent + variant for accent in ACCENTS for variant in variants]
    return [Speaker(voice, pitch, speed) for voice in voices for pitch, speed in rng.sample(settings, count)]


def speak(speaker: Speaker, digit: str) -> np.ndarray:
    """Return one digit at RATE, without the silence around it, and the gap after it."""
    with tempfile.TemporaryDirectory() as folder:
        spoken, shaped = Path(folder) / "spoken.wav", Path(folder) / "shaped.wav"
        run(["espeak-ng", "-v", speaker.voice, "-p", str(speaker.pitch), "-s", str(speaker.speed), "-w", str(spoken), digit])
        trim = ["silence", "1", "0.01", "0.5%", "reverse", "silence", "1", "0.01", "0.5%", "reverse"]
        run(["sox", str(spoken), "-b", "16", "-r", str(RATE), "-c", "1", str(shaped), *trim, "gain", "-n", "-3", "pad", "0", str(GAP)])
        return soundfile.read(shaped, dtype="float32")[0]


def write(path: Path, waveform: np.ndarray, words: str) -> None:
    """Write a clip, and its words in a file of the same name."""
    soundfile.write(path, waveform, RATE)
    path.with_suffix(".txt").write_text(words + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Make all phrases and prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=4000, help="phrases to train on (default: 4000)")
    parser.add_argument("--settings", type=int, default=8, help="combinations of pitch and speed of each voice (default: 8)")
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
    for folder in ("train", "prompts"):
        (unfinished / folder).mkdir(parents=True)
    rng = random.Random(args.seed)
    trained, held_out = speakers(TRAINED, args.settings, rng), speakers(HELD_OUT, 1, rng)
    words = [(speaker, digit) for speaker in (*trained, *held_out) for digit in DIGITS]
    with ThreadPoolExecutor(2) as pool:
        clips = dict(zip(words, pool.map(lambda word: speak(*word), words), strict=True))
    for number in range(args.count):
        speaker, digits = rng.choice(trained), rng.choices(DIGITS, k=2)
        phrase = np.concatenate([clips[speaker, digit] for digit in digits])
        write(unfinished / "train" / f"{number:05d}.wav", phrase, " ".join(digits))
    for speaker in held_out:
        for digit in DIGITS:
            write(unfinished / "prompts" / f"{digit}-{speaker.voice.replace('+', '-')}.wav", clips[speaker, digit], digit)
    unfinished.rename(args.out)
    counts = {name: len(list((args.out / name).glob("*.txt"))) for name in ("train", "prompts")}
    sys.stdout.write(f"{args.out}: {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
