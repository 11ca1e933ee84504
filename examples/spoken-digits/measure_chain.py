"""Measure the chain text → semantic tokens → acoustic codes → speech with voices that it never heard.

    python measure_chain.py --speech speech --phrases phrases --chain chain/speech.yaml [--per-prompt 4]

A recording of one digit by a held-out voice is the prompt, and the chain says another digit after it. An independent classifier,
which is trained only on real training recordings, has to recognize that digit. The pitch of the voice says whether it stays the
voice of the prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from measure import DIGITS, RATE, labels, read_folder, recognized, stack, train_classifier

from soundomni import Audio, Chain, Kept
from soundomni.data.audio import read_audio

SECONDS = 1.25
LOWEST, HIGHEST = 60.0, 400.0
"""Pitches of voices in Hz."""


def of_voices(folder: Path, most: int | None) -> tuple[list[Audio], list[str]]:
    """Return the recordings of all digits by each voice, one voice after the other, and the digits."""
    paths = sorted(folder.glob("*.wav"), key=lambda path: path.stem.split("-", 1)[::-1])
    count = len(paths) if most is None else most * len(DIGITS)
    digits = [path.stem.split("-", 1)[0] for path in paths[:count]]
    return [Audio(*read_audio(path)) for path in paths[:count]], digits


def after(clip: Audio, prompt: Audio) -> Audio:
    """Return what follows the prompt, without the silence before it; silence if nothing follows."""
    rest = clip.waveform[:, prompt.waveform.shape[1] :]
    loud = np.flatnonzero(np.abs(rest[0]) > 0.02)
    return Audio(rest[:, max(0, int(loud[0]) - RATE // 100) :] if len(loud) else np.zeros((1, RATE), np.float32), clip.sample_rate)


def pitch(clip: Audio) -> float:
    """Return the median pitch in Hz of the frames with a clear one, by autocorrelation; NaN if there are none."""
    found = []
    shortest, longest = round(RATE / HIGHEST), round(RATE / LOWEST)
    for first in range(0, clip.waveform.shape[1] - 400, 80):
        frame = clip.waveform[0, first : first + 400]
        frame = frame - frame.mean()
        products = np.correlate(frame, frame, "full")[399:]
        if products[0] > 0.4:
            lag = shortest + int(products[shortest:longest].argmax())
            if products[lag] > 0.5 * products[0]:
                found.append(RATE / lag)
    return float(np.median(found)) if found else float("nan")


def near(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the share of pairs of pitches that are at most two semitones apart, among pairs that have both."""
    apart = np.abs(12 * np.log2(np.asarray(one) / np.asarray(other)))
    known = ~np.isnan(apart)
    return float((apart[known] <= 2).mean()) if known.any() else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print every number as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder made by make_speech.py")
    parser.add_argument("--phrases", type=Path, required=True, help="folder made by make_phrases.py")
    parser.add_argument("--chain", type=Path, required=True, help="spec with the section stages, or directory of a chain")
    parser.add_argument("--per-prompt", type=int, default=4, help="number of digits that the chain says after each prompt (default: 4)")
    parser.add_argument("--voices", type=int, help="number of voices to use (default: all)")
    parser.add_argument("--classifier-steps", type=int, default=600, help="training steps of the classifier (default: 600)")
    parser.add_argument("--out", type=Path, help="folder for the clips")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    chain, rng = Chain.from_pretrained(args.chain), random.Random(args.seed)
    clips, words = read_folder(args.speech / "train")
    classifier = train_classifier(stack(clips), labels(words), steps=args.classifier_steps, seed=args.seed)
    prompts, firsts = of_voices(args.phrases / "prompts", args.voices)
    pairs = [(prompt, first, rng.choice(DIGITS)) for prompt, first in zip(prompts, firsts, strict=True) for _ in range(args.per_prompt)]
    kept = [Kept(prompt, [(0.0, prompt.waveform.shape[1] / RATE)]) for prompt, _, _ in pairs]
    texts = [f"{first} {second}" for _, first, second in pairs]
    made = chain.generate(texts, seconds=SECONDS, known=kept, seeds=args.seed, batch_size=30)
    said = [after(clip, prompt) for clip, (prompt, _, _) in zip(made, pairs, strict=True)]
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        for i, (clip, text) in enumerate(zip(made, texts, strict=True)):
            soundfile.write(args.out / f"{i:03d} {text}.wav", clip.waveform.T, clip.sample_rate)
    pitches = [pitch(clip) for clip in said]
    own = [pitch(prompt) for prompt, _, _ in pairs]
    apart = len(DIGITS) * args.per_prompt  # prompts of the next voice
    tones = np.reshape(own[:: args.per_prompt], (-1, len(DIGITS)))  # a row for each voice
    targets = labels([second for _, _, second in pairs])
    report = {
        "recognized": recognized(classifier, stack(said), targets),
        "recognized, prompts themselves": recognized(classifier, stack(prompts), labels(firsts)),
        "pitch of the prompt": near(pitches, own),
        "pitch of another voice": near(pitches, own[apart:] + own[:apart]),
        "pitch of two recordings of a voice": near(tones.ravel(), np.roll(tones, 1, axis=1).ravel()),
        "clips": len(said),
    }
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in report.items()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
