"""What a run makes while it trains, to hear, see and read its progress: clips, descriptions and reconstructions.

All ranks compute in lockstep, because weights are sharded; rank 0 writes. The random state of training does not change.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from soundomni.core.errors import SoundOmniError, UnreadableAudioError, printable, reason
from soundomni.core.files.paths import slug
from soundomni.core.files.whole_files import write_whole
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.clips import validation_seconds
from soundomni.core.spec.schema import TrainSpec
from soundomni.core.waveform import Audio, fit_length, match_channels, resample
from soundomni.data.audio import write_wav
from soundomni.data.mixture import Mixture
from soundomni.data.spectrogram import save_spectrogram
from soundomni.train.codec_training import CodecTraining
from soundomni.train.ema import EMA
from soundomni.train.parallel import World, computing_precision, reshard
from soundomni.train.state import kept_random_state

DESCRIPTIONS_FILE, PROMPTS_FILE = "descriptions.jsonl", "prompts.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownClip:
    """A clip of the data, and its captions."""

    key: str
    audio: Audio
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """Clips by file stem, and lines for text files by file name."""

    clips: dict[str, Audio] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One of the things that validation makes; if it fails, the others are still made.

    Args:
        name: its name in warnings.
        make: computes it, on every rank.
    """

    name: str
    make: Callable[[], Made]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Writes `samples_dir/step-N/` at a step, and reports its files. An error in it never ends a run.

    Args:
        parts: what to make, the same on every rank.
        module: the module that computes, with the averaged weights if there are any.
        ema: the averages, or None.
        samples_dir: the folder `samples` of the run directory.
        world, train: those of the run.
        report: receives the step and the files, on rank 0.
        explain: returns an error as one line, with the plugin that raised it if that is known.
    """

    parts: Sequence[Part]
    module: nn.Module
    ema: EMA | None
    samples_dir: Path
    world: World
    train: TrainSpec
    report: Callable[[int, Sequence[Path]], None]
    explain: Callable[[BaseException], str] = reason
    told: set[str] = field(default_factory=set)

    def __call__(self, step: int) -> None:
        """Make and write everything. A warning names each failure, once per reason, and the run continues."""
        made = Made()
        averaged = self.ema.swapped(self.module) if self.ema is not None else nullcontext()
        with kept_random_state(self.world.device), averaged, torch.no_grad(), computing_precision(self.world, self.train):
            for part in self.parts:
                self._add(made, part, step)
        reshard(self.module)
        try:
            failures = self.world.share(partial(self._write, made, step))
        except (OSError, SoundOmniError) as error:
            failures = [reason(error)]
        if failures:
            more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
            self._warn(f"what validation made at step {step} could not be written", failures[0], more)

    def _add(self, made: Made, part: Part, step: int) -> None:
        found, failure = self.world.attempt(part.make, module=self.module, explain=self.explain)
        if failure is not None:
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()  # it may have run out of memory, which must not hit the next training step
            self._warn(f"{part.name} at step {step} failed", failure)
        if found is not None:
            made.clips.update(found.clips)
            for name, lines in found.lines.items():
                made.lines.setdefault(name, []).extend(lines)

    def _write(self, made: Made, step: int) -> list[str]:
        """Write what was made and report it; return what failed."""
        if not made.clips and not made.lines:
            return []
        files, failures = write_made(made, self.samples_dir / f"step-{step:08d}")
        self.report(step, files)
        return failures

    def _warn(self, what: str, failure: str, more: str = "") -> None:
        if failure not in self.told:
            self.told.add(failure)
            logger.warning("%s; training continues, and this warning is not repeated: %s%s", what, failure, more)


def known_clips(mixture: Mixture, count: int) -> list[KnownClip]:
    """Return the first `count` readable clips of the datasets; a warning names the first that fails in each."""
    clips: list[KnownClip] = []
    failing: set[str] = set()
    for name, source in mixture.sources.items():
        for index in range(len(source.dataset) if source.dataset.encoding is None else 0):
            if len(clips) == count:
                return clips
            try:
                item = source.dataset.item(index)
                waveform, rate = source.dataset.load(index)
                clips.append(KnownClip(item.key, Audio(waveform, rate), item.captions))
            except UnreadableAudioError:
                continue  # the loader reports it when its turn comes
            except Exception as error:
                if name not in failing:
                    logger.warning("clip %d of dataset '%s' is left out of validation: %s", index, name, reason(error))
                failing.add(name)
    return clips


def make_and_describe(omni: SoundOmni, train: TrainSpec, clips: Sequence[KnownClip]) -> list[Part]:
    """Return the parts that generate from the prompts of `train.validation` and describe `clips`, if the model can."""
    parts = []
    made = [modality.name for modality in omni.model.all_made] if train.validating.prompts else []
    for name in made:
        what = "generating from train.validation.prompts" + (f" ({name})" if len(made) > 1 else "")
        parts.append(Part(what, partial(_generate, omni, train, name, f"-{name}" if len(made) > 1 else "")))
    if omni.model.all_heard:
        parts += [Part(f"describing clip '{printable(clip.key)}'", partial(_describe, omni, clip)) for clip in clips]
    return parts


def _generate(omni: SoundOmni, train: TrainSpec, of: str, suffix: str) -> Made:
    prompts = train.validating.prompts
    made = omni.generate(prompts, seconds=validation_seconds(train, omni.clips), seeds=train.seed, of=of)
    stems = [f"{i:02d}-" + slug(prompt, default="empty") + suffix for i, prompt in enumerate(prompts)]
    lines = [{"file": f"{stem}.wav", "prompt": prompt} for stem, prompt in zip(stems, prompts, strict=True)]
    return Made(dict(zip(stems, made, strict=True)), {PROMPTS_FILE: lines})


def _describe(omni: SoundOmni, clip: KnownClip) -> Made:
    heard = omni.model.heard()
    assert heard is not None, "the model hears"
    (text,) = omni.describe([_cut(clip.audio, heard.encoder.spec.max_seconds)])
    return Made(lines={DESCRIPTIONS_FILE: [{"clip": clip.key, "captions": list(clip.captions), "description": text}]})


def reconstruct(codec: CodecTraining, clips: Sequence[KnownClip], device: torch.device) -> list[Part]:
    """Return the parts that send `clips` through the codec and back; each is written next to its original."""
    return [
        Part(f"reconstructing clip '{printable(clip.key)}'", partial(_reconstruct, codec, clip, f"{i:02d}", device))
        for i, clip in enumerate(clips)
    ]


def _reconstruct(codec: CodecTraining, clip: KnownClip, stem: str, device: torch.device) -> Made:
    spec = codec.codec.spec
    waveform = resample(match_channels(clip.audio.waveform, spec.channels), clip.audio.sample_rate, spec.sample_rate)
    lengths = torch.tensor([waveform.shape[1]], device=device)
    out = codec.reconstruct(torch.from_numpy(waveform)[None].to(device), lengths)[0].float().cpu().numpy()
    original = Audio.unchecked(waveform, spec.sample_rate)
    made = Audio.unchecked(fit_length(out, waveform.shape[1]), spec.sample_rate)
    return Made({f"{stem}-original": original, f"{stem}-reconstructed": made})


def write_made(made: Made, directory: Path) -> tuple[list[Path], list[str]]:
    """Write each clip as WAV and PNG, and the lines as JSON lines; return the files and the failures.

    A file that fails does not stop the others.
    """
    files: list[Path] = []
    failures: list[str] = []

    def attempt(path: Path, write: Callable[[Path], object]) -> None:
        try:
            write(path)
        except Exception as error:  # a full disk, a picture that cannot be drawn: the others may work
            failures.append(f"'{path.name}': {reason(error)}")
        else:
            files.append(path)

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [], [f"no folder can be created in '{directory.parent}': {error.strerror or error}"]
    for stem, audio in made.clips.items():
        if not np.isfinite(audio.waveform).all():
            failures.append(f"'{stem}.wav': it has samples that are not finite")
            continue
        attempt(directory / f"{stem}.wav", lambda path, audio=audio: write_wav(path, audio.waveform, audio.sample_rate))  # type: ignore[misc]
        attempt(
            directory / f"{stem}.png",
            lambda path, audio=audio, stem=stem: save_spectrogram(path, audio.waveform, audio.sample_rate, title=stem),  # type: ignore[misc]
        )
    for name, lines in made.lines.items():
        attempt(directory / name, partial(_write_lines, lines))
    return files, failures


def _write_lines(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write JSON lines. A file name that is not UTF-8 has surrogates, which are escaped as in JSON."""
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _cut(audio: Audio, max_seconds: float | None) -> Audio:
    if max_seconds is None:
        return audio
    return Audio.unchecked(audio.waveform[:, : int(max_seconds * audio.sample_rate)], audio.sample_rate)
