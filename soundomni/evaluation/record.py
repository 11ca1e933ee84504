"""What a measurement was made with, and what the model made and said for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.spec.schema import Slot
    from soundomni.evaluation.measure import Outcome
    from soundomni.evaluation.settings import Settings

PACKAGES = ("soundomni", "torch", "numpy", "transformers", "soxr", "jiwer")


def made_with(
    model: SoundOmni,
    settings: Settings,
    *,
    name: str,
    adapter: str | None,
    judges: Mapping[str, str | None],
    device: str,
    data: Mapping[str, Any],
    dataset: Slot,
) -> dict[str, Any]:
    """Returns all that the numbers depend on: model, data, seed, sampler, guidance, judging networks, resampler, device and versions.

    Args:
        model: as it was loaded.
        settings: how it was run.
        name: what the user called it: a model directory, or a name.
        adapter: the folder of the adapters that were merged into it, if any.
        judges: the folder of each network that judged what was generated; None for one that did not.
        device: where it ran.
        data: the list or the dataset, with what identifies it.
        dataset: the plugin that gives it.
    """
    import dataclasses
    import platform
    from importlib.metadata import version

    from soundomni.core.assembly.build import build_sampler
    from soundomni.core.pretrained.adapters import CONFIG_FILE, WEIGHTS_FILE
    from soundomni.core.spec.load import dump_spec
    from soundomni.core.spec.registry import distributions
    from soundomni.core.spec.slots import slots
    from soundomni.core.waveform import RESAMPLER_QUALITY

    sampler, guidance = model.spec.sampler, model.spec.guidance
    return {
        "model": {"name": name, "sha256": weights_sha256(name), "spec_sha256": hashlib.sha256(dump_spec(model.spec).encode()).hexdigest()},
        "adapter": None
        if adapter is None
        else {"name": adapter, "sha256": _sha256(adapter, WEIGHTS_FILE), "config_sha256": _sha256(adapter, CONFIG_FILE)},
        "judges": {judge: None if folder is None else _network(folder) for judge, folder in judges.items()},
        "data": dict(data),
        "limit": settings.limit,
        "seed": settings.seed,
        "batch": settings.batch,
        "sampler": {"class_path": sampler.class_path, "init_args": sampler.init_args},
        "steps": build_sampler(sampler, num_steps=settings.steps).num_steps,
        "guidance": dataclasses.asdict(guidance) | ({} if settings.guidance is None else {"scale": settings.guidance}),
        "resampler": {"name": "soxr", "quality": RESAMPLER_QUALITY, "version": version("soxr")},
        "device": device,
        "plugins": distributions([("dataset", dataset), *((kind, slot) for _, kind, slot in slots(model.spec))]),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def weights_sha256(name: str) -> str:
    """Returns the SHA-256 of the weights of a model that `from_pretrained` takes; of several files, that of their sums.

    Raises CheckpointError when there is none of that name.
    """
    from soundomni.core.pretrained.directory import find_model
    from soundomni.core.pretrained.weights import weight_files

    return _sum(weight_files(find_model(name)))


def _network(folder: str) -> dict[str, Any]:
    """Identifies a network in the layout of transformers: all its weights, its configuration and the settings of its preprocessing."""
    files = sorted(Path(folder).glob("*.json"))
    return {"name": folder, "sha256": _sum(sorted(Path(folder).glob("*.safetensors"))), "config_sha256": _sum(files)}


def _sha256(folder: str, file: str) -> str:
    return _sum([Path(folder) / file])


def _sum(files: Sequence[Path]) -> str:
    """Returns the SHA-256 of a file; of several, that of their sums."""
    from soundomni.core.pretrained.foreign_weights import digest

    sums = [str(digest(file)["sha256"]) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def save(outcome: Outcome, folder: Path) -> None:
    """Writes each generated clip as NUMBER.wav, and results.jsonl with a line per clip: what was true, and what was made and said.

    Continued and varied clips are NUMBER-continued.wav and NUMBER-varied-STRENGTH.wav. What is scored is what was made; a file whose
    "gain" is below 1 is quieter, as it would be clipped otherwise.
    """
    from soundomni.cli.console import note
    from soundomni.data.audio import write_wav
    from soundomni.evaluation.scores import are_toys, heard_recipe

    toys = are_toys(outcome.items)
    continued = {one.item.key: one for one in outcome.continued}
    rows = []
    for i, item in enumerate(outcome.items):
        row: dict[str, Any] = {"key": item.key, "captions": item.captions, "attributes": dict(item.attributes)}
        if outcome.generated:
            clip = outcome.generated[i]
            row |= {"prompt": item.captions[0], "generated": f"{i:04d}.wav"}
            row["gain"] = write_wav(folder / row["generated"], clip.waveform, clip.sample_rate)
            if toys:
                row["heard"] = heard_recipe(clip).to_json()["events"]
        if outcome.described:
            row["described"] = outcome.described[i]
        if outcome.answered:
            pairs = zip(item.questions, outcome.answered[i], strict=True)
            row["answered"] = [{"question": question, "right": truth, "given": given} for (question, truth), given in pairs]
        if item.key in continued:
            one = continued[item.key]
            row |= {"continued": f"{i:04d}-continued.wav", "kept_seconds": one.cut.join}
            write_wav(folder / row["continued"], one.made.waveform, one.made.sample_rate)
        if outcome.varied:
            row |= {"varied": {}, "varied_towards": next(iter(outcome.varied.values()))[i].prompted.captions[0]}
        for strength, variants in outcome.varied.items():
            row["varied"][f"{strength:g}"] = f"{i:04d}-varied-{strength:g}.wav"
            write_wav(folder / row["varied"][f"{strength:g}"], variants[i].made.waveform, variants[i].made.sample_rate)
        rows.append(row)
    quieter = sum(row.get("gain", 1.0) < 1.0 for row in rows)
    if quieter:
        note(f"{quieter} of {len(rows)} generated clips exceeded full scale and were saved quieter; results.jsonl says by which gain")
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
