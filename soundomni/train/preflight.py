"""Checks that a spec can be trained, before a run directory is opened, data is listed or memory is allocated."""

from __future__ import annotations

import logging

from soundomni.core.assembly.build import build_sampler, check_sampler
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import ConstructionError, SpecError, shown
from soundomni.core.inference.guidance import check_guidance
from soundomni.core.interfaces import Sampler
from soundomni.core.limits import MOST_VOCABULARY, check_count, check_scale
from soundomni.core.spec.clips import check_clips, clips_of, validation_seconds
from soundomni.core.spec.ranges import check_loss_starts, check_loss_weights, check_train
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import CodecSpec, DataSpec, Spec, TrainSpec
from soundomni.core.spec.shorthand import written_key
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.data_section import check_data, used_tasks
from soundomni.data.samples import SampleWriter
from soundomni.train.best import check_best
from soundomni.train.doubts import find_doubts
from soundomni.train.phases import phases_of
from soundomni.train.teacher import check_teacher
from soundomni.train.without_memory import codec_without_memory, model_without_memory

logger = logging.getLogger(__name__)


def check_spec(spec: Spec, *, trust_class_paths: bool = False) -> list[str]:
    """Check the numbers of every section, and that the parts of the model, or of the codec, can be built and fit together.

    The model is built without memory, on torch's meta device, and no weights are drawn. If a plugin cannot be built
    like that, a warning says so, and wrong sizes only show when it is built for training.

    Returns:
        A line for each setting that works but is probably a mistake; see doubts.py.

    Raises:
        SoundOmniError: something is wrong; the message names it.
    """
    check_settings(spec, trust_class_paths=trust_class_paths)
    if spec.codec is not None:
        _check_codec(spec, spec.codec, trust_class_paths=trust_class_paths)
        return find_doubts(spec, None)
    return find_doubts(spec, _check_model(spec, trust_class_paths=trust_class_paths))


def check_settings(spec: Spec, *, trust_class_paths: bool = False) -> None:
    """Check the numbers of `data` and `train`, and of samplers and guidance, which needs no model.

    Raise SoundOmniError, which names the key.
    """
    if spec.data is not None:
        check_data(spec.data)
    if spec.train is not None:
        check_train(spec.train)
        build("optimizer", spec.train.optimizer.rule, trust_class_paths=trust_class_paths)
        for phase in spec.train.set_phases.values():
            if phase.optimizer is not None:
                build("optimizer", phase.optimizer.rule, trust_class_paths=trust_class_paths)
    if spec.model is not None:
        check_clips(spec.model.clips, "model.clips")
        _samplers(spec, trust_class_paths=trust_class_paths)


def _samplers(spec: Spec, *, trust_class_paths: bool) -> dict[str, Sampler]:
    """Return the samplers of a spec's model by modality, after checking them and the guidance."""
    samplers = {}
    for name, one in spec.of_model.all_made.items():
        check_guidance(one.guidance)
        check_scale(one.guidance.scale)
        assert one.sampler is not None, "checked when the spec was read"
        samplers[name] = build_sampler(one.sampler, trust_class_paths=trust_class_paths)
    return samplers


def _check_codec(spec: Spec, section: CodecSpec, *, trust_class_paths: bool) -> None:
    """Check that a codec and its critics can be built, and that the spec names their losses and phases."""
    train = spec.train if spec.train is not None else TrainSpec(run_dir=".")
    if train.lora is not None:
        raise SpecError("train.lora adapts expert streams, but the spec trains a codec. Leave train.lora out")
    if train.teacher is not None:
        raise SpecError("train.teacher only applies to models, but the spec trains a codec. Leave train.teacher out")
    _check_balance(section.balance)
    try:
        module = codec_without_memory(section, train, trust_class_paths=trust_class_paths)
    except ConstructionError as error:
        logger.warning("sizes are not checked beforehand, because the codec cannot be built without memory: %s", error)
        return
    check_loss_weights(train.loss_weights, module.loss_names)
    check_loss_starts(train.loss_starts, module.loss_names)
    phases_of(module, train)
    check_best(train.validating, module.loss_names)


def _check_balance(decay: float) -> None:
    if not 0 <= decay < 1:
        raise SpecError(f"codec.balance is {decay}; expected at least 0, which turns it off, and below 1")


def _check_model(spec: Spec, *, trust_class_paths: bool) -> UnifiedModel | None:
    """Check that the parts of a model can be built and fit together, and return it; None if it cannot be built without memory."""
    check_count("model.tokenizer.vocab_size", max(1, spec.of_model.tokenizer.vocab_size), most=MOST_VOCABULARY)
    samplers = _samplers(spec, trust_class_paths=trust_class_paths)
    if spec.train is not None and spec.train.teacher is not None:
        check_teacher(spec, samplers, trust_class_paths=trust_class_paths)
    model = build_without_memory(spec, trust_class_paths=trust_class_paths)
    for made in model.all_made if model is not None else ():
        written = spec.of_model.all_made[made.name]
        check_guidance(written.guidance, predicts=made.objective.predicts)
        slot = written.sampler
        assert slot is not None, "it was built"
        key = written_key(f"model.modalities.{made.name}.sampler", spec.of_model)
        check_sampler(samplers[made.name], made, key=key, name=slot.class_path)
    if model is not None and spec.data is not None:
        _check_tasks(model, spec, spec.data)
    if model is not None and spec.train is not None:
        losses = model.loss_names
        check_loss_weights(spec.train.loss_weights, losses)
        check_loss_starts(spec.train.loss_starts, losses)
        phases_of(model, spec.train)
        _check_validation(model, spec)
        check_best(spec.train.validating, losses, timed=() if spec.train.teacher is not None else model.timed_losses)
    return model


def _check_tasks(model: UnifiedModel, spec: Spec, data: DataSpec) -> None:
    """Raise SpecError if the model cannot do a task of a dataset, or dropout names a modality that it does not have."""
    segments = segment_writer(model, spec.of_model, tokenizer=TextTokenizer.train([], vocab_size=0))
    writer = SampleWriter(segments, dropout=data.condition_dropout)
    for task in used_tasks(data):
        writer.check(task)


def _check_validation(model: UnifiedModel, spec: Spec) -> None:
    assert spec.train is not None, "the caller checked it"
    validation = spec.train.validating
    if validation.every and any(validation.prompts) and not spec.of_model.takes_text:
        told = f"train.validation.prompts is {shown(validation.prompts)}, but the model takes no text"
        raise SpecError(f"{told}; expected empty texts, such as ['']")
    seconds = validation_seconds(spec.train, clips_of(spec))
    for modality in model.all_made if validation.every and validation.prompts else ():
        try:
            modality.check_frames(modality.codec.spec.num_frames(max(1, round(seconds * modality.sample_rate))))
        except SpecError as error:
            raise SpecError(f"train.validation.seconds is {seconds:g}: {error}") from error


def build_without_memory(spec: Spec, *, trust_class_paths: bool) -> UnifiedModel | None:
    """Return the model of a spec, built on torch's meta device; None, with a warning, if that fails."""
    try:
        return model_without_memory(spec, trust_class_paths=trust_class_paths)
    except ConstructionError as error:
        logger.warning("sizes are not checked beforehand, because the model cannot be built without memory: %s", error)
        return None
