"""A model with the backbone `dit` in the layout of stable-audio-tools: the inverse of `stable_audio_import`, bit for bit.

| name | what it is |
|---|---|
| model.safetensors | all weights under stable-audio-tools' names, the codec's too |
| model_config.json | their config of the model |

Anything that stable-audio-tools cannot compute is refused, so that nothing is lost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.weights import write_tensors
from soundomni.core.spec.load import resolve
from soundomni.core.spec.provenance import lasting_name
from soundomni.core.spec.schema import ModalitySpec, Slot, Spec
from soundomni.core.spec.slots import map_slots
from soundomni.experts.checkpoints.stable_audio_import import facts_of
from soundomni.experts.checkpoints.stable_audio_layout import CODEC, LATENT, buffers_of, parts_of
from soundomni.experts.checkpoints.stable_audio_model_config import HINTS, KINDS, NUMBER, T5, Condition, ModelConfig, Objective

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "model_config.json"
FLOW: Objective = "rectified_flow"
OBJECTIVES: Mapping[str, Objective] = {"v-prediction": "v", "flow-matching": FLOW}
DENOISER: Objective = "rf_denoiser"
"""What stable-audio-tools calls a rectified flow that was distilled, which is sampled by `pingpong`."""
NUM_FREQUENCIES = 128
"""Frequencies with which stable-audio-tools encodes a number."""
SECONDS = 47.5
"""Length of the clips that a config states for training a model without a window, which the weights do not depend on."""


def export_stable_audio(
    model: SoundOmni, folder: Path, *, codec: Mapping[str, Tensor], codec_config: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write a model into an empty folder.

    Args:
        model: a model with the backbone `dit`, as `soundomni import stable-audio` writes it.
        folder: the folder.
        codec: the codec's tensors under stable-audio-tools' names.
        codec_config: the codec's config, as stable-audio-tools has it.
        dtype: dtype in which weights are stored.

    Raises:
        SpecError: stable-audio-tools does not have such a part.
    """
    config = _config(model.spec)
    facts = facts_of(config)
    state = model.model.state_dict()
    parts = parts_of(facts)
    taken = {name for part in parts for name in part.ours}
    others = tuple(f"modalities.{LATENT}.{part}." for part in ("codec", "normalizer"))
    left = [name for name in state if name not in taken and not name.startswith(others)]
    if left:
        raise SpecError(f"the layout of stable-audio-tools has no place for '{left[0]}'")
    tensors = {part.source: part.write(state) for part in parts} | dict(buffers_of(facts))
    tensors |= {f"{CODEC}{name}": tensor for name, tensor in codec.items()}
    write_tensors({name: tensor.detach().cpu().to(dtype).contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    written = json.dumps(_written(config, codec_config), indent=2)
    (folder / CONFIG_FILE).write_text(written + "\n", encoding="utf-8")


def _config(spec: Spec) -> ModelConfig:
    """Return the config that a spec stands for. Raise SpecError for a part that stable-audio-tools does not have."""
    lasting = map_slots(resolve(spec), lambda key, kind, slot: Slot(lasting_name(kind, slot.class_path), slot.init_args))
    model = lasting.of_model
    made = model.used.get(LATENT)
    given: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
        "model.backbone": (model.backbone.class_path, ("dit",)),
        f"model.modalities.{LATENT}": (None if made is None or made.codec is None else made.codec.class_path, ("oobleck",)),
        f"model.modalities.{LATENT}.connector": (made and made.connector.class_path, ("residual-linear",)),
        f"model.modalities.{LATENT}.objective": (made and made.objective and made.objective.class_path, tuple(OBJECTIVES)),
        f"model.modalities.{LATENT}.normalize": (made and made.normalize, ("none",)),
    }
    for key, (value, possible) in given.items():
        if value not in possible:
            raise SpecError(f"{key} is {value!r}, but stable-audio-tools only has {possible[0]!r}, so this model cannot be exported to it")
    assert made is not None and made.objective is not None and made.codec is not None, "checked above"
    conditions = tuple(_condition(name, one) for name, one in model.used.items() if name != LATENT)
    codec, backbone = made.codec.init_args, dict(model.backbone.init_args)
    backbone["condition_dim"] = backbone["condition_dim"] or backbone["hidden_dim"]
    return ModelConfig(
        sample_rate=codec["sample_rate"],
        channels=codec["channels"],
        sample_size=_sample_size(codec, made.window),
        latent_dim=codec["latent_dim"],
        objective=_objective(made),
        backbone=backbone,
        condition_dim=backbone["condition_dim"],
        conditions=conditions,
        global_ids=tuple(one.id for one in conditions if one.is_global),
        inpaints=made.objective.init_args["shows_known"],
        unused=(),
    )


def _objective(made: ModalitySpec) -> Objective:
    """Return what stable-audio-tools calls an objective with its sampler."""
    assert made.objective is not None, "what is made has an objective"
    objective = OBJECTIVES[made.objective.class_path]
    return DENOISER if objective == FLOW and made.sampler is not None and made.sampler.class_path == "pingpong" else objective


def _sample_size(codec: Mapping[str, Any], window: float | None) -> int:
    """Return the samples of the clips that a model makes: those of its window, or of SECONDS, rounded to whole frames."""
    rate, ratio = float(codec["sample_rate"]), int(math.prod(codec["strides"]))
    return round(window * rate) if window is not None else ratio * round(SECONDS * rate / ratio)


def _condition(name: str, spec: ModalitySpec) -> Condition:
    """Return the conditioner of a modality. Raise SpecError if stable-audio-tools has no such conditioner."""
    key, encoder = f"model.modalities.{name}", spec.encoder
    kind = None if encoder is None else encoder.class_path
    connectors = {T5: "identity", NUMBER: "linear"}
    if encoder is None or kind not in connectors or spec.connector.class_path != connectors[kind]:
        raise SpecError(
            f"{key} has the encoder {kind!r} and the connector '{spec.connector.class_path}', but stable-audio-tools only has t5 with "
            "identity, and number with linear, so this model cannot be exported to it"
        )
    arguments = encoder.init_args
    needed = {"features": "learned", "num_frequencies": NUM_FREQUENCIES} if kind == NUMBER else {}
    for argument, value in needed.items():
        if arguments[argument] != value:
            given = f"{key}.encoder.{argument} is {arguments[argument]!r}"
            raise SpecError(f"{given}, but stable-audio-tools only has {value!r}, so this model cannot be exported to it")
    if kind == T5 and arguments["pad_to"] is None:
        raise SpecError(f"{key}.encoder.pad_to is null, but stable-audio-tools pads all texts, so this model cannot be exported to it")
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
    return {"id": condition.id, "type": T5, "config": {"t5_model_name": settings["name"], "max_length": settings["max_length"]}}
