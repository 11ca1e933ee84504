"""Finds codecs whose weights would be random. A model that learns their latents would only make noise."""

from __future__ import annotations

from typing import cast

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import ConstructionError, SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.shorthand import written_key
from soundomni.train.start_weights import Start


def takes_weights(slot: Slot, *, trust_class_paths: bool = False) -> bool:
    """Return whether a codec has an argument `weights` that its slot does not set."""
    arguments = registry.validate_init_args("codec", slot, trust_class_paths=trust_class_paths)
    return "weights" in arguments and arguments["weights"] is None


def find_random_codecs(spec: Spec, start: Start | None, *, trust_class_paths: bool = False) -> list[str]:
    """Return a line for each codec of a model that would have random weights, unless `train.random_codec` allows it.

    A codec is fine if it has no parameters, takes no weights, or gets them from the model that training starts from.

    Args:
        spec: the resolved spec of a new run.
        start: the model that it starts from; None if there is none.
        trust_class_paths: whether plugins may be named by import path.
    """
    if spec.model is None or (spec.train is not None and spec.train.random_codec):
        return []
    lines = []
    for name, modality in spec.model.used.items():
        slot = modality.codec
        if slot is None or (start is not None and f"{name}.codec" not in start.fresh):
            continue
        if takes_weights(slot, trust_class_paths=trust_class_paths) and _has_parameters(slot, trust_class_paths=trust_class_paths):
            key = written_key(f"model.modalities.{name}.codec", spec.model)
            lines.append(
                f"{key}.weights is null; training needs a file, because codec '{slot.class_path}' would have random "
                "weights, and the model would only make noise. Train the codec first or import one, and set "
                f"{key}.weights; for a test, set train.random_codec"
            )
    return lines


def check_codec_weights(spec: Spec, start: Start | None, *, trust_class_paths: bool = False) -> None:
    """Raise SpecError if `find_random_codecs` finds a codec."""
    for line in find_random_codecs(spec, start, trust_class_paths=trust_class_paths):
        raise SpecError(line)


def _has_parameters(slot: Slot, *, trust_class_paths: bool) -> bool:
    try:
        with without_memory():
            codec = cast(Codec, registry.build("codec", slot, trust_class_paths=trust_class_paths))
    except ConstructionError:  # a plugin may do anything that needs memory
        codec = cast(Codec, registry.build("codec", slot, trust_class_paths=trust_class_paths))
    return next(codec.parameters(), None) is not None
