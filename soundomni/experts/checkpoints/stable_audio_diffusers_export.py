"""Writes a model with the backbone `dit` as a diffusers pipeline: the inverse of `stable_audio_diffusers_import`, bit
for bit.

| name | what it is |
|---|---|
| model_index.json | the parts of the pipeline |
| transformer, projection_model, vae | weights and config of each |
| scheduler | the noise schedule of the model's sampler |
| text_encoder, tokenizer | a copy of the T5, see stable_audio_diffusers_t5.py |

Anything that diffusers cannot compute is refused, so that nothing is lost. Notes say what diffusers does differently
around the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.schema import GuidanceSpec, ModelSpec
from soundomni.experts.checkpoints.stable_audio_diffusers_config import GUIDANCE_SCALE, NUM_STEPS, SAMPLER, SCHEDULER, SIGMAS
from soundomni.experts.checkpoints.stable_audio_diffusers_files import OPEN
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import NUMBER_NAMES, PROJECTION, TRANSFORMER, VAE, places_of
from soundomni.experts.checkpoints.stable_audio_diffusers_t5 import T5_FILES
from soundomni.experts.checkpoints.stable_audio_diffusers_writing import write_pipeline
from soundomni.experts.checkpoints.stable_audio_export import check_has, config_of, resolved, tensors_of
from soundomni.experts.checkpoints.stable_audio_export_notes import notes_of
from soundomni.experts.checkpoints.stable_audio_layout import LATENT
from soundomni.experts.checkpoints.stable_audio_model_config import NUMBER, T5, ModelConfig
from soundomni.experts.dit_network import LEAST_ROTATED, NUM_TIME_FEATURES

BY = "diffusers"
VERSION = "0.30.0"
"""The first version of diffusers with such a pipeline."""


def export_pipeline(
    model: SoundOmni, folder: Path, *, codec: Mapping[str, Tensor], codec_config: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[str, ...]:
    """Write a model into an empty folder, and return what diffusers does differently, one sentence each.

    Args:
        model: a model with the backbone `dit`, as `soundomni import stable-audio` writes it.
        folder: the folder.
        codec: the codec's tensors under diffusers' names.
        codec_config: the codec's config, as diffusers has it.
        dtype: dtype in which weights are stored; the T5's weights keep theirs.

    Raises:
        SpecError: the model has a part that diffusers does not have.
        CheckpointError: the T5 is damaged.
    """
    spec = resolved(model.spec)
    config = _checked(spec)
    whole = tensors_of(model, config, by=BY)
    write_pipeline(
        model,
        folder,
        family=OPEN,
        version=VERSION,
        text_files=T5_FILES,
        prompt=next(one for one in config.conditions if one.kind == T5),
        scheduler=_scheduler(spec),
        configs={TRANSFORMER: _transformer(config, _hop(spec)), PROJECTION: _projection(config), VAE: codec_config},
        tensors=places_of(config).written(whole) | {f"{VAE}{name}": tensor for name, tensor in codec.items()},
        dtype=dtype,
    )
    return (*notes_of(spec, by=BY, clamps=False, takes_main=False), *_sampling_notes(spec))


def _checked(spec: ModelSpec) -> ModelConfig:
    """Return the config for a spec, with the numbers in diffusers' order. Raise SpecError for parts that diffusers
    lacks."""
    config = config_of(spec, by=BY)
    made, backbone, key = spec.used[LATENT], config.backbone, f"model.modalities.{LATENT}"
    needed = {"conditioning": "prepend", "differential": False, "head_norm": "none", "num_memory": 0}
    check_has(BY, {f"model.backbone.{name}": (backbone[name], (value,)) for name, value in needed.items()})
    kind = None if made.objective is None else made.objective.class_path
    check_has(BY, {f"{key}.objective": (kind, ("v-prediction",))})
    check_has(BY, {f"{key}.objective.shows_known": (config.inpaints, (False,))})
    head_dim = backbone["hidden_dim"] // backbone["num_heads"]
    if head_dim // 2 < LEAST_ROTATED:
        given = f"model.backbone.num_heads is {backbone['num_heads']}"
        told = f"{BY} rotates half of the {head_dim} dimensions of a head, but this model rotates more"
        raise SpecError(f"{given}, but {told}, so this model cannot be exported to it")
    _check_conditions(config)
    if config.sample_size % _hop(spec):
        told = f"{config.sample_size / _hop(spec):g} frames, but {BY} only has whole ones"
        raise SpecError(f"{key}.window is {made.window}, which is {told}, so this model cannot be exported to it")
    return replace(config, global_ids=tuple(NUMBER_NAMES))


def _check_conditions(config: ModelConfig) -> None:
    """Raise SpecError unless a model has the conditions of a pipeline: a text and two numbers of the same range."""
    numbers = {one.id: one.settings for one in config.conditions if one.kind == NUMBER}
    if numbers.keys() != NUMBER_NAMES.keys() or len(config.conditions) != len(numbers) + 1:
        given = f"the conditions of the model are {', '.join(one.id for one in config.conditions)}"
        told = f"{BY} only has one text, {' and '.join(NUMBER_NAMES)}"
        raise SpecError(f"{given}, but {told}, so this model cannot be exported to it")
    ways = {T5: "cross", NUMBER: "cross+global"}
    check_has(BY, {f"model.modalities.{one.id}.enters": (one.enters, (ways[one.kind],)) for one in config.conditions})
    start, total = (numbers[name] for name in NUMBER_NAMES)
    check_has(BY, {f"model.modalities.seconds_total.encoder.{name}": (total[name], (start[name],)) for name in start})


def _hop(spec: ModelSpec) -> int:
    """Return the number of samples per frame."""
    return math.prod(spec.codec.init_args["strides"])


def _transformer(config: ModelConfig, hop: int) -> dict[str, Any]:
    backbone = config.backbone
    head_dim = backbone["hidden_dim"] // backbone["num_heads"]
    seen_dim = backbone["hidden_dim"] if backbone["project_conditions"] else config.condition_dim
    return {
        "_class_name": OPEN.class_of("transformer"),
        "sample_size": config.sample_size // hop,
        "in_channels": config.latent_dim,
        "num_layers": backbone["num_layers"],
        "attention_head_dim": head_dim,
        "num_attention_heads": backbone["num_heads"],
        "num_key_value_attention_heads": seen_dim // head_dim,
        "out_channels": config.latent_dim,
        "cross_attention_dim": seen_dim,
        "time_proj_dim": NUM_TIME_FEATURES,
        "global_states_input_dim": len(NUMBER_NAMES) * config.condition_dim,
        "cross_attention_input_dim": config.condition_dim,
    }


def _projection(config: ModelConfig) -> dict[str, Any]:
    seconds = next(one.settings for one in config.conditions if one.kind == NUMBER)
    return {
        "_class_name": OPEN.class_of("projection_model"),
        "text_encoder_dim": config.condition_dim,
        "conditioning_dim": config.condition_dim,
        "min_value": seconds["least"],
        "max_value": seconds["most"],
    }


def _scheduler(spec: ModelSpec) -> dict[str, Any]:
    """Return the scheduler's config, with the sampler's noise schedule, or the usual one if the sampler is of another
    kind."""
    schedule = _schedule(spec)
    least, most = (schedule["sigma_min"], schedule["sigma_max"]) if schedule.get("spacing") == "exponential" else SIGMAS
    return {
        "_class_name": OPEN.class_of("scheduler"),
        "sigma_min": least,
        "sigma_max": most,
        "sigma_data": 1.0,
        "num_train_timesteps": 1000,
        **SCHEDULER,
    }


def _schedule(spec: ModelSpec) -> Mapping[str, Any]:
    """Return the noise schedule of the model's sampler; empty if it has none."""
    sampler = spec.used[LATENT].sampler
    found: Mapping[str, Any] = {} if sampler is None else sampler.init_args.get("schedule") or {}
    return found


def _sampling_notes(spec: ModelSpec) -> list[str]:
    """Return notes on what to pass to the pipeline so that it samples as the model does, and on what it cannot do."""
    made, notes = spec.used[LATENT], []
    if made.sampler is not None:
        name, given = made.sampler.class_path, made.sampler.init_args
        if name != SAMPLER or not _takes_usual_steps(given):
            notes.append(f"the sampler is '{name}' here; {BY} takes the steps of {SAMPLER} with eta and s_noise 1")
        if given.get("num_steps", NUM_STEPS) != NUM_STEPS:
            steps = given["num_steps"]
            notes.append(f"the sampler takes {steps} steps here; pass num_inference_steps={steps} to the pipeline")
    guidance, usual = made.guidance, GuidanceSpec()
    if guidance.scale != GUIDANCE_SCALE:
        notes.append(f"guidance.scale is {guidance.scale:g} here; pass guidance_scale={guidance.scale:g} to the pipeline")
    for name in (field.name for field in fields(usual) if field.name != "scale"):
        value = getattr(guidance, name)
        if value != getattr(usual, name):
            notes.append(f"guidance.{name} is {value} here; {BY} has no such setting")
    return notes


def _takes_usual_steps(arguments: Mapping[str, Any]) -> bool:
    """Return whether the scheduler supports these arguments of SAMPLER."""
    schedule = arguments["schedule"]
    given = (schedule["spacing"], schedule["rho"], arguments["eta"], arguments["s_noise"])
    return given == ("exponential", 1.0, 1.0, 1.0)
