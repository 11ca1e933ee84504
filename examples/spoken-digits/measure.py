"""Measure a model of spoken digits on recordings that it never saw.

    python measure.py --speech speech --model model [--per-digit 20]

Transcription: the share of recordings, in held-out files and of held-out voices, whose description is the spoken word.
Speech: the share of generated digits that an independent classifier recognizes. It is a small convolutional network
that is trained here, only on the real training recordings, and is itself measured on the held-out ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni import SoundOmni
from soundomni.core.errors import UnreadableAudioError
from soundomni.core.waveform import Audio, fit_length, match_channels, resample
from soundomni.data.audio import read_audio

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 8000
SAMPLES = int(0.6 * RATE)


def read_folder(folder: Path) -> tuple[list[Audio], list[str]]:
    """Read every recording that can be read, and its word."""
    clips, words = [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix != ".txt"):
        try:
            clips.append(Audio(*read_audio(path)))
        except UnreadableAudioError as error:
            sys.stderr.write(f"left out: {error}\n")
            continue
        words.append(path.with_suffix(".txt").read_text(encoding="utf-8").strip())
    return clips, words


def stack(clips: Sequence[Audio]) -> Tensor:
    """Convert clips to one rate, channel and length: `[B, S]`."""
    mono = [resample(match_channels(clip.waveform, 1), clip.sample_rate, RATE) for clip in clips]
    return torch.from_numpy(np.concatenate([fit_length(waveform, SAMPLES) for waveform in mono]))


def labels(words: Sequence[str]) -> Tensor:
    """Return the digit of each word, `[B]`."""
    return torch.tensor([DIGITS.index(word) for word in words])


class Classifier(nn.Module):
    """Four convolutions over a log-mel spectrogram, then the largest response of each channel over time."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(129, 40, 60.0, RATE / 2, RATE, norm=None, mel_scale="htk")
        self.register_buffer("bank", torch.from_numpy(bank).float())
        widths = (1, 16, 32, 48, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=1 if a == 1 else 2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(64 * 5, len(DIGITS)))

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, S]` to logits `[B, 10]`."""
        spectrum = torch.stft(waveform, 256, 80, window=torch.hann_window(256), return_complex=True).abs().square()
        mel = torch.log(torch.einsum("fm,bft->bmt", self.bank, spectrum) + 1e-3)
        return self.head(self.body((mel[:, None] + 2) / 4).amax(-1).flatten(1))


def train_classifier(clips: Tensor, targets: Tensor, *, steps: int, seed: int) -> Classifier:
    """Train on recordings that are moved in time, made louder or softer, and mixed with noise."""
    torch.manual_seed(seed)
    net = Classifier()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(clips), (48,))
        batch = torch.stack([torch.roll(clip, int(shift)) for clip, shift in zip(clips[rows], torch.randint(0, 400, (48,)), strict=True)])
        batch = batch * torch.exp(0.3 * torch.randn(48, 1)) + 0.02 * torch.rand(48, 1) ** 2 * torch.randn_like(batch)
        loss = functional.cross_entropy(net(batch), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def recognized(net: Classifier, clips: Tensor, targets: Tensor) -> float:
    """Return the share of clips that the classifier takes for their digit."""
    return (net(clips).argmax(1) == targets).float().mean().item()


def main(argv: Sequence[str] | None = None) -> int:
    """Print every number as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder made by make_speech.py")
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--per-digit", type=int, default=20, help="generated clips of each digit (default: 20)")
    parser.add_argument("--classifier-steps", type=int, default=600, help="training steps of the classifier (default: 600)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model = SoundOmni.from_pretrained(args.model)
    clips, words = read_folder(args.speech / "train")
    classifier = train_classifier(stack(clips), labels(words), steps=args.classifier_steps, seed=args.seed)
    report: dict[str, dict[str, float]] = {"transcribed": {}, "classifier": {}, "generated": {}}
    for name in ("files", "voices"):
        clips, words = read_folder(args.speech / name)
        texts = model.describe(clips, max_new_tokens=8, batch_size=32)
        report["transcribed"][name] = sum(text == word for text, word in zip(texts, words, strict=True)) / len(words)
        report["classifier"][name] = recognized(classifier, stack(clips), labels(words))
    prompts = [digit for digit in DIGITS for _ in range(args.per_digit)]
    seconds = SAMPLES / RATE
    made = model.generate(prompts, seconds=seconds, seeds=args.seed, guidance_scale=args.guidance, batch_size=50)
    report["generated"]["all"] = recognized(classifier, stack(made), labels(prompts))
    for digit, first in zip(DIGITS, range(0, len(made), args.per_digit), strict=True):
        some = slice(first, first + args.per_digit)
        report["generated"][digit] = recognized(classifier, stack(made[some]), labels(prompts[some]))
    rounded = {what: {name: round(value, 4) for name, value in scores.items()} for what, scores in report.items()}
    sys.stdout.write(json.dumps(rounded, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
