"""A whole training run from a spec: data, model, loop, checkpoints, validation.

The same call trains in one process or in each of torchrun's, and goes on where an earlier call stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from soundomni.core import registry
from soundomni.core.assembly import build_model
from soundomni.core.checks import check_loss_weights
from soundomni.core.errors import CheckpointError, DataError, SpecError, reason
from soundomni.core.hub import SoundOmni
from soundomni.core.interfaces import Codec, Dataset, Tracker
from soundomni.core.lora import add_adapters
from soundomni.core.model import UnifiedModel
from soundomni.core.schema import DataSpec, MixtureEntry, SegmentTemplate, Slot, Spec, TrainSpec
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec import resolve, spec_to_dict
from soundomni.core.start import CHECKPOINTS, write_kept
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.reports import check_skip_limit, name_first
from soundomni.train.announcement import announce
from soundomni.train.checkpoint import Checkpointer, list_checkpoints, read_state
from soundomni.train.checks import check_spec
from soundomni.train.codec_training import CodecTraining, write_codec
from soundomni.train.ema import EMA
from soundomni.train.loop import Hooks, Progress, fit
from soundomni.train.optim import build_optimizer
from soundomni.train.parallel import World, batches_per_rank, open_world, parallelise
from soundomni.train.reporting import Reporter, begin_tracker
from soundomni.train.run_directory import CODEC_FILE, SAMPLES, Existing, goes_on, open_run
from soundomni.train.sample_writer import sample_writer
from soundomni.train.signals import STOPPED_STATUS, StopRequest
from soundomni.train.start import Start, open_start
from soundomni.train.state import RunState
from soundomni.train.terminal import tell
from soundomni.train.validation import Part, Validation, known_clips, make_and_describe, reconstruct

TOKENIZER_TEXTS = 20_000
"""Items of each dataset whose texts a tokenizer is learnt from."""
CLIP_TASK = "codec-clip"
"""The task of a run that trains a codec: the clip alone."""
FIT_CLIPS, FIT_BATCHES = 64, (8, 16, 32, 64)
"""Clips that the latent normalisation is best fitted on, and numbers of packed batches among which they are looked for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        run_dir: the run directory.
        finished: whether all steps are done; otherwise it saved and stopped on request.
        step: finished steps.
        checkpoint: the newest one.
        metrics: of the last logged step of this call.
    """

    run_dir: Path
    finished: bool
    step: int
    checkpoint: Path | None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0, or STOPPED_STATUS, which asks to run the same command again."""
        return 0 if self.finished else STOPPED_STATUS


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a run is made of, before anything is sharded."""

    spec: Spec
    data: DataSpec
    train: TrainSpec
    mixture: Mixture
    tokenizer: TextTokenizer
    model: UnifiedModel
    module: nn.Module
    loader: PackedLoader
    start: Start | None


@dataclass(frozen=True)
class _RankStep:
    """A Step for the loop."""

    batches: Sequence[PackedBatch]
    state: Mapping[str, Any]
    counts: Mapping[str, float]


def run_training(spec: Spec, *, trust_class_paths: bool = False, existing: Existing = "resume") -> RunResult:
    """Trains what a spec describes until its last step, or until SIGTERM or SIGINT asks to stop.

    Args:
        spec: with `data` and `train`.
        trust_class_paths: whether its plugins may be named by import path.
        existing: what to do when the run directory holds a run.

    Raises:
        SoundOmniError: the spec, the data or the run directory cannot be used, or the loss is not finite for ten steps in a row.
    """
    data, train, doubts = _checked(spec, trust_class_paths=trust_class_paths)
    resolved = resolve(spec, trust_class_paths=trust_class_paths)
    if train.threads:
        torch.set_num_threads(train.threads)
    with StopRequest() as stop, open_world(train.parallel) as world, ExitStack() as stack:
        for line in doubts:  # here, where the other ranks are silent
            logger.warning("%s", line)
        batches_per_rank(train.batches_per_step, world.size)
        begins = not world.gather(goes_on(Path(train.run_dir), existing))[0]  # a rank may see a shared disk late
        start = _open_start(resolved, world, trust_class_paths=trust_class_paths) if begins else None
        latest = open_run(Path(train.run_dir), resolved, world, existing=existing)
        parts = _build(resolved, data, train, world, latest=latest, start=start, trust_class_paths=trust_class_paths)
        stack.callback(parts.loader.close)
        return _train(parts, world, latest=latest, stop=stop, stack=stack, trust_class_paths=trust_class_paths)


def _open_start(spec: Spec, world: World, *, trust_class_paths: bool) -> Start | None:
    """Opens the model to start from on the first rank, which fetches what is of the Hub, then on the others, in the same commit."""
    first = world.on_main(lambda: open_start(spec, trust_class_paths=trust_class_paths))
    commit = world.gather(first.model.commit if first is not None else None)[0]
    if world.is_main:
        return first
    with world.own_errors():
        return open_start(spec, commit=commit, trust_class_paths=trust_class_paths)


def _checked(spec: Spec, *, trust_class_paths: bool) -> tuple[DataSpec, TrainSpec, list[str]]:
    """Refuses what cannot work, validation included, before anything is built; settles what a codec is trained on; returns doubts."""
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
    latest: Path | None,
    start: Start | None,
    trust_class_paths: bool,
) -> _Parts:
    def dataset(slot: Slot) -> Dataset:
        return cast(Dataset, registry.build("dataset", slot, trust_class_paths=trust_class_paths))

    torch.manual_seed(train.seed)
    random.seed(train.seed)
    mixture = Mixture.open(data, dataset)
    tokenizer = _tokenizer(spec, mixture, world, Path(train.run_dir), latest=latest, start=start)
    model = build_model(
        spec.model,
        vocab_size=tokenizer.vocab_size,
        trust_class_paths=trust_class_paths,
        seed=train.seed,
        drawn=start.fresh if start is not None else None,
    )
    if start is not None:
        with world.own_errors():
            start.load_whole(model)
    writer = sample_writer(model, spec.model, tokenizer=tokenizer, dropout=data.condition_dropout, codec_alone=train.target == "codec")
    told = announce(mixture, writer, data, codec_rate=model.codec.spec.sample_rate) if world.is_main else ()
    loader = PackedLoader(
        mixture=mixture,
        writer=writer,
        spec=data,
        rank=world.rank,
        world_size=world.size,
        batches_per_step=train.batches_per_step,
        state=read_state(latest)["progress"]["data"] if latest is not None else None,
        told=told,
    )
    if train.lora is not None:  # after whatever gives the model its first weights
        add_adapters(model, train.lora, seed=train.seed)
    module = CodecTraining(model.codec) if train.target == "codec" else model
    if module is model:
        check_loss_weights(train.loss_weights, ("ce", *model.objective.loss_names, *model.router.loss_names))
        if latest is None:
            _fit_latents(model, mixture, loader)
    return _Parts(
        spec=spec,
        data=data,
        train=train,
        mixture=mixture,
        tokenizer=tokenizer,
        model=model,
        module=module,
        loader=loader,
        start=start,
    )


def _tokenizer(spec: Spec, mixture: Mixture, world: World, run_dir: Path, *, latest: Path | None, start: Start | None) -> TextTokenizer:
    """Returns the run's tokenizer: kept in the run directory, and at first that of the model to start from, of a path, or learnt."""
    if latest is not None:
        if _fingerprint(run_dir) != read_state(latest)["tokenizer"]:
            raise CheckpointError(f"'{run_dir / TOKENIZER_FILE}' is not the tokenizer that '{latest}' was trained with")
        return TextTokenizer.load(run_dir)
    wanted = spec.model.tokenizer
    if start is not None:
        tokenizer = start.tokenizer()
        world.on_main(lambda: write_kept(run_dir, start.model))
    elif wanted.path is not None:
        tokenizer = TextTokenizer.load(wanted.path)
    else:
        tokenizer = TextTokenizer.train(mixture.captions(TOKENIZER_TEXTS), vocab_size=wanted.vocab_size)
    world.on_main(lambda: tokenizer.save(run_dir))
    return tokenizer


def _fit_latents(model: UnifiedModel, mixture: Mixture, loader: PackedLoader) -> None:
    """Fits the latent normalisation on the first clips of the data, or leaves it alone when no task ever uses latents.

    One that a model to start from brings is kept.
    """
    if model.normalizer.measured:
        return
    tasks = [task for choices in mixture.tasks.values() for task, weight in choices if weight > 0]
    if not any(task.uses("target") or task.uses("context") for task in tasks):
        model.normalizer.leave()
        return
    for count in FIT_BATCHES:
        batches = loader.preview_batches(count)
        num_clips = sum(len(batch.latents) for batch in batches)
        if num_clips >= FIT_CLIPS:
            break
    if num_clips == 0:
        reason = name_first(loader.unreadable) or "give tasks such as generate more weight"
        raise DataError(f"latents cannot be normalised: the first {len(batches)} packed batches hold no clip to make; {reason}")
    model.fit_latents(batches)


def _fingerprint(run_dir: Path) -> str:
    try:
        return hashlib.sha256((run_dir / TOKENIZER_FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"'{run_dir / TOKENIZER_FILE}' cannot be read: {error.strerror}") from error


def _train(parts: _Parts, world: World, *, latest: Path | None, stop: StopRequest, stack: ExitStack, trust_class_paths: bool) -> RunResult:
    train, module, run_dir = parts.train, parts.module, Path(parts.train.run_dir)
    parallelise(module, world, train)
    if parts.start is not None:
        if module is parts.model:
            with world.own_errors():
                parts.start.load(module)
        if world.is_main:
            tell(parts.start.describe())
    ema = EMA(module, decay=train.ema_decay) if train.ema_decay > 0 else None
    state = RunState(module, build_optimizer(module, train.optimizer, trust_class_paths=trust_class_paths), ema, Progress())
    if latest is not None:
        with world.own_errors():
            state.load(latest, world)
    reporter = world.on_main(partial(_reporter, parts, state.progress.step, trust_class_paths=trust_class_paths))
    if reporter is not None:
        stack.callback(reporter.close)
    checkpointer = Checkpointer(run_dir / CHECKPOINTS, world, keep=train.keep_checkpoints)
    stack.callback(checkpointer.wait)
    identity = {"spec": spec_to_dict(parts.spec), "tokenizer": _fingerprint(run_dir)}
    finished = fit(
        module,
        _steps(parts, state.progress, world),
        train=train,
        optimizer=state.optimizer,
        ema=ema,
        world=world,
        progress=state.progress,
        hooks=Hooks(
            log=reporter.log if reporter is not None else _ignore,
            should_stop=lambda: stop.agreed(world),
            save=lambda progress: state.save(checkpointer, world, identity=identity),
            validate=_validation(
                parts, world, ema, reporter.files if reporter is not None else _ignore, trust_class_paths=trust_class_paths
            ),
        ),
    )
    checkpointer.wait()
    if not finished:
        logger.warning("stopped on request after step %d and saved; the same command goes on", state.progress.step)
    newest = next(iter(list_checkpoints(run_dir / CHECKPOINTS)), None)
    if finished and isinstance(module, CodecTraining) and newest is not None:
        codec = cast(Codec, registry.build("codec", parts.spec.model.codec, trust_class_paths=trust_class_paths))
        world.on_main(partial(write_codec, codec, newest, run_dir / CODEC_FILE))
    return RunResult(run_dir, finished, state.progress.step, newest, reporter.last if reporter is not None else {})


def _steps(parts: _Parts, progress: Progress, world: World) -> Iterator[_RankStep]:
    """Gives the loader's steps counts that add up over ranks: what planning left out is the same on all, and counts once.

    The loop adds a step's counts up over all ranks and steps before it asks for the next one; then the totals are judged.

    Raises:
        DataError: more clips than `data.skip_limit` allows could not be read, on all ranks together.
    """
    while True:
        with world.own_errors():
            step = next(parts.loader)
        own = {name: step.counts[name] for name in ("samples", "tokens", "seen", "unreadable", "unlisted")}
        shared = {name: step.counts[name] if world.is_main else 0.0 for name in ("refused", "ineligible")}
        lost = progress.totals.get("unreadable", 0.0)
        yield _RankStep(step.batches, step.state, own | shared)
        if progress.totals["unreadable"] > lost:  # otherwise a run whose files were repaired could never go on
            _check_unreadable(parts, progress.totals, world)


def _check_unreadable(parts: _Parts, totals: Mapping[str, float], world: World) -> None:
    """Raises the same DataError on every rank."""
    skips = [skip for found in world.gather(parts.loader.unreadable) for skip in found]
    check_skip_limit(totals["unreadable"], totals["seen"], limit=parts.data.skip_limit, skips=skips)


def _reporter(parts: _Parts, resumed_step: int, *, trust_class_paths: bool) -> Reporter:
    """Make the trackers, in which a failure is an error before the first step; from then on it is a warning."""
    run_dir = Path(parts.train.run_dir)
    trackers: dict[str, Tracker] = {}
    for i, slot in enumerate(parts.train.trackers):
        name = f"tracker '{slot.class_path}' (train.trackers[{i}])"
        trackers[name] = registry.build("tracker", slot, trust_class_paths=trust_class_paths, run_dir=run_dir, spec=parts.spec)
        begin_tracker(name, trackers[name], resumed_step)
    return Reporter(run_dir=run_dir, total_steps=parts.train.steps, resumed_step=resumed_step, trackers=trackers)


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
        explain=lambda error: registry.blame(error, parts.spec) + reason(error),
    )


def _ignore(step: int, what: object) -> None:
    """On ranks that do not report."""
