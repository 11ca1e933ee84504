"""What a result was made with: everything that its numbers depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import CheckpointError
from soundomni.core.files.paths import local_path, place
from soundomni.evaluation.checksums import audio_sha256, items_sha256
from soundomni.evaluation.judges import NO_JUDGES, Judges

if TYPE_CHECKING:
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.evaluation.evaluation_data import EvaluationData
    from soundomni.evaluation.outcome import Outcome
    from soundomni.evaluation.settings import Settings

PACKAGES = ("soundomni", "torch", "numpy", "transformers", "soxr", "jiwer")
"""Packages whose versions are recorded."""


def made_with(
    model: SoundOmni | Chain,
    data: EvaluationData,
    settings: Settings,
    outcome: Outcome,
    *,
    judges: Judges = NO_JUDGES,
    loaded_from: str | Path | None = None,
    adapter: str | Path | None = None,
) -> dict[str, Any]:
    """Return everything that the numbers depend on: model, data, seed, sampler, guidance, judges, resampler, device and versions.

    Args:
        model: the measured model.
        data: the data that it was measured on.
        settings: how it was run.
        outcome: what it made; its items and clips are the measured ones.
        judges: networks and reference that judged the generated clips.
        loaded_from: the name or directory that the model was loaded from; None if unknown.
        adapter: directory of the adapters that were merged into the model, if any.

    Raises:
        CheckpointError: there is no model of the name `loaded_from`, or no adapter.
    """
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.spec.registry import distributions
    from soundomni.core.spec.slots import slots
    from soundomni.core.waveform import RESAMPLER_QUALITY

    stages = _stages(model)
    specs = [stage.spec for stage in stages.values()]
    last = list(stages.values())[-1]
    datasets = [data.plugin, *([] if judges.reference is None else [judges.reference.data.plugin])]
    return {
        "model": _model(model, loaded_from),
        "adapter": None if adapter is None else _adapter(adapter),
        "judges": {"clap": _network(judges.clap_directory), "classifier": _network(judges.classifier_directory)},
        "data": data.identity()
        | {
            "items_sha256": items_sha256(outcome.items),
            "audio_sha256": audio_sha256((clip.waveform, clip.sample_rate) for clip in outcome.clips),
        },
        "clips": None if model.clips is None else dataclasses.asdict(model.clips),
        **({} if judges.reference is None else {"reference": judges.reference.identity()}),
        "limit": settings.count(len(data.dataset)),
        "seed": settings.seed,
        "batch": settings.batch_size,
        **_sampling(last, settings, of=settings.of),
        **({"stages": {name: _sampling(stage, settings) for name, stage in stages.items()}} if isinstance(model, Chain) else {}),
        "resampler": {"name": "soxr", "quality": RESAMPLER_QUALITY, "version": version("soxr")},
        "device": str(last.model.device),
        "plugins": distributions(
            [*(("dataset", slot) for slot in datasets), *((kind, slot) for spec in specs for _, kind, slot in slots(spec))]
        ),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def _stages(model: SoundOmni | Chain) -> dict[str, SoundOmni]:
    """Return the models of a chain by name; a model is its only one."""
    from soundomni.core.pretrained.chain import Chain

    return model.stages if isinstance(model, Chain) else {"": model}


def _sampling(model: SoundOmni, settings: Settings, *, of: str | None = None) -> dict[str, Any]:
    """Return how clips of a modality are sampled."""
    from soundomni.core.assembly.build import build_sampler, steps_of

    made = model.made_spec(of)
    assert made.sampler is not None, "it is made"
    scale = {} if settings.guidance_scale is None else {"scale": settings.guidance_scale}
    own_steps = steps_of(build_sampler(made.sampler))
    return {
        "modality": model.model.made(of).name,
        "sampler": {"class_path": made.sampler.class_path, "init_args": made.sampler.init_args},
        "steps": own_steps if own_steps is None or settings.num_steps is None else settings.num_steps,
        "guidance": dataclasses.asdict(made.guidance) | scale,
    }


def check_sources(loaded_from: str | Path | None, adapter: str | Path | None) -> None:
    """Raise CheckpointError if `made_with` would miss a file whose checksum it records, before anything is computed in
    vain.
    """
    from soundomni.core.pretrained.adapters import CONFIG_FILE, WEIGHTS_FILE
    from soundomni.core.pretrained.directory import find_model
    from soundomni.core.pretrained.stage_paths import is_chain, stage_paths

    if loaded_from is not None and is_chain(loaded_from):
        stage_paths(loaded_from)
    elif loaded_from is not None:
        find_model(loaded_from)
    if adapter is None:
        return
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (local_path(adapter) / file).is_file():
            raise CheckpointError(f"the adapter {place(adapter)} has no {file}; expected a folder in peft's format")


def weights_sha256(name: str) -> str | None:
    """Return the SHA-256 of the weights of a model that `from_pretrained` takes, or of a chain; for several files, that of their
    checksums, and None for a chain of runs, whose weights are in checkpoints.

    Raise CheckpointError if there is no model of that name.
    """
    from soundomni.core.pretrained.directory import find_model, is_run
    from soundomni.core.pretrained.stage_paths import is_chain, stage_paths
    from soundomni.core.pretrained.weights import weight_files

    if not is_chain(name):
        return _sum(weight_files(find_model(name)))
    paths = list(stage_paths(name).values())
    return None if any(map(is_run, paths)) else _sum([file for path in paths for file in weight_files(path)])


def _model(model: SoundOmni | Chain, loaded_from: str | Path | None) -> dict[str, Any]:
    from soundomni.core.spec.load import dump_spec

    name = None if loaded_from is None else str(loaded_from)
    weights = None if name is None else weights_sha256(name)
    specs = "".join(dump_spec(stage.spec) for stage in _stages(model).values())
    return {"name": name, "sha256": weights, "spec_sha256": hashlib.sha256(specs.encode()).hexdigest()}


def _adapter(folder: str | Path) -> dict[str, Any]:
    from soundomni.core.pretrained.adapters import CONFIG_FILE, WEIGHTS_FILE

    path = local_path(folder)
    return {"name": str(folder), "sha256": _sum([path / WEIGHTS_FILE]), "config_sha256": _sum([path / CONFIG_FILE])}


def _network(folder: str | None) -> dict[str, Any] | None:
    """Identify a network in the layout of transformers: its weights, its configuration and the settings of its preprocessing."""
    if folder is None:
        return None
    files = sorted(Path(folder).glob("*.json"))
    return {"name": folder, "sha256": _sum(sorted(Path(folder).glob("*.safetensors"))), "config_sha256": _sum(files)}


def _sum(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file; for several files, that of their checksums."""
    from soundomni.core.pretrained.foreign_weights import digest

    sums = [str(digest(file)["sha256"]) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
