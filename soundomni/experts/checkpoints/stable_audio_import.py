"""A model of stable-audio-tools with a diffusion transformer, such as Stable Audio Open, as a model directory.

| layout | prefixes of its tensors |
|---|---|
| model | `model.model.`, `conditioner.conditioners.`, `pretransform.model.`; also under `state_dict.` |
| training-average | `diffusion_ema.ema_model.model.` for the transformer, the others under `diffusion.` |
| training | all under `diffusion.` |

Every tensor of a file is either used, unused for a known reason, or unexpected; nothing may be unexpected or missing. The text encoder's
weights are not in such files: it is named, and looked for in a folder or in the local Hub cache. Tensors are read and written one by one,
so memory holds one shard, however large the model is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.normalizer import LatentNormalizer
from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError, amount, some
from soundomni.core.files.names import REPORT_FILE
from soundomni.core.pretrained.directory import Origin, card, write_model
from soundomni.core.pretrained.foreign_weights import WeightFile, read_float32, read_floating
from soundomni.core.pretrained.import_report import report_start
from soundomni.core.pretrained.weights import MAX_SHARD_BYTES
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.experts.checkpoints.language_import import LazyState
from soundomni.experts.checkpoints.stable_audio_3_config import HEADROOM, T5GEMMA
from soundomni.experts.checkpoints.stable_audio_layout import CODEC, CONDITIONERS, DIT, LATENT, Facts, Part, buffers_of, parts_of
from soundomni.experts.checkpoints.stable_audio_model_config import CLAP_TEXT, NUMBER, NUMBERS, Condition, ModelConfig
from soundomni.experts.dit_network import rotary_dim

KIND = "stable-audio"
CONTAINER = "state_dict."
TRAINING, AVERAGE = "diffusion.", "diffusion_ema.ema_model."
_COUNTERS = {f"{AVERAGE.partition('.')[0]}.{name}": "a counter of the average" for name in ("initted", "step", "online_model.")}
SAMPLERS: Mapping[str, Any] = {
    "v": {"class_path": "dpmpp-3m-sde", "init_args": {"num_steps": 100}},
    "rectified_flow": {"class_path": "ddim", "init_args": {"num_steps": 50, "schedule": {"spacing": "log-snr"}}},
    "rf_denoiser": {"class_path": "pingpong", "init_args": {"num_steps": 8}},
}
"""Objective → the sampler with which stable-audio-tools uses such a model by default; its Euler steps of a flow are those of `ddim`."""
_UNUSED = {"training-average": _COUNTERS | {f"{TRAINING}{DIT}": "the last weights; their average is used instead"}}
"""Layout → beginning of a name → why tensors of such names are not used."""


@dataclass(frozen=True)
class CodecPart:
    """The codec of a model, as its own importer reads it.

    Args:
        init_args: arguments of the codec.
        makers: parameter of the codec → how it is read.
        used: tensor of the file → parameters of the codec.
        plugin: name of the codec.
        implied: tensor of the codec in the file that follows from the sizes → a text that says so.
        notes: decisions that were made, for the report.
    """

    init_args: Mapping[str, Any]
    makers: Mapping[str, Callable[[], Tensor]]
    used: Mapping[str, list[str]]
    plugin: str = "oobleck"
    implied: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportedModel:
    """A checkpoint that fits its config; no large part of it has been read yet.

    Args:
        weights: its tensors.
        layout: name of the layout of its tensors.
        spec: spec of the model directory.
        state: tensors of the model.
        parameters: number of parameters.
        used: tensor of the source → parameters here.
        unused: other entry of the source → why it is not used.
        notes: decisions that were made, for the report.
    """

    weights: WeightFile
    layout: str
    spec: Spec
    state: Mapping[str, Tensor]
    parameters: int
    used: Mapping[str, list[str]]
    unused: Mapping[str, str]
    notes: tuple[str, ...]


def import_stable_audio(
    weights: WeightFile,
    config: ModelConfig,
    codec: CodecPart,
    *,
    text_encoder: str | None = None,
    sampler: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """Determine where every tensor of the model comes from.

    Args:
        weights: the checkpoint.
        config: its config.
        codec: its codec.
        text_encoder: folder of its T5; None looks for the one that the config names in the local Hub cache.
        sampler: its sampler; None for the one that stable-audio-tools uses by default for such a model.

    Raises:
        CheckpointError: a tensor is missing, has another shape or another value than follows from the sizes, or is not explained by
            anything.
        SpecError: the text encoder cannot be found.
    """
    slot = {"class_path": codec.plugin, "init_args": dict(codec.init_args)}
    spec = load_spec([spec_layer(config, slot, text_encoder, sampler=sampler)], base={})
    tokenizer = TextTokenizer.train([""], vocab_size=spec.of_model.tokenizer.vocab_size)
    with without_memory():
        shell = build_model(spec.of_model, vocab_size=tokenizer.vocab_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items()}
    layout, names = _names(weights)
    facts = facts_of(config)
    parts, buffers = parts_of(facts), dict(buffers_of(facts))
    unused = _check(weights, names, parts, buffers, shapes, codec, _UNUSED.get(layout, {}))
    makers: dict[str, Callable[[], Tensor]] = {}
    for part in parts:
        for ours in part.ours:
            makers[ours] = partial(_read, weights, names[part.source], part, shapes, ours)
    own = f"modalities.{LATENT}.codec."
    makers |= {f"{own}{name}": maker for name, maker in codec.makers.items()}
    for name, tensor in LatentNormalizer.of(shell.made().codec.spec, "none").state_dict().items():
        makers[f"modalities.{LATENT}.normalizer.{name}"] = partial(torch.clone, tensor)
    missing = sorted(shapes.keys() - makers.keys())
    assert not makers.keys() - shapes.keys(), "the parts are those of the model"
    if missing:
        raise CheckpointError(f"'{weights.path}' does not fill {amount(len(missing), 'tensor')} of the model ({some(missing)})")
    used = {names[part.source]: list(part.ours) for part in parts}
    used |= {source: [f"{own}{name}" for name in ours] for source, ours in codec.used.items()}
    return ImportedModel(
        weights=weights,
        layout=layout,
        spec=spec,
        state=LazyState({name: makers[name] for name in shapes}),
        parameters=sum(parameter.numel() for parameter in shell.parameters()),
        used=used,
        unused=unused | {names[name]: "follows from the sizes" for name in buffers},
        notes=(*(f"ignored {key} of the config" for key in config.unused), *codec.notes),
    )


def facts_of(config: ModelConfig) -> Facts:
    """Return what decides which tensors a model has."""
    backbone = config.backbone
    is_third = config.plugin == "dit-3"
    numbers = [one for one in config.conditions if one.kind == NUMBER]
    return Facts(
        num_layers=backbone["num_layers"],
        hidden_dim=backbone["hidden_dim"],
        rotary_dim=rotary_dim(backbone["hidden_dim"] // backbone["num_heads"]),
        crosses=any(one.crosses for one in config.conditions),
        global_ids=config.global_ids,
        numbers=tuple(one.id for one in numbers if one.settings.get("features") != "fixed"),
        modulates=is_third or backbone["conditioning"] == "adaln",
        has_memory=backbone["num_memory"] > 0,
        norm="rms" if is_third else "layer",
        head_norm="rms" if is_third else backbone["head_norm"],
        has_frequencies=not is_third,
        has_hints=is_third and config.inpaints,
        fixed_numbers=tuple(one.id for one in numbers if one.settings.get("features") == "fixed"),
        padded=tuple(one.id for one in config.conditions if one.kind == T5GEMMA),
    )


def write_imported(
    imported: ImportedModel, folder: Path, *, license: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, Any]:
    """Write the model directory, and return the report.

    Args:
        imported: the model to write.
        folder: an empty folder.
        license: license of the weights, as their owner names it; None for unknown.
        max_shard_bytes: beyond this, weights are stored in several files with an index.
    """
    weights, spec = imported.weights, imported.spec
    origin = Origin(license=license, source=weights.path.resolve().name)
    write_model(
        folder,
        spec,
        imported.state,
        TextTokenizer.train([""], vocab_size=spec.of_model.tokenizer.vocab_size),
        parameters=imported.parameters,
        sample_rate=spec.of_model.codec.init_args["sample_rate"],
        max_tokens=None,
        origin=origin,
        card=card(spec, imported.parameters, origin),
        dtype=None,
        max_shard_bytes=max_shard_bytes,
    )
    report = {
        **report_start(KIND, weights),
        "layout": imported.layout,
        "parameters": imported.parameters,
        "license": license,
        "notes": list(imported.notes),
        "keys": {"used": dict(imported.used), "unused": dict(imported.unused), "missing": [], "unexpected": []},
    }
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def spec_layer(
    config: ModelConfig, codec: Mapping[str, Any], text_encoder: str | None, *, sampler: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the spec for a config, as plain data; `codec` is the codec's slot, also as plain data.

    The prompt has the order of the condition tokens, and the modalities have the order of the columns of the global
    embedding. If `sampler` is None, the model gets its usual one.
    """
    name = "v-prediction" if config.objective == "v" else "flow-matching"
    made = {
        "codec": dict(codec),
        "connector": "residual-linear",
        "objective": {"class_path": name, "init_args": {"timesteps": "uniform", "shows_known": config.inpaints}},
        **_sampling(config),
    }
    made |= {} if sampler is None else {"sampler": sampler}
    prompt = [{"text": prompt_text(one.kind, one.id), "of": one.id} for one in config.conditions]
    conditions = {one.id: one for one in config.conditions}
    global_ids = iter(config.global_ids)
    order = [next(global_ids) if one.is_global else one.id for one in config.conditions]
    modalities = {LATENT: made} | {name: _modality(conditions[name], text_encoder) for name in order}
    backbone = {"class_path": config.plugin, "init_args": dict(config.backbone)}
    model = {"backbone": backbone, "router": "dense", "tokenizer": {"vocab_size": 261}, "modalities": modalities, "prompt": prompt}
    return {"model": model}


def _sampling(config: ModelConfig) -> dict[str, Any]:
    """Return how clips are made by default: the sampler, guidance, window and headroom."""
    scale = 1.0 if config.objective == "rf_denoiser" else 7.0
    if config.plugin == "dit":
        window = config.sample_size / config.sample_rate
        return {"sampler": SAMPLERS[config.objective], "guidance": {"scale": scale}, "window": window}
    sampler = SAMPLERS[config.objective]
    if config.objective != "v":
        sampler = {**sampler, "init_args": {**sampler["init_args"], "schedule": config.schedule}}
    return {"sampler": sampler, "guidance": {"scale": scale, "parallel": 0.0}, "headroom": HEADROOM}


def _modality(condition: Condition, text_encoder: str | None) -> dict[str, Any]:
    if condition.kind == NUMBER:
        number = {**condition.settings, "clamp": True}
        return {"encoder": {"class_path": "number", "init_args": number}, "connector": "linear", "enters": condition.enters}
    if condition.kind == CLAP_TEXT:
        clap = {**condition.settings, "name": text_encoder or condition.settings["name"]}
        connector = "identity" if clap["features"] == "hidden" else "linear"
        return {"encoder": {"class_path": "clap-text", "init_args": clap}, "connector": connector, "enters": condition.enters}
    length = condition.settings["max_length"]
    text = {"name": condition.settings["name"], "max_tokens": max(length, 512), "pad_to": length, "truncate": True}
    text |= {} if text_encoder is None else {"folder": text_encoder}
    return {"encoder": {"class_path": condition.kind, "init_args": text}, "connector": "identity", "enters": condition.enters}


def prompt_text(kind: str, id: str) -> str:
    """Return the text of a condition in the prompt."""
    return NUMBERS[id] if kind == NUMBER else "{caption}"


def _names(weights: WeightFile) -> tuple[str, dict[str, str]]:
    """Return the layout of a file, and name in the layout "model" → name in the file."""
    container = CONTAINER if any(name.startswith(CONTAINER) for name in weights) else ""
    inner = {name.removeprefix(container): name for name in weights if name.startswith(container)}
    if any(name.startswith(DIT) for name in inner):
        return "model", inner
    last = {name.removeprefix(TRAINING): full for name, full in inner.items() if name.startswith(TRAINING)}
    average = {f"model.{name.removeprefix(AVERAGE)}": full for name, full in inner.items() if name.startswith(AVERAGE)}
    if not any(name.startswith(DIT) for name in (*last, *average)):
        raise CheckpointError(
            f"'{weights.path}' does not hold a diffusion transformer of stable-audio-tools; expected tensors under {DIT}, or under "
            f"{TRAINING}{DIT} in a checkpoint of its training, found {amount(len(weights), 'other')} ({some(sorted(weights)) or 'none'})"
        )
    if not average:
        return "training", last
    others = {name: full for name, full in last.items() if not name.startswith(DIT)}  # only the transformer is averaged
    return "training-average", others | average


def _check(
    weights: WeightFile,
    names: Mapping[str, str],
    parts: list[Part],
    buffers: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    codec: CodecPart,
    known: Mapping[str, str],
) -> dict[str, str]:
    """Compare names, shapes and buffers before anything large is read. Return the other entries, and why they are not used."""
    wanted = {part.source: part.shape_from(shapes) for part in parts} | {name: tuple(one.shape) for name, one in buffers.items()}
    missing = sorted(wanted.keys() - names.keys())
    taken = {names[name] for name in wanted if name in names} | set(codec.used) | set(codec.implied)
    unused = dict.fromkeys(weights.others, "not a tensor") | dict(codec.implied)
    unexpected = []
    for name in weights:
        bare = name.removeprefix(CONTAINER)
        reason = next((why for start, why in known.items() if bare.startswith(start)), None)
        if name in taken:
            continue
        if reason is None and bare.startswith((DIT, CONDITIONERS, CODEC, TRAINING, AVERAGE)):
            unexpected.append(name)
        else:
            unused[name] = reason or "kept next to the weights by the training"
    wrong = [
        f"{name} {list(weights.shape(names[name]))} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in names and weights.shape(names[name]) != shape
    ]
    problems = {"missing": missing, "unexpected": sorted(unexpected), "of another shape": wrong}
    told = [f"{len(found)} {what} ({some(found)})" for what, found in problems.items() if found]
    if told:
        raise CheckpointError(f"'{weights.path}' does not fit its config: of the {len(wanted)} tensors of the model, {'; '.join(told)}")
    for name, expected in buffers.items():
        stored = read_float32(weights, names[name])
        if not torch.allclose(stored, expected.to(weights[names[name]].dtype).float(), rtol=1e-3, atol=1e-6):
            raise CheckpointError(f"'{weights.path}': {name} has other values than its sizes give; the model is not of this kind")
    return unused


def _read(weights: WeightFile, source: str, part: Part, shapes: Mapping[str, tuple[int, ...]], ours: str) -> Tensor:
    """Read one parameter, in the precision of the source."""
    return part.read(read_floating(weights, source), shapes)[ours].contiguous().clone()
