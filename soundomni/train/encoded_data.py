"""Datasets of clips that a codec encoded before the run: the run must have the same codec."""

from __future__ import annotations

import logging

from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Dataset
from soundomni.core.pretrained.fingerprint import codec_fingerprint
from soundomni.core.pretrained.weights import check_dtype
from soundomni.core.spec.schema import Spec
from soundomni.data.mixture import Mixture

logger = logging.getLogger(__name__)


def encoded_datasets(mixture: Mixture) -> dict[str, Dataset]:
    """Return the datasets whose clips are encoded, by name."""
    return {name: source.dataset for name, source in mixture.sources.items() if source.dataset.encoding is not None}


def check_audio(mixture: Mixture) -> None:
    """Raise SpecError if a dataset of a run that trains a codec is encoded."""
    for name in encoded_datasets(mixture):
        raise SpecError(f"data.datasets.{name} holds clips that are encoded, but training a codec needs audio. Give a dataset of audio")


def take_measured(modality: CodecModality, mixture: Mixture) -> None:
    """Load into the codec of a modality what the codec of encoded clips of its kind had measured, if it is not fitted
    itself.

    Raise SpecError if it does not fit, and CheckpointError if it has another kind of numbers.
    """
    for name, dataset in encoded_datasets(mixture).items():
        encoding = dataset.encoding
        if modality.codec.is_fitted or encoding is None or not encoding.measured or encoding.spec != modality.codec.spec:
            continue
        known = dict(modality.codec.named_buffers())
        for buffer, values in encoding.measured.items():
            if buffer not in known or known[buffer].shape != values.shape:
                raise SpecError(f"data.datasets.{name} was encoded by {encoding.codec}, which measured '{buffer}'; the codec here has none")
            check_dtype(buffer, values, f"data.datasets.{name}", like=known[buffer])
            known[buffer].copy_(values)


def check_encoded(model: UnifiedModel, spec: Spec, mixture: Mixture, *, trust_class_paths: bool = False) -> None:
    """Check that encoded clips were made by the codec of the modality that uses them.

    Raise SpecError, which says what made them, what the spec has, and what to do.
    """
    datasets = encoded_datasets(mixture)
    for modality in model.each():
        if not datasets or not isinstance(modality, CodecModality):
            continue
        slot = spec.of_model.used[modality.name].codec
        assert slot is not None, "it has a codec"
        own = codec_fingerprint(slot, modality.codec, trust_class_paths=trust_class_paths)
        for name in list(datasets):
            encoding = datasets[name].encoding
            if encoding is None or modality.name not in _uses(name, model, mixture):
                continue
            if encoding.fingerprint is None:
                known = f"that of '{modality.name}', {slot.class_path}"
                logger.warning("the codec that encoded data.datasets.%s is unknown; it is taken for %s", name, known)
            elif encoding.fingerprint != own:
                raise SpecError(
                    f"the clips of data.datasets.{name} were encoded by {encoding.codec} ({encoding.fingerprint[:12]}); the codec of "
                    f"'{modality.name}' is {slot.class_path} ({own[:12]}), with other arguments or weights. Use that codec, or encode "
                    "the clips again with this one"
                )


def _uses(name: str, model: UnifiedModel, mixture: Mixture) -> set[str]:
    """Return the modalities whose clips the tasks of a dataset make or give."""
    return used_modalities(mixture, name, first=model.all_made[0].name if model.all_made else "")


def used_modalities(mixture: Mixture, name: str, *, first: str) -> set[str]:
    """Return the modalities whose clips the tasks of a dataset make or give; `first` is the one that is made if none is
    named.
    """
    tasks = [task for task, weight in mixture.tasks[name] if weight > 0]
    return {template.of or first for task in tasks for template in task.templates if template.audio in ("target", "context")}
