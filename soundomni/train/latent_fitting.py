"""The clips that the latent normalization of a new run is fitted on: the first that it trains on."""

from __future__ import annotations

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.reports import name_first

FIT_CLIPS, FIT_BATCHES = 64, (8, 16, 32, 64)
"""Clips that the latent normalization is best fitted on, and numbers of packed batches among which they are looked for."""


def fit_latents(model: UnifiedModel, mixture: Mixture, loader: PackedLoader) -> None:
    """Fit the latent normalization on the first clips of the data, or leave it as it is if no task ever uses latents.

    One that comes with the model to start from is kept.

    Raises:
        DataError: the first batches hold no clip to make.
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
