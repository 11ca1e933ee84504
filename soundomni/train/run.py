"""A whole training run from a spec: data, model, loop, checkpoints, validation.

The same call trains in one process or in each of torchrun's, and resumes where an earlier call stopped.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soundomni.core.assembly.lora import reset_magnitudes
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError, amount
from soundomni.core.pretrained.start import CHECKPOINTS
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.load import resolve
from soundomni.core.spec.schema import Spec, TrainSpec
from soundomni.data.reports import check_any_kept, check_skip_limit
from soundomni.train.best import Best, criterion
from soundomni.train.checkpoint import Checkpointer, find_step, list_checkpoints
from soundomni.train.codec_training import CodecTraining
from soundomni.train.codec_weights import check_codec_weights
from soundomni.train.ema import EMA
from soundomni.train.encoded_data import check_encoded
from soundomni.train.latent_fitting import check_fitted
from soundomni.train.loop import Progress, fit, is_log_step
from soundomni.train.observing import open_held_out, open_validation, write_trace
from soundomni.train.open_teacher import build_teacher, find_teacher
from soundomni.train.parallel import World, batches_per_rank, open_world, parallelize
from soundomni.train.parts import Parts, build_parts, checked_sections
from soundomni.train.phases import build_optimizers, phases_of
from soundomni.train.reporting import open_reporter
from soundomni.train.run_directory.opening import Existing, goes_on, held, open_run, own_run_directory
from soundomni.train.run_directory.spec_changes import check_allowed
from soundomni.train.saving import finish_saving, saving_hooks, write_trained_codec
from soundomni.train.signals import STOPPED_STATUS, StopRequest
from soundomni.train.start_weights import Start, open_start
from soundomni.train.state import RunState
from soundomni.train.terminal import tell
from soundomni.train.tracing import WARMUP_STEPS, traced
from soundomni.train.usage import Usage, peak_memory, summary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        run_dir: the run directory.
        finished: whether all steps are done; otherwise it saved and stopped on request.
        step: number of finished steps.
        checkpoint: the newest checkpoint.
        metrics: metrics of the last step that this call logged.
    """

    run_dir: Path
    finished: bool
    step: int
    checkpoint: Path | None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """Exit status: 0, or STOPPED_STATUS, which asks to run the same command again."""
        return 0 if self.finished else STOPPED_STATUS


@dataclass(frozen=True)
class _RankStep:
    """A Step for the loop."""

    batches: Sequence[PackedBatch]
    state: Mapping[str, Any]
    counts: Mapping[str, float]


def run_training(
    spec: Spec,
    *,
    trust_class_paths: bool = False,
    existing: Existing = "resume",
    from_step: int | None = None,
    profile_steps: int = 0,
    allow_change: Collection[str] = (),
) -> RunResult:
    """Train what a spec describes until its last step, or until SIGTERM or SIGINT asks to stop.

    Args:
        spec: the spec, with `data` and `train`.
        trust_class_paths: whether the spec may name plugins by import path.
        existing: what to do if the run directory already has a run.
        from_step: resume from the checkpoint of this step instead of the newest one; later ones are moved out of the
            way.
        profile_steps: number of steps to record in `trace.json` of the run directory, after the first few; 0 for none.
        allow_change: dotted keys that may differ from those that the run was made with, including all keys below them;
            see spec_changes.py.

    Raises:
        SoundOmniError: the spec, the data or the run directory cannot be used, another process trains in the run
            directory, or the loss is not finite for ten steps in a row.
    """
    data, train, doubts = checked_sections(spec, trust_class_paths=trust_class_paths)
    resolved = resolve(spec, trust_class_paths=trust_class_paths)
    check_allowed(allow_change, resolved)
    if from_step is not None and existing != "resume":
        raise SpecError(f"a run can only go back to step {from_step} if it is resumed. Leave out --existing {existing} or --from-step")
    if profile_steps < 0:
        raise SpecError(f"--profile is {profile_steps}; expected a number of steps of at least 0")
    if train.threads:
        torch.set_num_threads(train.threads)
    with StopRequest() as stop, open_world(train.parallel) as world, ExitStack() as stack:
        for line in doubts:  # here, where the other ranks are silent
            logger.warning("%s", line)
        batches_per_rank(train.batches_per_step, world.size)
        home = own_run_directory(Path(train.run_dir), world, existing=existing)
        if home is not None:
            stack.callback(home.close)
        begins = not world.gather(goes_on(Path(train.run_dir), existing))[0]  # a rank may see a shared disk late
        start = _open_start(resolved, world, trust_class_paths=trust_class_paths) if begins else None
        if begins:
            world.on_every(lambda: check_codec_weights(resolved, start, trust_class_paths=trust_class_paths))
        teacher = find_teacher(resolved, world, start, trust_class_paths=trust_class_paths)
        opened = open_run(
            home,
            resolved,
            world,
            existing=existing,
            from_step=from_step,
            allowed=allow_change,
            trust_class_paths=trust_class_paths,
        )
        parts = build_parts(
            resolved,
            data,
            train,
            world,
            home=home,
            opened=opened,
            start=start,
            teacher=teacher,
            allowed=allow_change,
            trust_class_paths=trust_class_paths,
        )
        stack.callback(parts.loader.close)
        return _train(parts, world, stop=stop, stack=stack, profile_steps=profile_steps, trust_class_paths=trust_class_paths)


def _open_start(spec: Spec, world: World, *, trust_class_paths: bool) -> Start | None:
    """Open the starting model on rank 0, which downloads from the Hub, then on the others, at the same commit."""
    first = world.on_main(lambda: open_start(spec, trust_class_paths=trust_class_paths))
    commit = world.gather(first.model.commit if first is not None else None)[0]
    if world.is_main:
        return first
    with world.own_errors():
        return open_start(spec, commit=commit, trust_class_paths=trust_class_paths)


def _train(parts: Parts, world: World, *, stop: StopRequest, stack: ExitStack, profile_steps: int, trust_class_paths: bool) -> RunResult:
    train, module, run_dir, home = parts.train, parts.module, Path(parts.train.run_dir), parts.home
    usage = Usage.of(module, world, precision=train.precision)
    parallelize(module, world, train)
    if parts.start is not None:
        if isinstance(module, UnifiedModel):
            with world.own_errors():
                parts.start.load(module)
        if world.is_main:
            tell(parts.start.describe())
    if parts.opened.latest is None and isinstance(module, UnifiedModel):
        world.on_every(lambda: reset_magnitudes(module))
    if parts.teacher is not None and isinstance(module, UnifiedModel):
        with world.own_errors():
            parts.teacher.check(parts.opened.latest)
            module.teach = build_teacher(
                parts.teacher, parts.spec, module, world, vocab_size=parts.tokenizer.vocab_size, trust_class_paths=trust_class_paths
            )
    ema = EMA(module, decay=train.ema_decay) if train.ema_decay > 0 else None
    optimizer = build_optimizers(module, phases_of(module, train), trust_class_paths=trust_class_paths)
    state = RunState(module, optimizer, ema, Progress())
    if parts.opened.latest is not None:
        with world.own_errors():
            state.load(parts.opened.latest, world)
        if isinstance(module, UnifiedModel):
            check_fitted(module, parts.mixture)
            check_encoded(module, parts.spec, parts.mixture, trust_class_paths=trust_class_paths)
    if parts.opened.goes_back:
        world.on_main(lambda: held(home).go_back(state.progress.step))
    _forget_lost_best(parts, state.progress, world)
    resumed_step, run = state.progress.step, parts.opened.run
    reporter = world.on_main(partial(open_reporter, parts.spec, train, resumed_step, run=run, trust_class_paths=trust_class_paths))
    if reporter is not None:
        stack.callback(reporter.close)
    checkpointer = Checkpointer(
        run_dir / CHECKPOINTS, world, keep=train.keep_checkpoints, keep_every=train.keep_every, run=parts.opened.run
    )
    stack.callback(checkpointer.wait)
    hooks = saving_hooks(parts, world, state, checkpointer, reporter, stop=stop)
    hooks = dataclasses.replace(
        hooks,
        measure=open_held_out(parts, world, ema, stack, should_stop=hooks.should_stop),
        usage=usage,
        validate=open_validation(parts, world, ema, reporter, trust_class_paths=trust_class_paths),
    )
    steps = _steps(parts, state.progress, world)
    if profile_steps and world.is_main:
        _check_profile(train, state.progress)
        steps = stack.enter_context(closing(traced(steps, profile_steps, partial(write_trace, parts))))
    finished = fit(
        module,
        steps,
        train=train,
        optimizer=state.optimizer,
        ema=ema,
        world=world,
        progress=state.progress,
        hooks=hooks,
    )
    finish_saving(checkpointer, hooks, state.progress, home, world)
    _tell_end(parts, state.progress, world)
    if not finished:
        logger.warning("stopped on request after step %d and saved. Run the same command to resume", state.progress.step)
    newest = next(iter(list_checkpoints(run_dir / CHECKPOINTS)), None)
    if finished and isinstance(module, CodecTraining) and newest is not None:
        world.on_main(partial(write_trained_codec, parts, newest, trust_class_paths=trust_class_paths))
    return RunResult(run_dir, finished, state.progress.step, newest, reporter.last if reporter is not None else {})


def _check_profile(train: TrainSpec, progress: Progress) -> None:
    """Warn if no step is left to record."""
    left = max(0, train.steps - progress.step)
    if left <= WARMUP_STEPS:
        what = f"--profile records nothing: {amount(left, 'step')} left, and the first {WARMUP_STEPS} are not recorded"
        logger.warning("%s. Set train.steps above %d", what, progress.step + WARMUP_STEPS)


def _forget_lost_best(parts: Parts, progress: Progress, world: World) -> None:
    """Start the search for the best step again, with a warning, if the best step so far no longer has an intact checkpoint.

    Otherwise no later step could become the best unless it is better than one that nobody has. A run that has ended early stays so.
    """
    best, validating = progress.best, parts.train.validating
    if best.step in (None, progress.step) or best.judged_by != criterion(validating) or best.is_over(validating):
        return
    lost = world.gather(world.on_main(partial(_lost, Path(parts.train.run_dir) / CHECKPOINTS, int(best.step or 0), parts.opened.run)))[0]
    if lost is not None:
        logger.warning("the search for the best step starts again at step %d, because the best one so far is lost: %s", progress.step, lost)
        progress.best = Best()


def _lost(checkpoints: Path, step: int, run: str) -> str | None:
    """Return why the checkpoint of a step cannot be used, or None."""
    try:
        find_step(checkpoints, step, run=run)
    except CheckpointError as error:
        return str(error).removesuffix(". Choose another step")
    return None


def _tell_end(parts: Parts, progress: Progress, world: World) -> None:
    """Print on stderr why a run ended early, if it did, and what it has done."""
    memory = max(world.gather(peak_memory(world.device)))
    if not world.is_main:
        return
    if progress.step < parts.train.steps and progress.best.is_over(parts.train.validating):
        tell(progress.best.describe_end(progress.step, parts.train.validating))
    tell(summary(progress.step, progress.totals, seconds=progress.seconds, memory=memory))


def _steps(parts: Parts, progress: Progress, world: World) -> Iterator[_RankStep]:
    """Yield the loader's steps with counts that can be summed over ranks: what planning left out counts once.

    The loop sums a step's counts over all ranks and steps before it asks for the next one; then the totals are checked.

    Raises:
        DataError: all ranks together could not read more clips than `data.skip_limit` allows, or filters left out all that they read.
    """
    while True:
        with world.own_errors():
            step = next(parts.loader)
        own = {name: step.counts[name] for name in ("samples", "tokens", "seen", "unreadable", "rejected", "unlisted")}
        shared = {name: step.counts[name] if world.is_main else 0.0 for name in ("refused", "ineligible")}
        lost, left_out = (progress.totals.get(name, 0.0) for name in ("unreadable", "rejected"))
        is_logged = is_log_step(progress.step + 1, parts.train)
        yield _RankStep([batch.broken_down() if is_logged else batch for batch in step.batches], step.state, own | shared)
        if progress.totals["unreadable"] > lost:  # otherwise a run whose files were repaired could never resume
            _check_unreadable(parts, progress.totals, world)
        if progress.totals["unreadable"] > lost or progress.totals["rejected"] > left_out:
            skips = [skip for found in world.gather(parts.loader.rejected) for skip in found]
            check_any_kept(progress.totals, skips=skips)


def _check_unreadable(parts: Parts, totals: Mapping[str, float], world: World) -> None:
    """Raise the same DataError on every rank."""
    skips = [skip for found in world.gather(parts.loader.unreadable) for skip in found]
    check_skip_limit(totals["unreadable"], totals["seen"], limit=parts.data.skip_limit, skips=skips)
