"""Fitting the latent normalization of a new run, on the first clips that it trains on."""

from __future__ import annotations

from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.reports import name_first

FIT_CLIPS, FIT_BATCHES = 64, (8, 16, 32, 64)
"""How many clips are enough to fit the latent normalization, and how many packed batches are searched for them."""


def fit_latents(model: UnifiedModel, mixture: Mixture, loader: PackedLoader) -> None:
    """Fit the latent normalization on the first clips of the data, or leave it as it is if no task uses latents.

    A normalization that comes with the starting model is kept.

    Raises:
        DataError: the first batches have no clip to generate.
    """
    for modality in model.each():
        if isinstance(modality, CodecModality) and not modality.normalizer.measured:
            _fit(modality, mixture, loader)


def _fit(modality: CodecModality, mixture: Mixture, loader: PackedLoader) -> None:
    tasks = [task for choices in mixture.tasks.values() for task, weight in choices if weight > 0]
    if not any(task.uses("target") or task.uses("context") for task in tasks):
        modality.normalizer.leave()
        return
    for count in FIT_BATCHES:
        batches = loader.preview_batches(count)
        num_clips = sum(len(batch.of(modality.name)) for batch in batches)
        if num_clips >= FIT_CLIPS:
            break
    if num_clips == 0:
        reason = name_first(loader.unreadable) or "give tasks such as generate more weight"
        raise DataError(f"latents cannot be normalized: the first {len(batches)} packed batches have no clip to generate; {reason}")
    modality.fit(batch.of(modality.name) for batch in batches)
