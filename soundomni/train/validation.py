"""What a run makes on its way, to hear, see and read how far it is: clips from prompts, descriptions, reconstructions.

Every rank computes in lockstep, as weights are sharded; rank 0 writes. The random state of training is left as it was.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from soundomni.core.errors import DataError
from soundomni.core.hub import SoundOmni
from soundomni.core.schema import TrainSpec
from soundomni.core.waveform import Audio, fit_length, match_channels, resample
from soundomni.data.audio import write_wav
from soundomni.data.spectrogram import save_spectrogram
from soundomni.train.codec_training import CodecTraining
from soundomni.train.ema import EMA
from soundomni.train.parallel import World, computing_precision, reshard

DESCRIPTIONS_FILE, PROMPTS_FILE = "descriptions.jsonl", "prompts.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownClip:
    """A clip of the data, and what is said of it there."""

    key: str
    audio: Audio
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """Clips by file stem, and lines for text files by file name."""

    clips: dict[str, Audio]
    lines: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Called at a step, writes `samples_dir/step-N/` and reports its files.

    Args:
        make: what to compute, on every rank.
        module: computes; with the averaged weights when there are any.
        ema: the averages, or None.
        samples_dir: `samples` of the run directory.
        world, train: of the run.
        report: receives the step and the files, on rank 0.
    """

    make: Callable[[], Made]
    module: nn.Module
    ema: EMA | None
    samples_dir: Path
    world: World
    train: TrainSpec
    report: Callable[[int, Sequence[Path]], None]

    def __call__(self, step: int) -> None:
        """Makes and writes. Files that cannot be written are named in a warning, and the run goes on."""
        averaged = self.ema.swapped(self.module) if self.ema is not None else nullcontext()
        with _kept_random_state(self.world.device), averaged, torch.no_grad(), computing_precision(self.world, self.train):
            made = self.make()
        reshard(self.module)
        try:
            self.world.on_main(partial(self._write, made, step))
        except (OSError, DataError) as error:
            logger.warning("what was made at step %d could not be written, the run goes on: %s", step, error)

    def _write(self, made: Made, step: int) -> None:
        self.report(step, write_made(made, self.samples_dir / f"step-{step:08d}"))


def make_and_describe(omni: SoundOmni, train: TrainSpec, clips: Sequence[KnownClip]) -> Made:
    """Generates from the prompts of `train.validation` and describes `clips`, where the model can."""
    prompts = train.validation.prompts
    made = omni.generate(prompts, seconds=train.validation.seconds, seeds=train.seed) if prompts else []
    stems = [f"{i:02d}-{_slug(prompt)}" for i, prompt in enumerate(prompts)]
    lines: dict[str, list[dict[str, Any]]] = {}
    lines[PROMPTS_FILE] = [{"file": f"{stem}.wav", "prompt": prompt} for stem, prompt in zip(stems, prompts, strict=True)]
    if omni.model.encoder is not None and clips:
        texts = omni.describe([_cut(clip.audio, omni.model.encoder.spec.max_seconds) for clip in clips])
        lines[DESCRIPTIONS_FILE] = [
            {"clip": clip.key, "captions": list(clip.captions), "description": text} for clip, text in zip(clips, texts, strict=True)
        ]
    return Made(dict(zip(stems, made, strict=True)), lines)


def reconstruct(codec: CodecTraining, clips: Sequence[KnownClip], device: torch.device) -> Made:
    """Sends `clips` through the codec and back; each is made beside what it should be."""
    spec = codec.codec.spec
    made: dict[str, Audio] = {}
    for i, clip in enumerate(clips):
        waveform = resample(match_channels(clip.audio.waveform, spec.channels), clip.audio.sample_rate, spec.sample_rate)
        lengths = torch.tensor([waveform.shape[1]], device=device)
        out = codec.reconstruct(torch.from_numpy(waveform)[None].to(device), lengths)[0].float().cpu().numpy()
        made[f"{i:02d}-original"] = Audio.unchecked(waveform, spec.sample_rate)
        made[f"{i:02d}-reconstructed"] = Audio.unchecked(fit_length(out, waveform.shape[1]), spec.sample_rate)
    return Made(made, {})


def write_made(made: Made, directory: Path) -> list[Path]:
    """Writes each clip as WAV and PNG, and the lines as JSON lines; returns the files. A clip that is not finite is left out."""
    directory.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for stem, audio in made.clips.items():
        if not np.isfinite(audio.waveform).all():
            continue
        files += [directory / f"{stem}.wav", directory / f"{stem}.png"]
        write_wav(files[-2], audio.waveform, audio.sample_rate)
        save_spectrogram(files[-1], audio.waveform, audio.sample_rate, title=stem)
    for name, lines in made.lines.items():
        _write_lines(directory / name, lines)
        files.append(directory / name)
    return files


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "empty"


def _cut(audio: Audio, max_seconds: float | None) -> Audio:
    if max_seconds is None:
        return audio
    return Audio.unchecked(audio.waveform[:, : int(max_seconds * audio.sample_rate)], audio.sample_rate)


@contextmanager
def _kept_random_state(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
