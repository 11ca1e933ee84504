"""A model with the backbone `dit` in the layout of stable-audio-tools: the inverse of `stable_audio_import`, bit for bit.

| name | what it is |
|---|---|
| model.safetensors | all weights under stable-audio-tools' names, the codec's too |
| model_config.json | their config of the model |

Anything that stable-audio-tools cannot compute is refused, so that nothing is lost. Notes say what it does differently
around the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.weights import write_tensors
from soundomni.core.spec.load import resolve
from soundomni.core.spec.provenance import lasting_name
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, Slot, Spec
from soundomni.core.spec.slots import map_slots
from soundomni.experts.checkpoints.stable_audio_export_notes import notes_of
from soundomni.experts.checkpoints.stable_audio_import import facts_of
from soundomni.experts.checkpoints.stable_audio_layout import CODEC, LATENT, buffers_of, parts_of
from soundomni.experts.checkpoints.stable_audio_model_config import (
    HINTS,
    KINDS,
    NUM_FREQUENCIES,
    NUMBER,
    T5,
    Condition,
    ModelConfig,
    Objective,
)

BY = "stable-audio-tools"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "model_config.json"
FLOW: Objective = "rectified_flow"
OBJECTIVES: Mapping[str, Objective] = {"v-prediction": "v", "flow-matching": FLOW}
DENOISER: Objective = "rf_denoiser"
"""What stable-audio-tools calls a rectified flow that was distilled, which is sampled by `pingpong`."""
T5_MODELS = (
    *("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *("google/t5-v1_1-xl", "google/t5-v1_1-xxl"),
)
"""Names of the only T5 models that stable-audio-tools loads."""
T5_OWNER = "google-t5/"
"""Hub owner of some of these models; stable-audio-tools' names leave it out."""
SECONDS = 47.5
"""Length of the clips that a config states for training a model without a window, which the weights do not depend on."""


def export_stable_audio(
    model: SoundOmni, folder: Path, *, codec: Mapping[str, Tensor], codec_config: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[str, ...]:
    """Write a model into an empty folder, and return what stable-audio-tools does differently, one sentence each.

    Args:
        model: a model with the backbone `dit`, as `soundomni import stable-audio` writes it.
        folder: the folder.
        codec: the codec's tensors under stable-audio-tools' names.
        codec_config: the codec's config, as stable-audio-tools has it.
        dtype: dtype in which weights are stored.

    Raises:
        SpecError: stable-audio-tools does not have such a part.
    """
    spec = resolved(model.spec)
    config = config_of(spec, by=BY)
    written = json.dumps(_written(config, codec_config), indent=2)
    tensors = tensors_of(model, config, by=BY) | dict(buffers_of(facts_of(config)))
    tensors |= {f"{CODEC}{name}": tensor for name, tensor in codec.items()}
    write_tensors({name: tensor.detach().cpu().to(dtype).contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(written + "\n", encoding="utf-8")
    return notes_of(spec, by=BY)


def resolved(spec: Spec) -> ModelSpec:
    """Return the model of a spec with all arguments of all plugins, and without paths that only work here."""
    return map_slots(resolve(spec), lambda key, kind, slot: Slot(lasting_name(kind, slot.class_path), slot.init_args)).of_model


def tensors_of(model: SoundOmni, config: ModelConfig, *, by: str) -> dict[str, Tensor]:
    """Return the tensors of a model, without its codec's, under stable-audio-tools' names.

    Raise SpecError if the model has tensors that `by`, the other project, has no place for.
    """
    state = model.model.state_dict()
    parts = parts_of(facts_of(config))
    taken = {name for part in parts for name in part.ours}
    others = tuple(f"modalities.{LATENT}.{part}." for part in ("codec", "normalizer"))
    left = [name for name in state if name not in taken and not name.startswith(others)]
    if left:
        raise SpecError(f"the layout of {by} has no place for '{left[0]}'")
    return {part.source: part.write(state) for part in parts}


def check_has(by: str, values: Mapping[str, tuple[Any, Collection[Any]]]) -> None:
    """Raise SpecError for the first key of a spec whose value another project does not support.

    Args:
        by: the other project.
        values: key → its value, and the values that the other project supports.
    """
    for key, (value, possible) in values.items():
        if value not in possible:
            told = f"{key} is {value!r}, but {by} only has {next(iter(possible))!r}"
            raise SpecError(f"{told}, so this model cannot be exported to it")


def config_of(model: ModelSpec, *, by: str) -> ModelConfig:
    """Return the config for a resolved spec. Raise SpecError for a part that `by`, the other project, does not have."""
    made = model.used.get(LATENT)
    given: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
        "model.backbone": (model.backbone.class_path, ("dit",)),
        f"model.modalities.{LATENT}": (None if made is None or made.codec is None else made.codec.class_path, ("oobleck",)),
        f"model.modalities.{LATENT}.connector": (made and made.connector.class_path, ("residual-linear",)),
        f"model.modalities.{LATENT}.objective": (made and made.objective and made.objective.class_path, tuple(OBJECTIVES)),
        f"model.modalities.{LATENT}.normalize": (made and made.normalize, ("none",)),
    }
    check_has(by, given)
    assert made is not None and made.objective is not None and made.codec is not None, "checked above"
    names = [name for name in model.used if name != LATENT]
    conditions = {name: _condition(name, model.used[name], by=by) for name in names}
    codec, backbone = made.codec.init_args, dict(model.backbone.init_args)
    backbone["condition_dim"] = backbone["condition_dim"] or backbone["hidden_dim"]
    return ModelConfig(
        sample_rate=codec["sample_rate"],
        channels=codec["channels"],
        sample_size=_sample_size(codec, made.window),
        latent_dim=codec["latent_dim"],
        objective=objective_of(made),
        backbone=backbone,
        condition_dim=backbone["condition_dim"],
        conditions=tuple(conditions[name] for name in crossing(model, names, by=by)),
        global_ids=tuple(name for name, one in conditions.items() if one.is_global),
        inpaints=made.objective.init_args["shows_known"],
        unused=(),
    )


def crossing(model: ModelSpec, names: Sequence[str], *, by: str) -> list[str]:
    """Return the names of conditions in the order of the prompt. Raise SpecError unless the prompt gives each of them
    exactly once."""
    given = [template.of or "text" for template in model.prompt]
    if sorted(given) != sorted(names):
        told = f"model.prompt gives {', '.join(given) or 'nothing'}; expected {', '.join(names)}, each once"
        raise SpecError(f"{told}, because {by} gives every condition once. This model cannot be exported to it")
    return given


def objective_of(made: ModalitySpec) -> Objective:
    """Return stable-audio-tools' name for an objective with its sampler."""
    assert made.objective is not None, "what is made has an objective"
    objective = OBJECTIVES[made.objective.class_path]
    return DENOISER if objective == FLOW and made.sampler is not None and made.sampler.class_path == "pingpong" else objective


def _sample_size(codec: Mapping[str, Any], window: float | None) -> int:
    """Return the samples of the clips that a model makes: those of its window, or of SECONDS, rounded to whole frames."""
    rate, ratio = float(codec["sample_rate"]), int(math.prod(codec["strides"]))
    return round(window * rate) if window is not None else ratio * round(SECONDS * rate / ratio)


def _condition(name: str, spec: ModalitySpec, *, by: str) -> Condition:
    """Return the conditioner of a modality. Raise SpecError if `by`, the other project, has no such conditioner."""
    key, encoder = f"model.modalities.{name}", spec.encoder
    kind = None if encoder is None else encoder.class_path
    connectors = {T5: "identity", NUMBER: "linear"}
    if encoder is None or kind not in connectors or spec.connector.class_path != connectors[kind]:
        raise SpecError(
            f"{key} has the encoder {kind!r} and the connector '{spec.connector.class_path}', but {by} only has t5 with "
            "identity, and number with linear, so this model cannot be exported to it"
        )
    arguments = encoder.init_args
    needed = {"features": "learned", "num_frequencies": NUM_FREQUENCIES} if kind == NUMBER else {}
    check_has(by, {f"{key}.encoder.{argument}": (arguments[argument], (value,)) for argument, value in needed.items()})
    if kind == T5 and arguments["pad_to"] is None:
        told = f"{key}.encoder.pad_to is null, but {by} pads all texts"
        raise SpecError(f"{told}, so this model cannot be exported to it")
    names = ("least", "most") if kind == NUMBER else ("name", "pad_to")
    settings = {other: arguments[own] for own, other in zip(names, names if kind == NUMBER else ("name", "max_length"), strict=True)}
    ways = spec.enters.split("+")
    return Condition(id=name, kind=kind, settings=settings, crosses="cross" in ways, is_global="global" in ways)


def _written(config: ModelConfig, codec_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return model_config.json, as plain data."""
    backbone = config.backbone
    crosses = [one.id for one in config.conditions if one.crosses]
    transformer = {
        "io_channels": config.latent_dim,
        "input_concat_dim": config.latent_dim + 1 if config.inpaints else 0,
        "embed_dim": backbone["hidden_dim"],
        "depth": backbone["num_layers"],
        "num_heads": backbone["num_heads"],
        "cond_token_dim": config.condition_dim if crosses else 0,
        "global_cond_dim": config.condition_dim * len(config.global_ids),
        "project_cond_tokens": backbone["project_conditions"],
        "project_global_cond": True,
        "transformer_type": "continuous_transformer",
        "global_cond_type": "prepend" if backbone["conditioning"] == "prepend" else "adaLN",
        "num_memory_tokens": backbone["num_memory"],
        "attn_kwargs": {"qk_norm": "ln" if backbone["head_norm"] == "layer" else "none", "differential": backbone["differential"]},
    }
    kind = next(kind for kind, inpaints in KINDS.items() if inpaints == config.inpaints)
    concatenated = {"input_concat_ids": HINTS} if config.inpaints else {}
    return {
        "model_type": kind,
        "sample_size": config.sample_size,
        "sample_rate": config.sample_rate,
        "audio_channels": config.channels,
        "model": {
            "pretransform": {"type": "autoencoder", "iterate_batch": True, "config": dict(codec_config)},
            "conditioning": {"configs": [_conditioner(one) for one in config.conditions], "cond_dim": config.condition_dim},
            "diffusion": {
                "cross_attention_cond_ids": crosses,
                "global_cond_ids": list(config.global_ids),
                **concatenated,
                "diffusion_objective": config.objective,
                "type": "dit",
                "config": transformer,
            },
            "io_channels": config.latent_dim,
        },
    }


def _conditioner(condition: Condition) -> dict[str, Any]:
    settings = condition.settings
    if condition.kind == NUMBER:
        return {"id": condition.id, "type": NUMBER, "config": {"min_val": settings["least"], "max_val": settings["most"]}}
    name = str(settings["name"]).removeprefix(T5_OWNER)
    if name not in T5_MODELS:
        key = f"model.modalities.{condition.id}.encoder"
        told = f"{key}.name is '{name}'; expected one of {', '.join(T5_MODELS)}, the only ones that {BY} loads."
        advice = f"Set it to the T5 that this one is, and {key}.folder to its folder"
        raise SpecError(f"{told}{did_you_mean(name, T5_MODELS)} {advice}")
    return {"id": condition.id, "type": T5, "config": {"t5_model_name": name, "max_length": settings["max_length"]}}
