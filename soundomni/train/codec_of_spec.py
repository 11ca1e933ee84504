"""The codec that a run would have before its first step, without the run: for encoding its data beforehand."""

from __future__ import annotations

import logging
from typing import cast

from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError, did_you_mean, listed
from soundomni.core.interfaces import Codec, Dataset
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.writing.tasks import PROMPTED
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.samples import SampleWriter
from soundomni.train.codec_weights import takes_weights
from soundomni.train.encoded_data import used_modalities
from soundomni.train.latent_fitting import fit_codec
from soundomni.train.run_tokenizer import new_tokenizer
from soundomni.train.without_memory import model_without_memory

logger = logging.getLogger(__name__)


def codec_of_spec(spec: Spec, mixture: Mixture | None, *, of: str | None = None, trust_class_paths: bool = False) -> tuple[Slot, Codec]:
    """Return the slot of a spec's codec, and the codec: with the weights that it names, or those of the starting model,
    and fitted.

    Args:
        spec: the spec.
        mixture: its data, on whose first clips a codec is fitted as in a run; None if there is none.
        of: the modality whose codec it is; None for the first one that is made.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        SpecError: there is no such codec, or its weights would be random.
        SoundOmniError: a plugin or a file cannot be used.
    """
    if spec.codec is not None:
        return spec.codec.codec, built_codec(spec.codec.codec, trust_class_paths=trust_class_paths)
    name, slot = _chosen(spec, of)
    start, fresh = spec.of_model.start, spec.of_model.start_fresh or []
    if start is not None and f"{name}.codec" not in fresh:
        started = SoundOmni.from_pretrained(start)
        before = started.spec.of_model.used.get(name)
        if before is not None and before.codec is not None and before.codec.class_path == slot.class_path:
            modality = started.model.modality(name)
            return slot, cast(Codec, modality.codec)
    codec = built_codec(slot, trust_class_paths=trust_class_paths)
    if not codec.is_fitted and mixture is not None:
        _fit(codec, name, spec, mixture, trust_class_paths=trust_class_paths)
    return slot, codec


def encodable(spec: Spec, mixture: Mixture, *, of: str | None = None) -> dict[str, Dataset]:
    """Return the datasets of a spec whose tasks make or give clips of a modality, by name; all of them if the spec
    trains a codec.

    A warning names those that also have a task that hears clips, which needs audio. Raise SpecError if there is none.
    """
    if spec.model is None:
        return {name: source.dataset for name, source in mixture.sources.items()}
    first = next(iter(spec.of_model.all_made), "")
    wanted = of if of is not None else first
    found = {}
    for name, source in mixture.sources.items():
        if wanted not in used_modalities(mixture, name, first=first):
            continue
        found[name] = source.dataset
        prompted = any(template.audio == "features" for template in spec.of_model.prompt)
        used = [task for task, weight in mixture.tasks[name] if weight > 0]
        hearing = [task.name for task in used if task.uses("features") or (prompted and task.name in PROMPTED)]
        if hearing:
            needs = f"task '{hearing[0]}' of data.datasets.{name} hears clips, which needs audio"
            logger.warning("%s. Give that task a dataset of audio", needs)
    if not found:
        raise SpecError(f"no task of data.datasets makes or gives clips of '{wanted}'. Give a FOLDER, --dataset, or another --of")
    return found


def built_codec(slot: Slot, *, trust_class_paths: bool = False) -> Codec:
    """Return the codec of a slot. Raise SpecError if its weights would be random."""
    codec = cast(Codec, registry.build("codec", slot, trust_class_paths=trust_class_paths))
    if takes_weights(slot, trust_class_paths=trust_class_paths) and next(codec.parameters(), None) is not None:
        raise SpecError(
            f"codec '{slot.class_path}' has no weights, so they would be random, and other ones in each run. Name a file in its "
            "argument weights, or take the codec of a model with --model"
        )
    return codec


def _chosen(spec: Spec, of: str | None) -> tuple[str, Slot]:
    """Return name and codec of a modality. Raise SpecError if there is none."""
    codecs = {name: one.codec for name, one in spec.of_model.used.items() if one.codec is not None}
    name = of if of is not None else next(iter(spec.of_model.all_made), None)
    if name is None or name not in codecs:
        near = did_you_mean(of or "", codecs)
        raise SpecError(f"--of is {of!r}; the spec has a codec for {listed(list(codecs)) if codecs else 'nothing'}.{near}")
    return name, codecs[name]


def _fit(codec: Codec, name: str, spec: Spec, mixture: Mixture, *, trust_class_paths: bool) -> None:
    """Fit a codec on the clips that a new run of the spec would fit it on."""
    assert spec.data is not None, "the mixture is made of it"
    model = model_without_memory(spec, trust_class_paths=trust_class_paths)
    tokenizer = new_tokenizer(spec.of_model.tokenizer, mixture)
    writer = SampleWriter(segment_writer(model, spec.of_model, tokenizer=tokenizer), dropout=spec.data.condition_dropout)
    with PackedLoader(mixture=mixture, writer=writer, spec=spec.data) as loader:
        fit_codec(codec, name, loader)
