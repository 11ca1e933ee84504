"""What a run measures and makes while it trains: held-out losses, samples, and a trace of some steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from torch.profiler import profile

from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.culprit import named
from soundomni.core.spec.schema import DropoutSpec
from soundomni.data.held_out_batches import plan_held_out
from soundomni.data.prefetch import ClipReader
from soundomni.data.samples import SampleWriter
from soundomni.train.codec_training import CodecTraining
from soundomni.train.ema import EMA
from soundomni.train.held_out import HeldOut
from soundomni.train.parallel import World
from soundomni.train.parts import Parts
from soundomni.train.reporting import Reporter
from soundomni.train.run_directory.files import SAMPLES, TRACE_FILE
from soundomni.train.run_directory.opening import held
from soundomni.train.terminal import tell
from soundomni.train.validation import Part, Validation, known_clips, make_and_describe, reconstruct

logger = logging.getLogger(__name__)


def open_held_out(parts: Parts, world: World, ema: EMA | None, stack: ExitStack, *, should_stop: Callable[[], bool]) -> HeldOut | None:
    """Return a measurement of the losses on held-out items; None if nothing is held out, or it is switched off."""
    train, validating = parts.train, parts.train.validating
    if not validating.every or not validating.num_held_out:
        return None
    writer = SampleWriter(parts.segments, dropout=DropoutSpec(text=0.0, latent=0.0, features=0.0))
    batches = plan_held_out(parts.mixture, writer, parts.data, most=validating.num_held_out)
    if not batches:
        return None
    reader = ClipReader(mixture=parts.mixture, writer=writer, workers=parts.data.workers)
    stack.callback(reader.close)
    return HeldOut(
        batches=batches,
        reader=reader,
        module=parts.module,
        ema=ema,
        world=world,
        train=train,
        should_stop=should_stop,
        explain=named,
    )


def open_validation(parts: Parts, world: World, ema: EMA | None, reporter: Reporter | None, *, trust_class_paths: bool) -> Validation:
    """Return what makes and reports samples of the model, or nothing if that is switched off."""
    train, module = parts.train, parts.module
    made: list[Part] = []
    if train.validating.every:
        clips = world.share(lambda: known_clips(parts.mixture, train.validating.num_describe))
        if isinstance(module, CodecTraining):
            made = reconstruct(module, clips, world.device)
        else:
            omni = SoundOmni(module, parts.spec, parts.tokenizer, trust_class_paths=trust_class_paths, in_training=True)
            made = make_and_describe(omni, train, clips)

    def report(step: int, files: Sequence[Path]) -> None:
        held(parts.home).record(files)
        if reporter is not None:
            reporter.files(step, files)

    return Validation(
        parts=made,
        module=module,
        ema=ema,
        samples_dir=Path(train.run_dir) / SAMPLES,
        world=world,
        train=train,
        report=report,
        explain=named,
    )


def write_trace(parts: Parts, profiler: profile) -> None:
    """Write a trace into the run directory.

    A failure is only a warning, because the other ranks do not know about it.
    """
    home = held(parts.home)
    part = home.directory / f".{TRACE_FILE}.part"
    try:
        part.unlink(missing_ok=True)  # left by a killed run, or a link, which would be followed
        profiler.export_chrome_trace(str(part))
        home.adopt(part, TRACE_FILE)
    except (OSError, RuntimeError, CheckpointError) as error:
        logger.warning("the trace could not be written; training continues: %s", named(error))
        with suppress(OSError):
            part.unlink(missing_ok=True)  # a part of it would take the space that checkpoints need
        return
    tell(f"the trace is '{home.directory / TRACE_FILE}'. Open it in chrome://tracing or ui.perfetto.dev")
