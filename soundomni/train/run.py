"""A whole training run from a spec: data, model, loop, checkpoints, validation.

The same call trains in one process or in each of torchrun's, and resumes where an earlier call stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.profiler import profile

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import CheckpointError, SpecError, amount
from soundomni.core.interfaces import Codec, Dataset
from soundomni.core.pretrained.directory import without_weights
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.start import CHECKPOINTS
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec import registry
from soundomni.core.spec.culprit import named
from soundomni.core.spec.load import resolve, spec_to_dict
from soundomni.core.spec.ranges import check_loss_weights
from soundomni.core.spec.schema import DataSpec, DropoutSpec, MixtureEntry, SegmentTemplate, Slot, Spec, TrainSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.batch_planner import state_for_other_data
from soundomni.data.held_out_batches import plan_held_out
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.prefetch import ClipReader
from soundomni.data.reports import check_skip_limit
from soundomni.data.samples import SampleWriter
from soundomni.train.announcement import announce
from soundomni.train.best import Best, criterion
from soundomni.train.checkpoint import Checkpointer, find_step, list_checkpoints, read_state
from soundomni.train.codec_training import CodecTraining, write_codec
from soundomni.train.ema import EMA
from soundomni.train.held_out import HeldOut
from soundomni.train.latent_fitting import fit_latents
from soundomni.train.loop import Hooks, Progress, fit, is_log_step
from soundomni.train.metrics_log import MetricsLog
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.parallel import World, batches_per_rank, open_world, parallelize
from soundomni.train.preflight import check_spec
from soundomni.train.reporting import Reporter, open_reporter
from soundomni.train.run_directory.files import CODEC_FILE, SAMPLES, TRACE_FILE
from soundomni.train.run_directory.opening import Existing, OpenRun, RunDirectory, goes_on, held, open_run, own_run_directory
from soundomni.train.run_directory.same_data import Listings, check_same_data, list_data
from soundomni.train.run_directory.spec_changes import check_allowed, is_below
from soundomni.train.run_tokenizer import run_tokenizer, tokenizer_digest
from soundomni.train.signals import STOPPED_STATUS, StopRequest
from soundomni.train.start_weights import Start, open_start
from soundomni.train.state import RunState
from soundomni.train.terminal import tell
from soundomni.train.tracing import WARMUP_STEPS, traced
from soundomni.train.usage import Usage, peak_memory, summary
from soundomni.train.validation import Part, Validation, known_clips, make_and_describe, reconstruct

CLIP_TASK = "codec-clip"
"""Task of a run that trains a codec: only the clip."""

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


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a run, before anything is sharded."""

    spec: Spec
    data: DataSpec
    train: TrainSpec
    mixture: Mixture
    tokenizer: TextTokenizer
    model: UnifiedModel
    module: nn.Module
    loader: PackedLoader
    listings: Listings
    opened: OpenRun
    home: RunDirectory | None
    start: Start | None
    profile: int = 0


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
    data, train, doubts = _checked(spec, trust_class_paths=trust_class_paths)
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
        opened = open_run(
            home,
            resolved,
            world,
            existing=existing,
            from_step=from_step,
            allowed=allow_change,
            trust_class_paths=trust_class_paths,
        )
        parts = _build(
            resolved, data, train, world, home=home, opened=opened, start=start, allowed=allow_change, trust_class_paths=trust_class_paths
        )
        stack.callback(parts.loader.close)
        parts = dataclasses.replace(parts, profile=profile_steps)
        return _train(parts, world, stop=stop, stack=stack, trust_class_paths=trust_class_paths)


def _open_start(spec: Spec, world: World, *, trust_class_paths: bool) -> Start | None:
    """Open the starting model on rank 0, which downloads from the Hub, then on the others, at the same commit."""
    first = world.on_main(lambda: open_start(spec, trust_class_paths=trust_class_paths))
    commit = world.gather(first.model.commit if first is not None else None)[0]
    if world.is_main:
        return first
    with world.own_errors():
        return open_start(spec, commit=commit, trust_class_paths=trust_class_paths)


def _checked(spec: Spec, *, trust_class_paths: bool) -> tuple[DataSpec, TrainSpec, list[str]]:
    """Check the spec before anything is built; return its sections, with a codec's own task, and its doubts."""
    data, train = spec.data, spec.train
    if data is None or train is None:
        raise SpecError(f"the spec has no '{'data' if data is None else 'train'}' section, which training needs")
    doubts = check_spec(spec, trust_class_paths=trust_class_paths)
    if train.target == "codec":
        entries: dict[str, MixtureEntry | None] = {
            name: dataclasses.replace(entry, tasks={CLIP_TASK: 1.0}) for name, entry in data.datasets.items() if entry
        }
        tasks = {**data.tasks, CLIP_TASK: [SegmentTemplate(audio="target")]}  # a codec needs no captions
        data = dataclasses.replace(data, datasets=entries, tasks=tasks)
    return data, train, doubts


def _build(
    spec: Spec,
    data: DataSpec,
    train: TrainSpec,
    world: World,
    *,
    home: RunDirectory | None,
    opened: OpenRun,
    start: Start | None,
    allowed: Collection[str],
    trust_class_paths: bool,
) -> _Parts:
    def dataset(slot: Slot) -> Dataset:
        return cast(Dataset, registry.build("dataset", slot, trust_class_paths=trust_class_paths))

    torch.manual_seed(train.seed)
    np.random.seed(train.seed)  # a checkpoint keeps this state too
    random.seed(train.seed)
    mixture = world.on_every(lambda: Mixture.open(data, dataset))
    listings = list_data(mixture, world)
    position = _position(opened, listings, mixture, world, allowed=allowed)
    tokenizer = run_tokenizer(spec, mixture, world, home, latest=opened.latest, start=start)
    model = _model(spec, tokenizer, world, opened=opened, start=start, trust_class_paths=trust_class_paths)
    segments = segment_writer(model, spec.model, tokenizer=tokenizer, codec_only=train.target == "codec")
    writer = SampleWriter(segments, dropout=data.condition_dropout)
    told = announce(mixture, writer, data, codec_rate=model.codec.spec.sample_rate) if world.is_main else ()
    loader = PackedLoader(
        mixture=mixture,
        writer=writer,
        spec=data,
        rank=world.rank,
        world_size=world.size,
        batches_per_step=train.batches_per_step,
        state=position,
        told=told,
    )
    if train.lora is not None:  # after the model has its first weights
        add_adapters(model, train.lora, seed=train.seed)
    module = CodecTraining(model.codec) if train.target == "codec" else model
    if module is model:
        check_loss_weights(train.loss_weights, ("ce", *model.objective.loss_names, *model.router.loss_names))
        if opened.latest is None:
            world.on_main(lambda: fit_latents(model, mixture, loader))
            world.copy_from_main(model.normalizer.buffers())
    return _Parts(
        spec=spec,
        data=data,
        train=train,
        mixture=mixture,
        tokenizer=tokenizer,
        model=model,
        module=module,
        loader=loader,
        listings=listings,
        opened=opened,
        home=home,
        start=start,
    )


def _model(
    spec: Spec, tokenizer: TextTokenizer, world: World, *, opened: OpenRun, start: Start | None, trust_class_paths: bool
) -> UnifiedModel:
    """Return the model before anything is sharded.

    If a checkpoint has its weights, no other file is needed for them.
    """
    section = spec.model
    if opened.latest is not None:
        section = dataclasses.replace(section, codec=without_weights(section.codec))
    model = build_model(
        section,
        vocab_size=tokenizer.vocab_size,
        trust_class_paths=trust_class_paths,
        seed=spec.train.seed if spec.train is not None else 0,
        drawn=start.fresh if start is not None else None,
    )
    if start is not None:
        with world.own_errors():
            start.load_whole(model)
    return model


def _position(opened: OpenRun, listings: Listings, mixture: Mixture, world: World, *, allowed: Collection[str]) -> Any:
    """Return the loader state to resume from: that of the checkpoint, or what still applies if the data changed."""
    if opened.latest is None:
        return None
    saved = read_state(opened.latest)
    state = saved["progress"]["data"]
    is_same = check_same_data(saved.get("data"), listings, mixture, opened.latest, allowed=allowed)
    order = [key for key in opened.changed if is_below(key, ["data"]) and ".source." not in key]
    if is_same and not order:
        return state
    if world.is_main:
        tell("the data has changed: the run resumes with its samples in a new order, and clips of this epoch may be repeated")
    return state_for_other_data(state, mixture)


def _train(parts: _Parts, world: World, *, stop: StopRequest, stack: ExitStack, trust_class_paths: bool) -> RunResult:
    train, module, run_dir, home = parts.train, parts.module, Path(parts.train.run_dir), parts.home
    usage = Usage.of(module, world, precision=train.precision)
    parallelize(module, world, train)
    if parts.start is not None:
        if module is parts.model:
            with world.own_errors():
                parts.start.load(module)
        if world.is_main:
            tell(parts.start.describe())
    ema = EMA(module, decay=train.ema_decay) if train.ema_decay > 0 else None
    state = RunState(module, build_optimizer(module, train.optimizer, trust_class_paths=trust_class_paths), ema, Progress())
    if parts.opened.latest is not None:
        with world.own_errors():
            state.load(parts.opened.latest, world)
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
    hooks = _hooks(parts, world, state, checkpointer, reporter, stop=stop, trust_class_paths=trust_class_paths)
    hooks = dataclasses.replace(hooks, measure=_held_out(parts, world, ema, stack), usage=usage)
    steps = _steps(parts, state.progress, world)
    if parts.profile and world.is_main:
        left = max(0, train.steps - state.progress.step)
        if left <= WARMUP_STEPS:
            what = f"--profile records nothing: {amount(left, 'step')} left, and the first {WARMUP_STEPS} are not recorded"
            logger.warning("%s. Set train.steps above %d", what, state.progress.step + WARMUP_STEPS)
        steps = stack.enter_context(closing(traced(steps, parts.profile, partial(_write_trace, parts))))
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
    _finish_saving(checkpointer, hooks, state.progress, home, world)
    _tell_end(parts, state.progress, usage, world)
    if not finished:
        logger.warning(
            "stopped on request after step %d and saved. Run the same command to resume",
            state.progress.step,
        )
    newest = next(iter(list_checkpoints(run_dir / CHECKPOINTS)), None)
    if finished and isinstance(module, CodecTraining) and newest is not None:
        world.on_main(partial(_write_codec, parts, newest, trust_class_paths=trust_class_paths))
    return RunResult(run_dir, finished, state.progress.step, newest, reporter.last if reporter is not None else {})


def _forget_lost_best(parts: _Parts, progress: Progress, world: World) -> None:
    """Compare steps anew, with a warning, if the best step so far no longer has an intact checkpoint.

    Otherwise no later step could become the best unless it is better than one that nobody has. A run that has ended early stays so.
    """
    best, validating = progress.best, parts.train.validating
    if best.step in (None, progress.step) or best.judged_by != criterion(validating) or best.is_over(validating):
        return
    lost = world.gather(world.on_main(partial(_lost, Path(parts.train.run_dir) / CHECKPOINTS, int(best.step or 0), parts.opened.run)))[0]
    if lost is not None:
        logger.warning("steps are compared anew from step %d on, because the best one so far is lost: %s", progress.step, lost)
        progress.best = Best()


def _lost(checkpoints: Path, step: int, run: str) -> str | None:
    """Return why the checkpoint of a step cannot be used, or None."""
    try:
        find_step(checkpoints, step, run=run)
    except CheckpointError as error:
        return str(error).removesuffix(". Choose another step")
    return None


def _tell_end(parts: _Parts, progress: Progress, usage: Usage, world: World) -> None:
    """Print on stderr why a run ended early, if it did, and what it has done."""
    memory = max(world.gather(peak_memory(world.device)))
    if not world.is_main:
        return
    if progress.step < parts.train.steps and progress.best.is_over(parts.train.validating):
        tell(progress.best.describe_end(progress.step, parts.train.validating))
    tell(summary(progress.step, progress.totals, seconds=progress.seconds, memory=memory))


def _write_trace(parts: _Parts, profiler: profile) -> None:
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


def _hooks(
    parts: _Parts,
    world: World,
    state: RunState,
    checkpointer: Checkpointer,
    reporter: Reporter | None,
    *,
    stop: StopRequest,
    trust_class_paths: bool,
) -> Hooks:
    """Return the hooks of the loop. If the run directory disappears, the run stops as it does on a signal."""
    home, identity = parts.home, _identity(parts, world)

    late: dict[int, Mapping[str, float]] = {}

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
        state.save(checkpointer, world, identity=identity)

    def report(step: int, files: Sequence[Path]) -> None:
        held(home).record(files)
        if reporter is not None:
            reporter.files(step, files)

    return Hooks(
        log=log,
        should_stop=should_stop,
        save=save,
        validate=_validation(parts, world, state.ema, report, trust_class_paths=trust_class_paths),
    )


def _identity(parts: _Parts, world: World) -> dict[str, Any]:
    """Return what identifies the run in a checkpoint; from now on, a deleted run directory is restored."""
    world.on_main(lambda: held(parts.home).remember())
    return {
        "run": parts.opened.run,
        "spec": spec_to_dict(parts.spec),
        "tokenizer": world.gather(world.on_main(lambda: tokenizer_digest(held(parts.home).directory)))[0],
        "data": {name: listing.to_json() for name, listing in parts.listings.items()},
    }


def _is_lost(home: RunDirectory | None, world: World) -> bool:
    return any(world.gather(home is not None and home.is_lost()))


def _finish_saving(checkpointer: Checkpointer, hooks: Hooks, progress: Progress, home: RunDirectory | None, world: World) -> None:
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


def _write_codec(parts: _Parts, checkpoint: Path, *, trust_class_paths: bool) -> None:
    """Write the codec of a finished run, in a file that belongs to the run from the start."""
    home = held(parts.home)
    slot = without_weights(parts.spec.model.codec)
    codec = cast(Codec, registry.build("codec", slot, trust_class_paths=trust_class_paths))
    part = home.directory / f".{CODEC_FILE}.part"
    write_codec(codec, checkpoint, part)
    home.adopt(part, CODEC_FILE)


def _steps(parts: _Parts, progress: Progress, world: World) -> Iterator[_RankStep]:
    """Yield the loader's steps with counts that can be summed over ranks: what planning left out counts once.

    The loop sums a step's counts over all ranks and steps before it asks for the next one; then the totals are checked.

    Raises:
        DataError: all ranks together could not read more clips than `data.skip_limit` allows.
    """
    while True:
        with world.own_errors():
            step = next(parts.loader)
        own = {name: step.counts[name] for name in ("samples", "tokens", "seen", "unreadable", "unlisted")}
        shared = {name: step.counts[name] if world.is_main else 0.0 for name in ("refused", "ineligible")}
        lost = progress.totals.get("unreadable", 0.0)
        is_logged = is_log_step(progress.step + 1, parts.train)
        yield _RankStep([batch.broken_down() if is_logged else batch for batch in step.batches], step.state, own | shared)
        if progress.totals["unreadable"] > lost:  # otherwise a run whose files were repaired could never resume
            _check_unreadable(parts, progress.totals, world)


def _check_unreadable(parts: _Parts, totals: Mapping[str, float], world: World) -> None:
    """Raise the same DataError on every rank."""
    skips = [skip for found in world.gather(parts.loader.unreadable) for skip in found]
    check_skip_limit(totals["unreadable"], totals["seen"], limit=parts.data.skip_limit, skips=skips)


def _held_out(parts: _Parts, world: World, ema: EMA | None, stack: ExitStack) -> HeldOut | None:
    """Return a measurement of the losses on held-out items; None if nothing is held out, or it is switched off."""
    train, validating = parts.train, parts.train.validating
    if not validating.every or not validating.num_held_out:
        return None
    segments = segment_writer(parts.model, parts.spec.model, tokenizer=parts.tokenizer, codec_only=train.target == "codec")
    writer = SampleWriter(segments, dropout=DropoutSpec(text=0.0, latent=0.0, features=0.0))
    batches = plan_held_out(parts.mixture, writer, parts.data, most=validating.num_held_out)
    if not batches:
        return None
    reader = ClipReader(mixture=parts.mixture, writer=writer, workers=parts.data.workers)
    stack.callback(reader.close)
    return HeldOut(batches=batches, reader=reader, module=parts.module, ema=ema, world=world, train=train, explain=named)


def _validation(
    parts: _Parts, world: World, ema: EMA | None, report: Callable[[int, Sequence[Path]], None], *, trust_class_paths: bool
) -> Validation:
    train, module = parts.train, parts.module
    made: list[Part] = []
    if train.validating.every:
        clips = world.share(lambda: known_clips(parts.mixture, train.validating.num_describe))
        if isinstance(module, CodecTraining):
            made = reconstruct(module, clips, world.device)
        else:
            omni = SoundOmni(parts.model, parts.spec, parts.tokenizer, trust_class_paths=trust_class_paths)
            made = make_and_describe(omni, train, clips)
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
