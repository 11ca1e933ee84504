"""What a run saves, wherever its directory is by then: checkpoints, its log, and the codec that it trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from soundomni.core.errors import CheckpointError
from soundomni.core.interfaces import Codec
from soundomni.core.pretrained.directory import without_weights
from soundomni.core.pretrained.start import CHECKPOINTS
from soundomni.core.spec import registry
from soundomni.core.spec.load import spec_to_dict
from soundomni.train.checkpoint import Checkpointer
from soundomni.train.codec_training import CodecTraining, write_codec
from soundomni.train.loop import Hooks, Progress
from soundomni.train.metrics_log import FILE_NAME as METRICS_FILE
from soundomni.train.metrics_log import MetricsLog, read_metrics
from soundomni.train.open_teacher import KEY as TEACHER
from soundomni.train.parallel import World
from soundomni.train.parts import Parts
from soundomni.train.reporting import Reporter
from soundomni.train.run_directory.files import CODEC_FILE
from soundomni.train.run_directory.opening import RunDirectory, held
from soundomni.train.run_tokenizer import tokenizer_digest
from soundomni.train.signals import StopRequest
from soundomni.train.state import RunState


def saving_hooks(
    parts: Parts, world: World, state: RunState, checkpointer: Checkpointer, reporter: Reporter | None, *, stop: StopRequest
) -> Hooks:
    """Return the hooks that log, guard, save and stop. If the run directory disappears, the run stops as it does on a signal."""
    home, identity = parts.home, _identity(parts, world)
    late: dict[int, Mapping[str, float]] = {}
    guards = parts.module.guards() if isinstance(parts.module, CodecTraining) else None
    if guards is not None and state.progress.step > 0:
        guards.resumed(state.progress.step, world.share(lambda: _first_logged(held(home).directory)))

    def guard(step: int, metrics: Mapping[str, float]) -> None:
        if guards is not None:
            guards(step, metrics)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if home is not None and home.is_lost():
            late[step] = metrics
        elif reporter is not None:
            reporter.log(step, metrics)

    def should_stop() -> bool:
        stop.requested |= home is not None and home.is_lost()
        return stop.agreed(world)

    def save(progress: Progress) -> None:
        if _is_lost(home, world):
            with suppress(CheckpointError):  # what was being written disappeared with the directory
                checkpointer.wait()
        place = world.gather(world.on_main(lambda: held(home).secure()))[0]
        checkpointer.directory = place / CHECKPOINTS
        while late:  # measured since the directory disappeared
            step, metrics = late.popitem()
            MetricsLog(place, resumed_step=step - 1, run=parts.opened.run).log(step, metrics)
        if guards is not None:
            guards.saved(progress.step)
            checkpointer.spared = guards.good_step
        state.save(checkpointer, world, identity=identity)

    return Hooks(guard=guard, log=log, should_stop=should_stop, save=save)


def _first_logged(run_dir: Path) -> dict[str, float]:
    """Return the losses of the first step that a run logged; none if its log is gone, without which training continues."""
    with suppress(OSError):
        line = next((line for line in read_metrics(run_dir / METRICS_FILE) if "loss" in line), {})
        return {name: value for name, value in line.items() if name.startswith("loss/") and isinstance(value, float)}
    return {}


def _identity(parts: Parts, world: World) -> dict[str, Any]:
    """Return what identifies the run in a checkpoint; from now on, a deleted run directory is restored."""
    world.on_main(lambda: held(parts.home).remember())
    return {
        "run": parts.opened.run,
        "spec": spec_to_dict(parts.spec),
        "tokenizer": world.gather(world.on_main(lambda: tokenizer_digest(held(parts.home).directory)))[0],
        "data": {name: listing.to_json() for name, listing in parts.listings.items()},
        **({} if parts.teacher is None else {TEACHER: parts.teacher.digest}),
    }


def _is_lost(home: RunDirectory | None, world: World) -> bool:
    return any(world.gather(home is not None and home.is_lost()))


def finish_saving(checkpointer: Checkpointer, hooks: Hooks, progress: Progress, home: RunDirectory | None, world: World) -> None:
    """Wait for the last checkpoint, and save again if the directory disappeared meanwhile.

    Raises:
        CheckpointError: it could not be written, or the run directory is no longer in its place.
    """

    def check_place() -> None:
        if held(home).problem is not None:
            raise CheckpointError(f"stopped after step {progress.step} and saved: {held(home).problem}")

    try:
        checkpointer.wait()
    except CheckpointError:
        if not _is_lost(home, world):
            raise
        hooks.save(progress)
        checkpointer.wait()
    world.on_main(check_place)


def write_trained_codec(parts: Parts, checkpoint: Path, *, trust_class_paths: bool) -> None:
    """Write the codec of a finished run, in a file that belongs to the run from the start."""
    home = held(parts.home)
    assert parts.spec.codec is not None, "the run trained a codec"
    slot = without_weights(parts.spec.codec.codec)
    codec = cast(Codec, registry.build("codec", slot, trust_class_paths=trust_class_paths))
    part = home.directory / f".{CODEC_FILE}.part"
    write_codec(codec, checkpoint, part)
    home.adopt(part, CODEC_FILE)
