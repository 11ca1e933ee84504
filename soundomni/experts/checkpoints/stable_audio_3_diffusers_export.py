"""Writes a model with the backbone `dit-3` as a diffusers pipeline: the inverse of importing one, bit for bit.

Anything that diffusers cannot compute is refused, so that nothing is lost. Notes say what diffusers does differently
around the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec
from soundomni.experts.checkpoints.stable_audio_3_config import T5GEMMA
from soundomni.experts.checkpoints.stable_audio_3_diffusers_config import LONGEST_TEXT, SAMPLERS, SCHEDULE, SCHEDULER
from soundomni.experts.checkpoints.stable_audio_3_diffusers_layout import DURATION, SECONDS, third_places
from soundomni.experts.checkpoints.stable_audio_3_export import third_config_of
from soundomni.experts.checkpoints.stable_audio_diffusers_files import THIRD
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import TRANSFORMER, VAE
from soundomni.experts.checkpoints.stable_audio_diffusers_t5 import T5GEMMA_FILES
from soundomni.experts.checkpoints.stable_audio_diffusers_writing import write_pipeline
from soundomni.experts.checkpoints.stable_audio_export import check_has, resolved, tensors_of
from soundomni.experts.checkpoints.stable_audio_export_notes import notes_of
from soundomni.experts.checkpoints.stable_audio_layout import LATENT
from soundomni.experts.checkpoints.stable_audio_model_config import NUM_FREQUENCIES, NUMBER, ModelConfig
from soundomni.experts.dit_network import LEAST_ROTATED, MLP_RATIO, NUM_TIME_FEATURES
from soundomni.experts.number import HIGHEST, LOWEST

BY = "diffusers"
VERSION = "0.40.0"
"""The first version of diffusers with such a pipeline."""
HINTS = (
    f"clips that continue nothing are made without the network for known frames by {BY}' StableAudio3Pipeline; its "
    "StableAudio3InpaintPipeline with a mask of zeros has it, as Stable Audio 3 does"
)


def export_third_pipeline(
    model: SoundOmni,
    folder: Path,
    *,
    codec: Mapping[str, Tensor],
    codec_config: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> tuple[str, ...]:
    """Write a model into an empty folder, and return what diffusers does differently, one sentence each.

    Args:
        model: a model with the backbone `dit-3`, as `soundomni import stable-audio` writes it.
        folder: the folder.
        codec: the codec's tensors under diffusers' names.
        codec_config: the codec's config, as diffusers has it.
        dtype: dtype in which weights are stored; the T5Gemma's weights keep theirs.

    Raises:
        SpecError: the model has a part that diffusers does not have.
        CheckpointError: the T5Gemma is damaged.
    """
    spec = resolved(model.spec)
    config = _checked(spec)
    whole = tensors_of(model, config, by=BY)
    write_pipeline(
        model,
        folder,
        family=THIRD,
        version=VERSION,
        text_files=T5GEMMA_FILES,
        prompt=next(one for one in config.conditions if one.kind == T5GEMMA),
        scheduler=_scheduler(config),
        configs={TRANSFORMER: _transformer(config), DURATION: _duration(config), VAE: codec_config},
        tensors=third_places(config).written(whole) | {f"{VAE}{name}": tensor for name, tensor in codec.items()},
        dtype=dtype,
    )
    made = spec.used[LATENT]
    sampling = (*_length_notes(made), *_sampling_notes(made, config), *_guidance_notes(made))
    return (HINTS, *notes_of(spec, by=BY, takes_main=False), *sampling)


def _checked(spec: ModelSpec) -> ModelConfig:
    """Return the config for a spec. Raise SpecError for parts that diffusers lacks."""
    config = third_config_of(spec, by=BY)
    backbone, key = config.backbone, f"model.modalities.{LATENT}"
    kind = "v-prediction" if config.objective == "v" else "flow-matching"
    check_has(BY, {f"{key}.objective": (kind, ("flow-matching",))})
    needed = {"project_conditions": True, "log_snr_times": False}
    check_has(BY, {f"model.backbone.{name}": (backbone[name], (value,)) for name, value in needed.items()})
    head_dim = backbone["hidden_dim"] // backbone["num_heads"]
    if head_dim // 2 < LEAST_ROTATED:
        given = f"model.backbone.num_heads is {backbone['num_heads']}"
        told = f"{BY} rotates half of the {head_dim} dimensions of a head, but this model rotates more"
        raise SpecError(f"{given}, but {told}, so this model cannot be exported to it")
    kinds = {one.kind: one for one in config.conditions}
    if kinds.keys() != {T5GEMMA, NUMBER} or len(config.conditions) != len(kinds) or kinds[NUMBER].id != SECONDS:
        given = f"the conditions of the model are {', '.join(one.id for one in config.conditions)}"
        raise SpecError(f"{given}, but {BY} only has one text and {SECONDS}, so this model cannot be exported to it")
    ways = {T5GEMMA: "cross", NUMBER: "cross+global"}
    check_has(BY, {f"model.modalities.{one.id}.enters": (one.enters, (ways[one.kind],)) for one in config.conditions})
    check_has(BY, {f"model.modalities.{SECONDS}.encoder.features": (kinds[NUMBER].settings["features"], ("fixed",))})
    prompt = kinds[T5GEMMA]
    if (length := prompt.settings["max_length"]) > LONGEST_TEXT:
        given = f"model.modalities.{prompt.id}.encoder.pad_to is {length}"
        raise SpecError(f"{given}, but {BY} has at most {LONGEST_TEXT} tokens, so this model cannot be exported to it")
    return config


def _transformer(config: ModelConfig) -> dict[str, Any]:
    backbone = config.backbone
    return {
        "_class_name": THIRD.class_of("transformer"),
        "io_channels": config.latent_dim,
        "patch_size": 1,
        "embed_dim": backbone["hidden_dim"],
        "depth": backbone["num_layers"],
        "num_heads": backbone["num_heads"],
        "cond_token_dim": config.condition_dim,
        "global_cond_dim": config.condition_dim,
        "local_add_cond_dim": config.latent_dim + 1,
        "timestep_features_dim": NUM_TIME_FEATURES,
        "ff_mult": float(MLP_RATIO),
        "num_memory_tokens": backbone["num_memory"],
        "use_differential_attention": backbone["differential"],
    }


def _duration(config: ModelConfig) -> dict[str, Any]:
    seconds = next(one.settings for one in config.conditions if one.kind == NUMBER)
    return {
        "_class_name": THIRD.class_of("duration_embedder"),
        "output_dim": config.condition_dim,
        "fourier_dim": 2 * NUM_FREQUENCIES,
        "min_val": seconds["least"],
        "max_val": seconds["most"],
        "min_freq": LOWEST,
        "max_freq": HIGHEST,
    }


def _scheduler(config: ModelConfig) -> dict[str, Any]:
    is_distilled = config.objective == "rf_denoiser"
    own = {"shift_terminal": None, "stochastic_sampling": is_distilled}
    return {"_class_name": THIRD.class_of("scheduler"), **SCHEDULER, **own}


def _length_notes(made: ModalitySpec) -> Iterator[str]:
    """Yield what to pass to the pipeline so that it makes as much as the model does."""
    if made.window is not None:
        yield f"a clip is made with {made.window:g} s here, if it is shorter; {BY} has no such setting"
    if made.headroom:
        told = f"a clip is made with {made.headroom:g} s behind its end here"
        yield f"{told}; pass silence_padding_duration={made.headroom:g} to the pipeline"


def _sampling_notes(made: ModalitySpec, config: ModelConfig) -> Iterator[str]:
    """Yield what to pass to the pipeline so that it takes the model's steps, and what it cannot do."""
    if made.sampler is None:
        return
    name, given = made.sampler.class_path, made.sampler.init_args
    usual, num_steps = SAMPLERS[config.objective]
    schedule = given.get("schedule") or {}
    if name != usual or schedule.get("spacing") != SCHEDULE["spacing"] or given.get("eta"):
        yield f"the sampler is '{name}' here; {BY} takes the steps of {usual}, spaced by log-SNR"
    elif list(schedule["log_snr"]) != SCHEDULE["log_snr"]:
        first, last = schedule["log_snr"]
        told = f"the steps lie between the log-SNR {first:g} and {last:g} here"
        yield f"{told}; pass logsnr_min={first:g} and logsnr_max={last:g} to the pipeline"
    if (steps := given.get("num_steps", num_steps)) != num_steps:
        yield f"the sampler takes {steps} steps here; pass num_inference_steps={steps} to the pipeline"


def _guidance_notes(made: ModalitySpec) -> Iterator[str]:
    """Yield what to pass to the pipeline so that it guides, and how its guidance differs."""
    guidance, usual = made.guidance, GuidanceSpec()
    if guidance.scale == 1.0:
        return
    yield f"guidance.scale is {guidance.scale:g} here; pass guidance_scale={guidance.scale:g} to the pipeline"
    yield f"guidance is away from a clip without conditions here; {BY} guides away from one with an empty prompt"
    for name in (field.name for field in fields(usual) if field.name != "scale"):
        value = getattr(guidance, name)
        if value != getattr(usual, name):
            yield f"guidance.{name} is {value} here; {BY} has no such setting"
