"""Fitting what a new run measures on the first clips that it trains on: codebooks, and the normalization of latents."""

from __future__ import annotations

import torch

from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.sequence import Clips
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.reports import name_first
from soundomni.train.encoded_data import take_measured

FIT_CLIPS, FIT_CODEC_CLIPS, FIT_BATCHES = 64, 256, (8, 16, 32, 64)
"""How many clips are enough to fit the latent normalization, how many to fit a codec, and how many packed batches are
searched for them."""


def fit_latents(model: UnifiedModel, mixture: Mixture, loader: PackedLoader, *, device: torch.device | None = None) -> None:
    """Fit codecs and the latent normalization on the first clips of the data. Codecs that are used for it compute on `device`, if it is
    given, and are where they were afterwards.

    What comes with the starting model is kept. If clips are encoded, the codec takes what it had measured before it encoded them.
    A modality that no task makes or gives is left as it is.

    Raises:
        DataError: the first batches have no clip of a modality that tasks make or give.
    """
    for modality in model.each():
        if not isinstance(modality, CodecModality) or modality.is_fitted:
            continue
        if is_used(modality, model, mixture):
            try:
                modality.codec.to(device)
                _fit(modality, loader, mixture, device)
            finally:
                modality.codec.to(modality.device)
        elif not modality.normalizer.measured:
            modality.normalizer.leave()


def check_fitted(model: UnifiedModel, mixture: Mixture) -> None:
    """Check that a run that is resumed knows what its tasks need: only a new run measures.

    Raises:
        SpecError: tasks make or give a modality that no task needed before.
    """
    for modality in model.each():
        if isinstance(modality, CodecModality) and not modality.is_fitted and is_used(modality, model, mixture):
            raise SpecError(
                f"the data now have a task for the modality '{modality.name}', which had none when the run began, and so was "
                "not measured. Export this run, and start a new one with model.start"
            )


def is_used(modality: CodecModality, model: UnifiedModel, mixture: Mixture) -> bool:
    """Return whether a task makes clips of a modality, gives them as context, or adds them to those that it makes."""
    tasks = [task for choices in mixture.tasks.values() for task, weight in choices if weight > 0]
    given = [template for task in tasks for template in task.templates if template.audio in ("target", "context")]
    first = model.all_made[0].name if model.all_made else None
    made = {template.of or first for template in given if template.audio == "target"}
    added = {name for one in model.all_made if one.name in made for name in one.aligned}
    return modality.name in added or any((template.of or first) == modality.name for template in given)


def fit_codec(codec: Codec, name: str, loader: PackedLoader) -> None:
    """Fit the codec of the modality `name` on the clips on which a new run fits it. Raise DataError as `fit_latents`."""
    clips = first_clips(name, loader, enough=FIT_CODEC_CLIPS)
    codec.fit([(some.waveform, some.lengths) for some in clips if len(some)])


def _fit(modality: CodecModality, loader: PackedLoader, mixture: Mixture, device: torch.device | None) -> None:
    enough = FIT_CLIPS if modality.codec.is_fitted else FIT_CODEC_CLIPS
    take_measured(modality, mixture)
    if not modality.is_fitted:
        modality.fit(first_clips(modality.name, loader, enough=enough), device=device)


def first_clips(name: str, loader: PackedLoader, *, enough: int) -> list[Clips]:
    """Return the clips of a modality in the first batches of a run, at least `enough` if FIT_BATCHES have so many.

    Raise DataError if they have none.
    """
    for count in FIT_BATCHES:
        batches = loader.preview_batches(count)
        clips = [batch.of(name) for batch in batches]
        num_clips = sum(map(len, clips))
        if num_clips >= enough:
            break
    if num_clips == 0:
        reason = name_first(loader.unreadable) or name_first(loader.rejected) or "give tasks such as generate more weight"
        where = f"the first {len(batches)} packed batches have no clip of it to make or to give"
        raise DataError(f"the modality '{name}' cannot be measured on the data: {where}; {reason}")
    return clips
