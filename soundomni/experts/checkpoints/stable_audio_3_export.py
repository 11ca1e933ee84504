"""Writes a model with the backbone `dit-3` in stable-audio-3's layout: the inverse of importing it, bit for bit.

| name | what it is |
|---|---|
| model.safetensors | all weights under stable-audio-3's names, including the codec's |
| model_config.json | the model's config for stable-audio-3 |

Anything that stable-audio-3 cannot compute is refused, so that nothing is lost. What it does otherwise around the network is returned as
notes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.weights import write_tensors
from soundomni.core.spec.schema import ModalitySpec, ModelSpec
from soundomni.experts.checkpoints.stable_audio_3_config import HEADROOM, KIND, T5GEMMA, T5GEMMA_MODEL
from soundomni.experts.checkpoints.stable_audio_export import (
    CONFIG_FILE,
    OBJECTIVES,
    WEIGHTS_FILE,
    check_has,
    crossing,
    objective_of,
    resolved,
    tensors_of,
)
from soundomni.experts.checkpoints.stable_audio_export_notes import notes_of
from soundomni.experts.checkpoints.stable_audio_import import facts_of
from soundomni.experts.checkpoints.stable_audio_layout import CODEC, LATENT, buffers_of
from soundomni.experts.checkpoints.stable_audio_model_config import HINTS, NUM_FREQUENCIES, NUMBER, Condition, ModelConfig

BY = "stable-audio-3"
SECONDS = 120.0
"""Clip length to state in the config; the weights do not depend on it."""


def export_third(
    model: SoundOmni, folder: Path, *, codec: Mapping[str, Tensor], codec_config: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[str, ...]:
    """Write a model into an empty folder, and return what stable-audio-3 does otherwise, one sentence each.

    Args:
        model: a model with the backbone `dit-3`, as `soundomni import stable-audio` writes it.
        folder: the folder.
        codec: the codec's tensors under stable-audio-3's names.
        codec_config: the codec's config, as stable-audio-3 has it.
        dtype: dtype in which weights are stored.
    """
    spec = resolved(model.spec)
    config = third_config_of(spec, by=BY)
    written = json.dumps(_written(config, codec_config), indent=2)
    tensors = tensors_of(model, config, by=BY) | dict(buffers_of(facts_of(config)))
    tensors |= {f"{CODEC}{name}": tensor for name, tensor in codec.items()}
    write_tensors({name: tensor.detach().cpu().to(dtype).contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(written + "\n", encoding="utf-8")
    made = spec.used[LATENT]
    notes = notes_of(spec, by=BY)
    if made.headroom != HEADROOM or made.window is not None:
        length = f"{made.headroom:g} s behind its end" + ("" if made.window is None else f", or {made.window:g} s if that is longer")
        notes += (f"a clip is made with {length} here; {BY} makes {HEADROOM:g} s behind its end",)
    return notes


def third_config_of(model: ModelSpec, *, by: str) -> ModelConfig:
    """Return the config for a resolved spec. Raise SpecError for a part that `by`, the other project, does not have."""
    made, key = model.used.get(LATENT), f"model.modalities.{LATENT}"
    given: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
        "model.backbone": (model.backbone.class_path, ("dit-3",)),
        key: (None if made is None or made.codec is None else made.codec.class_path, ("same",)),
        f"{key}.connector": (made and made.connector.class_path, ("residual-linear",)),
        f"{key}.objective": (made and made.objective and made.objective.class_path, tuple(OBJECTIVES)),
        f"{key}.objective.shows_known": (made and made.objective and made.objective.init_args.get("shows_known"), (True,)),
        f"{key}.normalize": (made and made.normalize, ("none",)),
    }
    check_has(by, given)
    assert made is not None and made.codec is not None, "checked above"
    names = [name for name in model.used if name != LATENT]
    conditions = {name: _condition(name, model.used[name], by=by) for name in names}
    codec, backbone = made.codec.init_args, dict(model.backbone.init_args)
    backbone["condition_dim"] = backbone["condition_dim"] or backbone["hidden_dim"]
    return ModelConfig(
        sample_rate=codec["sample_rate"],
        channels=codec["channels"],
        sample_size=round(SECONDS * codec["sample_rate"]),
        latent_dim=codec["latent_dim"],
        objective=objective_of(made),
        plugin="dit-3",
        backbone=backbone,
        condition_dim=backbone["condition_dim"],
        conditions=tuple(conditions[name] for name in crossing(model, names, by=by)),
        global_ids=tuple(name for name, one in conditions.items() if one.is_global),
        inpaints=True,
        unused=(),
    )


def _condition(name: str, spec: ModalitySpec, *, by: str) -> Condition:
    """Return the conditioner of a modality. Raise SpecError if `by`, the other project, has no such conditioner."""
    key, encoder = f"model.modalities.{name}", spec.encoder
    kind = None if encoder is None else encoder.class_path
    connectors = {T5GEMMA: "identity", NUMBER: "linear"}
    if encoder is None or kind not in connectors or spec.connector.class_path != connectors[kind]:
        raise SpecError(
            f"{key} has the encoder {kind!r} and the connector '{spec.connector.class_path}', but {by} only has t5gemma with identity, and "
            "number with linear, so this model cannot be exported to it"
        )
    arguments, ways = encoder.init_args, spec.enters.split("+")
    if kind == NUMBER:
        check_has(by, {f"{key}.encoder.num_frequencies": (arguments["num_frequencies"], (NUM_FREQUENCIES,))})
        settings = {argument: arguments[argument] for argument in ("least", "most", "features")}
    else:
        if arguments["pad_to"] is None:
            raise SpecError(f"{key}.encoder.pad_to is null, but {by} pads all texts, so this model cannot be exported to it")
        settings = {"name": arguments["name"], "max_length": arguments["pad_to"]}
    return Condition(id=name, kind=kind, settings=settings, crosses="cross" in ways, is_global="global" in ways)


def _written(config: ModelConfig, codec_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return model_config.json, as plain data."""
    backbone = config.backbone
    crosses = [one.id for one in config.conditions if one.crosses]
    transformer = {
        "io_channels": config.latent_dim,
        "embed_dim": backbone["hidden_dim"],
        "depth": backbone["num_layers"],
        "num_heads": backbone["num_heads"],
        "cond_token_dim": config.condition_dim if crosses else 0,
        "global_cond_dim": config.condition_dim * len(config.global_ids),
        "local_add_cond_dim": config.latent_dim + 1,
        "project_cond_tokens": backbone["project_conditions"],
        "project_global_cond": True,
        "transformer_type": "continuous_transformer",
        "global_cond_type": "adaLN",
        "timestep_features_type": "expo",
        "timestep_features_logsnr": backbone["log_snr_times"],
        "num_memory_tokens": backbone["num_memory"],
        "norm_type": "rms_norm",
        "norm_kwargs": {"force_fp32": True},
        "attn_kwargs": {"qk_norm": "rms", "differential": backbone["differential"]},
        "ff_kwargs": {"mult": 4.0},
    }
    return {
        "model_type": KIND,
        "sample_size": config.sample_size,
        "sample_rate": config.sample_rate,
        "audio_channels": config.channels,
        "model": {
            "pretransform": {"type": "autoencoder", "iterate_batch": True, "config": dict(codec_config)},
            "conditioning": {"configs": [_conditioner(one) for one in config.conditions], "cond_dim": config.condition_dim},
            "diffusion": {
                "cross_attention_cond_ids": crosses,
                "global_cond_ids": list(config.global_ids),
                "local_add_cond_ids": HINTS,
                "diffusion_objective": config.objective,
                "mask_padding_attention": True,
                "use_effective_length_for_schedule": True,
                "type": "dit",
                "config": transformer,
            },
            "io_channels": config.latent_dim,
        },
    }


def _conditioner(condition: Condition) -> dict[str, Any]:
    settings = condition.settings
    if condition.kind == NUMBER:
        kind = "expo" if settings["features"] == "fixed" else "learned"
        given = {"min_val": settings["least"], "max_val": settings["most"], "fourier_features_type": kind}
    else:
        check_has(BY, {f"model.modalities.{condition.id}.encoder.name": (settings["name"], (T5GEMMA_MODEL,))})
        given = {"model_name": settings["name"], "max_length": settings["max_length"], "padding_mode": "learned"}
    return {"id": condition.id, "type": condition.kind, "config": given}
