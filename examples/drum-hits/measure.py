"""Measure a model of drum hits: what it makes, and what it hears in hits that it was not trained on.

    python measure.py --sounds my-sounds --model model --out measured [--per-caption 6] [--guidance 2.5]

Made: the model makes clips from each caption. For each clip, a judge that knows only the training clips finds the nearest of them,
the caption that a classifier gives it, its novelty and its bandwidth. The same judge hears the held-out clips, as they are and
through the model's codec. It works at 8 kHz, so that models of different rates can be compared; bandwidth is measured at 44.1 kHz.

Heard: the share of held-out hits, and of hits from new kits, that the model names correctly.

Everything is written to OUT: report.json and the clips that were made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from soundomni import SoundOmni
from soundomni.core.errors import UnreadableAudioError
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.waveform import Audio, match_channels, resample
from soundomni.core.writing.preparing import prepared
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.audio_writing import write_wav
from soundomni.metrics.bandwidth import bandwidth
from soundomni.metrics.caption_judge import CaptionJudge

JUDGED = ClipSpec(cut="onset", seconds=1.0, peak=0.9)
"""How every clip is prepared for the judge, whatever the model was trained on."""
JUDGE_RATE, BAND_RATE = 8000, 44100
BRIGHT = ("hi-hat", "cymbal", "tambourine")
"""Kinds with the widest bands; drums are much darker, so a median over all kinds says little."""


def read(sounds: Path, folder: str) -> tuple[list[Audio], list[str]]:
    """Read the hits of a subfolder, as they are, and their captions."""
    dataset = AudioFolder(path=sounds, include=[f"{folder}/*"])
    clips, captions = [], []
    for place in range(len(dataset)):
        try:
            clips.append(Audio(*dataset.load(place)))
        except UnreadableAudioError as error:
            sys.stderr.write(f"left out: {error}\n")
            continue
        captions.append(dataset.item(place).captions[0])
    return clips, captions


def band(clip: Audio) -> float:
    """Return the frequency in Hz below which 99 % of a clip's energy lies."""
    return bandwidth(resample(match_channels(clip.waveform, 1), clip.sample_rate, BAND_RATE), BAND_RATE)


def judge(heard: CaptionJudge, clips: Sequence[Audio], captions: Sequence[str]) -> list[dict[str, Any]]:
    """Judge clips; return what was found in each."""
    shaped = [prepared(clip, JUDGED) for clip in clips]
    verdicts = heard.judge((clip.waveform, clip.sample_rate) for clip in shaped)
    return [
        {
            "caption": caption,
            "nearest": heard.captions[verdict.nearest],
            "classified": verdict.classified,
            "novelty": verdict.novelty,
            "copy": verdict.is_copy,
            "band": band(clip),
        }
        for caption, verdict, clip in zip(captions, verdicts, shaped, strict=True)
    ]


def share(rows: Iterable[dict[str, Any]], right: Callable[[dict[str, Any]], bool]) -> float:
    """Return the share of rows that are right, in percent."""
    return round(100 * fmean(right(row) for row in rows), 1)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the scores of judged clips."""
    bright = [row["band"] for row in rows if row["caption"].endswith(BRIGHT)]
    return {
        "clips": len(rows),
        "nearest": share(rows, lambda row: row["nearest"] == row["caption"]),
        "classified": share(rows, lambda row: row["classified"] == row["caption"]),
        "novelty": round(median(row["novelty"] for row in rows), 2),
        "copies": sum(row["copy"] for row in rows),
        "bandwidth": round(median(row["band"] for row in rows)),
        "bandwidth of bright kinds": round(median(bright)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=Path, required=True, help="folder made by collect.py")
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--per-caption", type=int, default=6, help="clips to make from each caption (default: 6)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    model = SoundOmni.from_pretrained(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    known, known_captions = read(args.sounds, "train")
    shaped = [prepared(clip, JUDGED) for clip in known]
    heard = CaptionJudge(
        ((caption, clip.waveform, clip.sample_rate) for caption, clip in zip(known_captions, shaped, strict=True)),
        sample_rate=JUDGE_RATE,
        seconds=1.0,
    )
    captions = [caption for caption in heard.classes for _ in range(args.per_caption)]
    made = model.generate(captions, seconds=1.0, seeds=args.seed, guidance_scale=args.guidance)
    made_rows = judge(heard, made, captions)
    for number, (clip, row) in enumerate(zip(made, made_rows, strict=True)):
        row["file"] = f"{number:03d}-{row['caption'].replace(' ', '-')}.wav"
        write_wav(args.out / row["file"], clip.waveform, clip.sample_rate)
    report: dict[str, Any] = {"made": summary(made_rows), "described": {}, "captions": {}, "clips": made_rows}
    named: list[tuple[str, bool]] = []
    for folder in ("held-out", "new-kits"):
        clips, truth = read(args.sounds, folder)
        report[folder] = summary(judge(heard, clips, truth))
        if folder == "held-out":
            report["codec"] = summary(judge(heard, [model.reconstruct(prepared(clip, JUDGED)) for clip in clips], truth))
        said = model.describe(clips, max_new_tokens=24)
        right = [text.strip() == caption for text, caption in zip(said, truth, strict=True)]
        report["described"][folder] = round(100 * fmean(right), 1)
        named += zip(truth, right, strict=True)
    for caption in heard.classes:
        of_caption = [row for row in made_rows if row["caption"] == caption]
        report["captions"][caption] = {
            "training clips": known_captions.count(caption),
            "nearest": share(of_caption, lambda row: row["nearest"] == row["caption"]),
            "classified": share(of_caption, lambda row: row["classified"] == row["caption"]),
            "named": round(100 * fmean(right for truth, right in named if truth == caption), 1),
            "of": sum(truth == caption for truth, _ in named),
        }
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    shown = {name: report[name] for name in ("made", "codec", "held-out", "new-kits", "described", "captions")}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
