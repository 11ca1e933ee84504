"""Settings that work but are probably mistakes: one line each, for `soundomni spec validate` and the start of a run.

Settings that cannot work are errors, found elsewhere. A harmless default is not doubted: nobody chose it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from soundomni.core.assembly.modality import CodecModality, MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.spec.clips import clips_of, dataset_clips, in_words
from soundomni.core.spec.schema import DataSpec, MixtureEntry, ModelSpec, Spec, TrainSpec
from soundomni.core.spec.shorthand import short_keys, written_key
from soundomni.core.writing.tasks import build_tasks, find_task
from soundomni.data.data_section import used_tasks

HIGHEST_RATE = 1.0
"""A learning rate above this is probably a typo; rules that find their own rate ask for 1."""


def find_doubts(spec: Spec, model: UnifiedModel | None) -> list[str]:
    """Return a line for each doubtful setting of a spec that has passed all checks.

    Args:
        spec: the spec, of a model or of a codec that is trained on its own.
        model: the model built from it, on any device; None if it cannot be built or there is none, which skips what needs its
            sizes.
    """
    doubts: list[str] = []
    if spec.train is not None:
        doubts += [*_steps(spec.train), *_starts(spec.train), *_rates(spec.train), *_trackers(spec.train)]
    if spec.train is not None and spec.codec is not None:
        doubts += _layers(spec.train)
    if spec.train is not None and model is not None:
        doubts += [*_losses(spec.train, model), *_validation(spec.train, spec.data, model)]
    if spec.model is not None and model is not None:
        doubts += _intervals(spec.model, model)
    if spec.data is not None and spec.model is not None:
        doubts += [*_conditions(spec, spec.data), *_clips(spec)]
    if spec.data is not None and model is not None:
        for name, entry in spec.data.datasets.items():
            if entry is not None:
                doubts += _lengths(f"data.datasets.{name}", entry, spec.data, model)
    return doubts


def _steps(train: TrainSpec) -> Iterator[str]:
    """Yield doubts about counts of steps, compared with the length of the run."""
    steps, warmup = train.steps, train.schedule.warmup_steps
    if warmup is not None and warmup > steps:
        yield (
            f"train.schedule.warmup_steps is {warmup}, but train.steps is {steps}: the learning rate never reaches "
            "train.optimizer.lr. "
            "Set train.schedule.warmup_steps to null to use a tenth of the run"
        )
    if train.save_every > steps and train.save_every != TrainSpec.save_every:
        yield (
            f"train.save_every is {train.save_every}, but train.steps is {steps}: the run is saved only at the end. "
            "Set it to 0 if that is intended"
        )
    if train.log_every > steps and train.log_every != TrainSpec.log_every:
        yield f"train.log_every is {train.log_every}, but train.steps is {steps}: only the last step is logged. Set it to {steps} or less"
    if train.validating.every > steps:
        yield (
            f"train.validation.every is {train.validating.every}, but train.steps is {steps}: validation never runs. "
            f"Set it to {steps} or less, or to 0 if that is intended"
        )


def _starts(train: TrainSpec) -> Iterator[str]:
    """Yield doubts about phases and losses that never begin."""
    starts = {f"train.phases.{name}.starts": phase.starts for name, phase in train.set_phases.items()}
    starts |= {f"train.loss_starts.{name}": start for name, start in train.loss_starts.items()}
    for key, start in starts.items():
        if start >= train.steps:
            yield f"{key} is {start}, but train.steps is {train.steps}, so it never begins. Set it below that"


def _intervals(spec: ModelSpec, model: UnifiedModel) -> Iterator[str]:
    """Yield doubts about guidance that never applies, because tokens that are made one after the other have timestep 1."""
    for one in model.each():
        written = spec.modalities[one.name]
        if written is None or not isinstance(one, MadeModality) or one.objective.predicts != "next-token":
            continue
        low, high = written.guidance.interval
        if written.guidance.scale != 1.0 and high < 1.0:
            key = written_key(f"model.modalities.{one.name}.guidance.interval", spec)
            yield (
                f"{key} is [{low:g}, {high:g}], but '{one.name}' is made token after token, at timestep 1: guidance never applies. "
                "Set its upper end to 1"
            )


def _layers(train: TrainSpec) -> Iterator[str]:
    """Yield doubts about settings of layers, of which a codec that is trained has none."""
    for name in ("activation_checkpointing", "compile"):
        if getattr(train, name):
            yield f"train.{name} does nothing here: it is for the layers of a model, and the spec trains a codec. Set it to false"


def _rates(train: TrainSpec) -> Iterator[str]:
    optimizer, schedule = train.optimizer, train.schedule
    if optimizer.lr == 0:
        yield "train.optimizer.lr is 0: the model learns nothing. Set it above 0"
        return
    if optimizer.lr > HIGHEST_RATE:
        yield f"train.optimizer.lr is {optimizer.lr:g}: training rarely works above {HIGHEST_RATE:g}. Set a lower learning rate"
    if schedule.kind == "cosine" and schedule.min_lr > optimizer.lr:
        yield (
            f"train.schedule.min_lr is {schedule.min_lr:g}, above train.optimizer.lr, which is {optimizer.lr:g}: "
            "the learning rate rises until the end. Set train.schedule.min_lr below it"
        )
    if optimizer.lr * optimizer.weight_decay >= 1:
        yield (
            f"train.optimizer.weight_decay is {optimizer.weight_decay:g}, which at a learning rate of {optimizer.lr:g} removes every "
            "weight completely at each step. Set a lower train.optimizer.weight_decay"
        )


def _trackers(train: TrainSpec) -> Iterator[str]:
    given = Counter((slot.class_path, repr(sorted(slot.init_args.items()))) for slot in train.trackers)
    for (name, _), count in given.items():
        if count > 1:
            yield f"train.trackers names '{name}' {count} times, so everything is recorded {count} times. Name it once"


def _losses(train: TrainSpec, model: UnifiedModel) -> Iterator[str]:
    names = model.loss_names
    if all(train.loss_weights.get(name, 1.0) == 0 for name in names):
        yield f"train.loss_weights is 0 for every loss ({', '.join(names)}): the model learns nothing. Set at least one above 0"


def _validation(train: TrainSpec, data: DataSpec | None, model: UnifiedModel) -> Iterator[str]:
    validation = train.validating
    held_out = _held_out(data)
    if not validation.every:
        if held_out:
            yield (
                f"data.datasets.{held_out[0]}.held_out is set, but train.validation.every is 0: the held-out losses "
                "are never measured. "
                "Set train.validation.every"
            )
        return
    measures = bool(held_out) and validation.num_held_out != 0
    if validation.best is not None and not measures:
        yield (
            f"train.validation.best is '{validation.best}', but nothing is held out to measure it on. Set held_out of a "
            "dataset in "
            "data.datasets, or set train.validation.best to null"
        )
    if not measures and not validation.prompts and (not model.all_heard or validation.num_describe == 0):
        yield (
            "train.validation does nothing: it has no prompts, no clips to describe, and no held-out items. Set "
            "train.validation.prompts, or set train.validation to null"
        )
    frame = max((one.codec.spec.downsampling_ratio / one.sample_rate for one in model.all_made), default=0.0)
    if validation.prompts and validation.seconds is not None and validation.seconds < frame:
        yield _shorter("train.validation.seconds", validation.seconds, frame)


def _held_out(data: DataSpec | None) -> list[str]:
    """Return the datasets that have held-out items."""
    return [name for name, entry in data.datasets.items() if entry is not None and entry.held_out > 0] if data is not None else []


def _conditions(spec: Spec, data: DataSpec) -> Iterator[str]:
    """Yield doubts about captions and other conditions that are always or never dropped."""
    tasks = used_tasks(data)
    prompted = [task for task in tasks if task.uses("target") and task.placeholders]
    dropout = data.condition_dropout
    if prompted and dropout.text == 1:
        yield "data.condition_dropout.text is 1: the model never sees a caption, so prompts will have no effect. Set it to about 0.1"
    for name, audio in (("latent", "context"), ("features", "features")):
        share = getattr(dropout, name)
        if share == 1 and any(task.uses("target") and task.uses(audio) for task in tasks):
            yield f"data.condition_dropout.{name} is 1: the model never sees audio of this kind before a target. Set it to about 0.3"
    short = short_keys(spec.of_model)
    guided = {f"model.modalities.{name}.guidance": one.guidance for name, one in spec.of_model.all_made.items()}
    for key, guidance in guided.items():
        if not (prompted and dropout.text == 0 and guidance.scale != 1):
            continue
        key = short.get(key, key)
        yield (
            f"{key}.scale is {guidance.scale:g}, but data.condition_dropout.text is 0: guidance compares with generation without "
            f"a caption, which is never trained. Set data.condition_dropout.text to about 0.1, or set {key}.scale to 1"
        )


def _clips(spec: Spec) -> Iterator[str]:
    """Yield a doubt about clips that training prepares in one way and the model in another."""
    kept, own = clips_of(spec), dataset_clips(spec)
    other = next((name for name, clips in own.items() if clips != kept), None)
    if other is None:
        return
    if spec.of_model.clips is not None:
        told = "nothing" if kept is None else in_words(kept)
        yield (
            f"data.datasets.{other}.clips differs from model.clips ({told}), which is how the model prepares the clips that it is given. "
            "Make them equal"
        )
        return
    yield (
        f"the datasets in data.datasets have different clips ({', '.join(own)}), so the model does not prepare those that it is given. "
        "Make them equal, or set model.clips"
    )


def _lengths(where: str, entry: MixtureEntry, data: DataSpec, model: UnifiedModel) -> Iterator[str]:
    """Yield doubts about the longest clip of a dataset, compared with a frame and with the longest sample."""
    seconds = entry.longest_seconds
    if seconds is None:
        return
    option = "max_seconds" if seconds == entry.max_seconds else "clips.seconds"
    codec, heard = model.made().codec.spec, model.heard()
    if seconds * codec.sample_rate < codec.downsampling_ratio:
        yield _shorter(f"{where}.{option}", seconds, codec.downsampling_ratio / codec.sample_rate)
    limit = data.max_tokens_per_sample if data.max_tokens_per_sample is not None else data.tokens_per_batch
    known = build_tasks(data.tasks)
    used = [find_task(name, known) for name, weight in entry.tasks.items() if weight > 0]
    given = {template.of or model.made().name for task in used for template in task.templates if template.audio in ("target", "context")}
    tokens: dict[str, int] = {}
    for one in model.each():
        if isinstance(one, CodecModality) and one.name in given:
            frames = one.codec.spec.num_frames(round(seconds * one.sample_rate))
            count = one.num_tokens(frames)
            what = "codec frames" if count == frames else "tokens of codes"
            tokens[what] = max(count, tokens.get(what, 0))
    if heard is not None and any(task.uses("features") for task in used):
        longest = min(seconds, heard.encoder.spec.max_seconds or seconds)
        tokens["encoder tokens"] = heard.encoder.num_tokens(max(1, round(longest * heard.sample_rate)))
    for what, count in tokens.items():
        if count > limit:
            refused = "longer clips" if option == "max_seconds" else "clips"
            yield (
                f"{where}.{option} is {seconds:g}, which is {count} {what}, but a sample can have at most {limit}: "
                f"{refused} are refused. Set a lower {option}, or a higher data.max_tokens_per_sample and "
                "data.tokens_per_batch"
            )


def _shorter(key: str, seconds: float, frame: float) -> str:
    return f"{key} is {seconds:g}, shorter than one frame of the codec, which is {frame:.3g} s. Set it higher"
