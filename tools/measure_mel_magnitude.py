"""Measure how close recordings come back through `mel-magnitude`, and write the table into docs/plugins/codec.md:
`python tools/measure_mel_magnitude.py FOLDER HITS`.

FOLDER has recordings of at least 44.1 kHz, in any subfolders. The clips are the same at every rate: the first 2 s of CLIPS
files, mixed down to mono. HITS is the folder that examples/drum-hits/collect.py makes: a judge that has heard its hits for training
says whether held-out hits are still of their kind after the codec. It takes a few minutes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from soundomni.core.errors import DataError
from soundomni.core.inference.round_trip import round_trip
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.waveform import Audio, convert
from soundomni.core.writing.preparing import prepared
from soundomni.data.audio import read_audio
from soundomni.data.audio_folder import AudioFolder
from soundomni.evaluation import Comparison, compare
from soundomni.evaluation.tasks.reconstruction import reconstruction_scores
from soundomni.metrics.caption_judge import CaptionJudge
from soundomni.vae import MelMagnitudeCodec

PAGE = Path(__file__).parents[1] / "docs" / "plugins" / "codec.md"
BEGIN, END = "<!-- ceilings of mel-magnitude, written by tools/measure_mel_magnitude.py -->", "<!-- end of ceilings -->"
RATES = (8000, 16000, 24000, 44100)
CLIPS, SECONDS, SHORTEST = 100, 2.0, 0.1
SUFFIXES = (".flac", ".ogg", ".wav")
HIT = ClipSpec(cut="onset", seconds=1.0, peak=0.9)
JUDGE_RATE = 8000
"""Rate of the judge: the same for all rates of the codec, so that its shares can be compared."""


def main(folder: str, hits: str) -> None:
    before, after = around()
    judge, held_out = judge_of(Path(hits)), hits_of(Path(hits), "held-out")
    clips = list(chosen(Path(folder)))
    print(f"{len(clips)} clips, {sum(clip.waveform.shape[1] / clip.sample_rate for clip in clips):.0f} s", file=sys.stderr)
    head = [
        "| rate | frame, window, bands | mel distance | STFT distance | nearest, classified | latents: mean, deviation |",
        "|---|---|---|---|---|---|",
        f"| no codec | | | | {shares(judge, held_out)} | |",
    ]
    rows = [row(clips, rate, judge, held_out) for rate in RATES]
    PAGE.write_text("\n".join([before + BEGIN, "", *head, *rows, "", END]) + after, encoding="utf-8")


def around() -> tuple[str, str]:
    """Return the page before and after the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        raise SystemExit(f"{PAGE.name} does not have the lines '{BEGIN}' and '{END}'. Put them where the table goes")
    return before, after


def chosen(folder: Path) -> Iterator[Audio]:
    """Yield the beginnings of CLIPS files, drawn with a fixed seed: mono, and not silent."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    random.Random(0).shuffle(files)
    left = CLIPS
    for path in files:
        try:
            waveform, rate = read_audio(path)
        except DataError as error:
            print(f"{path.name} is left out: {error}", file=sys.stderr)
            continue
        clip = waveform[:, : round(SECONDS * rate)].mean(0, keepdims=True)
        if rate >= max(RATES) and clip.shape[1] >= SHORTEST * rate and clip.any():
            yield Audio(clip, rate)
            left -= 1
        if not left:
            return
    raise SystemExit(f"'{folder}' has {CLIPS - left} usable recordings; expected at least {CLIPS}")


def hits_of(folder: Path, subfolder: str) -> list[tuple[str, Audio]]:
    """Return the hits of a subfolder that can be read, from their onset, with their captions."""
    dataset, found = AudioFolder(path=folder, include=[f"{subfolder}/*"]), []
    for place in range(len(dataset)):
        try:
            clip = prepared(Audio(*dataset.load(place)), HIT)
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        found.append((dataset.item(place).captions[0], clip))
    return found


def judge_of(folder: Path) -> CaptionJudge:
    """Return a judge that has heard the hits for training."""
    clips = ((caption, clip.waveform, clip.sample_rate) for caption, clip in hits_of(folder, "train"))
    return CaptionJudge(clips, sample_rate=JUDGE_RATE, seconds=1.0)


def shares(judge: CaptionJudge, hits: list[tuple[str, Audio]]) -> str:
    """Return the shares of hits whose nearest training clip is of their kind, and which the classifier recognizes."""
    verdicts = judge.judge((clip.waveform, clip.sample_rate) for _, clip in hits)
    pairs = [(caption, one) for (caption, _), one in zip(hits, verdicts, strict=True)]
    nearest = sum(judge.captions[one.nearest] == caption for caption, one in pairs)
    classified = sum(one.classified == caption for caption, one in pairs)
    return f"{100 * nearest / len(pairs):.0f} %, {100 * classified / len(pairs):.0f} %"


def row(clips: list[Audio], rate: int, judge: CaptionJudge, held_out: list[tuple[str, Audio]]) -> str:
    """Return the row of one sample rate."""
    codec = MelMagnitudeCodec(sample_rate=rate)
    compared, latents, taken = list[Comparison](), list[torch.Tensor](), 0.0
    for clip in clips:
        given = Audio(convert(clip, channels=1, sample_rate=rate), rate)
        began = time.perf_counter()
        made = round_trip(codec, given)
        taken += time.perf_counter() - began
        compared.append(compare(given, made, keeps_waveform=codec.keeps_waveform))
        waveform = torch.from_numpy(given.waveform)[None]
        latents.append(codec.encode(waveform, torch.tensor([waveform.shape[-1]])).values.flatten())
    seconds = sum(clip.waveform.shape[1] / clip.sample_rate for clip in clips)
    print(f"{rate} Hz: {taken / seconds:.2f} s for a second of audio, on {torch.get_num_threads()} threads", file=sys.stderr)
    scores, values = reconstruction_scores(compared), torch.cat(latents)
    sizes = f"{codec.spec.downsampling_ratio}, {codec.window}, {codec.spec.latent_dim}"
    distances = f"{scores['mel_distance'].value:.2f} dB | {scores['stft_distance'].value:.2f}"
    decoded = [(caption, round_trip(codec, Audio(convert(clip, channels=1, sample_rate=rate), rate))) for caption, clip in held_out]
    spread = f"{float(values.mean()):.2f}, {float(values.std()):.2f}"
    return f"| {rate / 1000:g} kHz | {sizes} | {distances} | {shares(judge, decoded)} | {spread} |"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python tools/measure_mel_magnitude.py FOLDER HITS")
    main(sys.argv[1], sys.argv[2])
