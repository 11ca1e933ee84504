"""A whole evaluation in one call: open the data, run the model, score its output, and record what the numbers depend
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import SpecError
from soundomni.evaluation.evaluation_data import EvaluationData, open_data
from soundomni.evaluation.judges import NO_JUDGES, Judges, check_judged_tasks
from soundomni.evaluation.observer import SILENT, Observer
from soundomni.evaluation.provenance import check_sources, made_with
from soundomni.evaluation.reference import open_reference, read_reference
from soundomni.evaluation.running import run_model
from soundomni.evaluation.saving import empty_folder, save_outcome
from soundomni.evaluation.scoring import score_outcome
from soundomni.evaluation.settings import DEFAULT_BATCH_SIZE, DEFAULT_LIST, Settings

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.spec.schema import Slot


def evaluate(
    model: SoundOmni | Chain,
    data: str | Path | Slot | Dataset | EvaluationData = DEFAULT_LIST,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    of: str | None = None,
    judges: Judges = NO_JUDGES,
    reference: Slot | Dataset | EvaluationData | None = None,
    save: str | Path | None = None,
    loaded_from: str | Path | None = None,
    adapter: str | Path | None = None,
    observer: Observer = SILENT,
) -> dict[str, Any]:
    """Measure a model, and return what `soundomni evaluate --json` prints. This function prints nothing.

    Args:
        model: the model to measure, or a chain of models, which only generates and continues.
        data: name of a fixed list or path to its file, a dataset, the slot of a dataset, or the result of `open_data`.
        tasks: some of TASKS; None for those of the list, or COMMON_TASKS on a dataset.
        limit: measure on the first `limit` clips; None for all clips of a list, and the first 100 of a dataset.
        seed: seed of the first clip that is generated; later clips use seed + 1, seed + 2, …
        batch_size: clips that the model takes at once.
        num_steps, guidance_scale: settings of the sampler; None for the model's own.
        of: the modality to generate, continue, vary and reconstruct; None stands for the first one that the model makes.
        judges: networks that judge generated clips, see `load_judges`.
        reference: clips that the model was trained on. Generated clips are compared with them, and so are the real
            clips of `data`, which the model must not have been trained on; see `judge_captions`.
        save: directory for the generated audio and text, see `save_outcome`; it must be empty or not exist.
        loaded_from: name or directory that the model was loaded from; only recorded, with the checksum of its weights.
        adapter: directory of adapters that have been merged into the model; only recorded, with its checksum.
        observer: receives reports of what is going on.

    Returns:
        the scores and counts that `score_outcome` describes, and "made_with", everything that the numbers depend on.

    Raises:
        SpecError: an argument is of a wrong kind, there is no such list, a number is out of its range, a task is unknown,
            judges or the reference have nothing to judge, or the reference is the measured data.
        DataError: a path is of a wrong kind, none of the clips can be read and measured, none of the reference's can be
            read, or `save` cannot be written to.
        CheckpointError: there is no model `loaded_from`, or no adapter.
        PluginError: there is no dataset plugin of the slot's name.
    """
    _check_kinds(model, judges, observer, of)
    opened = data if isinstance(data, EvaluationData) else open_data(data, observer=observer)
    limit, chosen = opened.default_limit if limit is None else limit, opened.choose_tasks(tasks)
    settings = Settings(
        limit=limit, seed=seed, batch_size=batch_size, num_steps=num_steps, guidance_scale=guidance_scale, of=of, tasks=chosen
    )
    if judges.has_networks:
        check_judged_tasks(chosen)
    if reference is not None:
        check_judged_tasks(chosen, by_reference=True)
        compared = open_reference(reference, opened)
    loaded_from, adapter = _as_directories(loaded_from=loaded_from, adapter=adapter)
    check_sources(loaded_from, adapter)
    if reference is not None:
        judges = replace(judges, reference=read_reference(compared, model, of=of, observer=observer))
    (folder,) = (None if path is None else empty_folder(path) for path in _as_directories(save=save))
    outcome = run_model(model, opened.dataset, settings, judges=judges, observer=observer)
    if folder is not None:
        save_outcome(outcome, folder, observer=observer)
    record = made_with(model, opened, settings, outcome, judges=judges, loaded_from=loaded_from, adapter=adapter)
    return {**score_outcome(outcome, judges=judges, observer=observer), "made_with": record}


def _as_directories(**paths: str | Path | None) -> list[str | Path | None]:
    """Return paths, or None. Raise DataError, which names the argument, for anything else."""
    from soundomni.core.inference.inputs import as_directory  # here, as it imports numpy

    return [None if path is None else as_directory(name, path) for name, path in paths.items()]


def _check_kinds(model: object, judges: object, observer: object, of: str | None) -> None:
    """Raise SpecError for an object that is not what its name says, or a modality that is not made, before any clip is read."""
    from soundomni.core.inference.inputs import shown
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni

    if not isinstance(model, (SoundOmni, Chain)):
        raise SpecError(f"model is {shown(model)}; expected a SoundOmni. Load it first: SoundOmni.from_pretrained(...)")
    if not isinstance(judges, Judges):
        raise SpecError(f"judges is {shown(judges)}; expected Judges. Call load_judges, or leave judges out")
    if of is not None:
        model.made_spec(of)
    lacking = [name for name in ("begin", "note") if not callable(getattr(observer, name, None))]
    if lacking:
        raise SpecError(f"observer is {shown(observer)}, without the method {lacking[0]}(); expected an Observer, or leave it out")
