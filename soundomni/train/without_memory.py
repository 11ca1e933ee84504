"""The model or codec that a spec trains, without memory: for checks and estimates before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import ConstructionError, SoundOmniError
from soundomni.core.pretrained.directory import portable, without_weights
from soundomni.core.spec.culprit import named
from soundomni.core.spec.schema import CodecSpec, Spec, TrainSpec
from soundomni.train.build_codec import build_codec
from soundomni.train.codec_training import CodecTraining


def model_without_memory(spec: Spec, *, trust_class_paths: bool) -> UnifiedModel:
    """Build the model of a spec on torch's meta device, with its adapters, and without reading the files that it starts
    from.

    Raises:
        ConstructionError: a plugin cannot be built like that.
        SoundOmniError: the spec is wrong.
    """
    section = replace(portable(spec).of_model, tokenizer=spec.of_model.tokenizer)
    try:
        with without_memory():
            model = build_model(section, vocab_size=max(1, section.tokenizer.vocab_size), trust_class_paths=trust_class_paths)
            if spec.train is not None and spec.train.lora is not None:
                add_adapters(model, spec.train.lora)
            return model
    except SoundOmniError:
        raise
    except Exception as error:  # a plugin may do anything that needs memory
        raise ConstructionError(named(error)) from error


def codec_without_memory(section: CodecSpec, train: TrainSpec, *, trust_class_paths: bool) -> CodecTraining:
    """Build the codec of a spec and its critics on torch's meta device, without reading the codec's weights.

    Raise as `model_without_memory`.
    """
    try:
        with without_memory():
            return build_codec(replace(section, codec=without_weights(section.codec)), train, trust_class_paths=trust_class_paths)
    except SoundOmniError:
        raise
    except Exception as error:  # a plugin may do anything that needs memory
        raise ConstructionError(named(error)) from error
