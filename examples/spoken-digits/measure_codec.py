"""Measure a codec of speech on recordings that it never saw.

    python measure_codec.py --speech speech --run runs/soundstream-speech

The recordings are sent through the codec of a run, and an independent classifier, which is trained only on the real training
recordings, has to recognize their digits. It is also measured on the recordings themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import labels, read_folder, recognized, stack, train_classifier

from soundomni.core.inference.round_trip import round_trips
from soundomni.train.export import load_run_codec


def main(argv: Sequence[str] | None = None) -> int:
    """Print every number as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder made by make_speech.py")
    parser.add_argument("--run", type=Path, required=True, help="run directory of a codec of codes")
    parser.add_argument("--classifier-steps", type=int, default=600, help="training steps of the classifier (default: 600)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    found = load_run_codec(args.run, step=None)
    if found is None:
        parser.error(f"the run '{args.run}' did not train a codec")
    _, codec = found
    codec.eval()
    clips, words = read_folder(args.speech / "train")
    classifier = train_classifier(stack(clips), labels(words), steps=args.classifier_steps, seed=args.seed)
    levels = len(codec.spec.codebook_sizes)
    report: dict[str, dict[str, float]] = {}
    for name in ("files", "voices"):
        clips, words = read_folder(args.speech / name)
        decoded = [list(round_trips(codec, clip, [1, levels])) for clip in clips]
        report[name] = {
            "recordings": recognized(classifier, stack(clips), labels(words)),
            "all levels": recognized(classifier, stack([both[1] for both in decoded]), labels(words)),
            "level 0 only": recognized(classifier, stack([both[0] for both in decoded]), labels(words)),
        }
    rounded = {what: {name: round(value, 4) for name, value in scores.items()} for what, scores in report.items()}
    sys.stdout.write(json.dumps(rounded, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
