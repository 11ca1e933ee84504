"""A model in the layout of the original SoundOmni research code: the inverse of `original_import`, bit for bit.

| name | what it is |
|---|---|
| model.safetensors | weights under their original names; the VAE is exported separately |
| config.json | sizes of the language model and the audio tower, as transformers states them for Qwen2-Audio |
| tokenizer.json | text tokens |

Anything that the original code cannot compute is refused, so that nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.files.names import CONFIG_FILE
from soundomni.core.pretrained.directory import trained_max_tokens
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.renamed_tensors import part_of
from soundomni.core.pretrained.weights import MAX_SHARD_BYTES, write_weights
from soundomni.core.spec.load import resolve
from soundomni.core.spec.provenance import lasting_name
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.shorthand import written_model
from soundomni.core.spec.slots import map_slots
from soundomni.experts.checkpoints.language_config import LanguageConfig
from soundomni.experts.checkpoints.language_import import GEN, UND, LazyState
from soundomni.experts.checkpoints.language_layout import Expert, Rows, named_rows
from soundomni.experts.checkpoints.moe_gen_layout import LANGUAGE, SUFFIX, Experts
from soundomni.experts.checkpoints.original_layout import CONNECTOR, HEARING, PLACES, READING, READING_KEY, places
from soundomni.experts.checkpoints.qwen2_audio_config import MODEL_TYPE
from soundomni.experts.mot import MoTBackbone
from soundomni.experts.mot_layer import MoTLayer
from soundomni.experts.swiglu import SwiGLU


def export_soundomni(model: SoundOmni, folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a model into an empty folder.

    Args:
        model: model with the backbone `mot`, the router `modality`, the connectors `linear` and no normalization of
            latents.
        folder: the folder.
        dtype: dtype in which weights are stored.
        max_shard_bytes: beyond this, weights are stored in several files with an index.

    Raises:
        SpecError: the original does not have such a part.
        CheckpointError: a weight is too large for `dtype`.
    """
    _check(model.spec)
    network = model.model
    backbone = cast(MoTBackbone, network.backbone)
    max_tokens = model.max_tokens if model.max_tokens is not None else trained_max_tokens(model.spec)
    experts = _experts(backbone, resolve(model.spec), max_tokens)
    state = network.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    sources = {**experts.rows(), **dict(named_rows(CONNECTOR | HEARING, shapes))}
    left = [name for name in state if name not in sources and part_of(name) not in ("latent.codec", "latent.normalizer")]
    if left:
        raise SpecError(f"the layout of the original SoundOmni has no place for '{left[0]}'")
    makers: dict[str, Callable[[], Tensor]] = {PLACES: partial(places, backbone.hidden_dim)}
    for ours, parts in sources.items():
        first = 0
        for part in parts:
            makers[part.name] = partial(_rows, state[ours], first, part)
            first += part.shape[0]
    write_weights(LazyState(makers), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
    config = json.dumps(_config(experts, model.spec), indent=2)
    (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
    model.tokenizer.save(folder)


def _rows(tensor: Tensor, first: int, part: Rows) -> Tensor:
    return tensor[first : first + part.shape[0]].clone()


def _check(spec: Spec) -> None:
    """Raise SpecError for a part that the original does not have."""
    lasting = map_slots(spec, lambda key, kind, slot: Slot(lasting_name(kind, slot.class_path), slot.init_args))
    model = written_model(lasting.of_model)
    features = model.connectors.features
    latent = model.connectors.latent
    given: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
        "model.backbone": (model.backbone.class_path, ("mot",)),
        "model.router": (model.router.class_path, ("modality",)),
        "model.connectors.latent": (latent.class_path, ("linear",)),
        "model.connectors.latent.time_scale": (latent.init_args.get("time_scale", 1.0), (1.0,)),
        "model.connectors.features": (None if features is None else features.class_path, ("linear", None)),
        "model.encoder": (None if model.encoder is None else model.encoder.class_path, ("qwen2-audio", None)),
        "model.objective": (model.objective.class_path, ("flow-matching",)),
        "model.latent_positions": (model.latent_positions, ("shared",)),
        "model.normalize": (model.normalize, ("none",)),
    }
    for key, (value, possible) in given.items():
        if value not in possible:
            raise SpecError(f"{key} is {value!r}, but the original SoundOmni only has {possible[0]!r}; this model cannot be written for it")


def _experts(backbone: MoTBackbone, spec: Spec, max_tokens: int | None) -> Experts:
    """Describe a backbone as if it came from a checkpoint."""
    first = cast(MoTLayer, backbone.blocks[0])
    networks = {name: first.expert(name) for name in (UND, GEN)}
    widths = {name: cast(SwiGLU, expert.mlp).down.in_features for name, expert in networks.items()}
    config = LanguageConfig(
        hidden_dim=backbone.hidden_dim,
        num_layers=len(backbone.blocks),
        num_heads=first.num_heads,
        num_kv_heads=first.num_kv_heads,
        head_dim=backbone.head_dim,
        intermediate_dim=widths[UND],
        vocab_size=backbone.embedding.num_embeddings,
        rope_theta=backbone.rope_theta,
        norm_eps=spec.of_model.backbone.init_args["norm_eps"],
        tied=backbone.lm_head is None,
        max_tokens=max_tokens or 32768,
    )
    und, gen = (
        Expert(stream=name, prefix=LANGUAGE, suffix=suffix, intermediate_dim=widths[name], qk_norm=networks[name].q_norm is not None)
        for name, suffix in ((UND, ""), (GEN, SUFFIX))
    )
    return Experts(config, und, gen, tied=config.tied)


def _config(experts: Experts, spec: Spec) -> dict[str, Any]:
    """Return config.json, as plain data."""
    config = experts.config
    text = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.intermediate_dim,
        "gen_intermediate_size": experts.gen.intermediate_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_tokens,
    }
    written = written_model(resolve(spec).of_model)
    reading = {key: getattr(written, key) for key in READING}
    if written.encoder is None:
        return text | {READING_KEY: reading}
    tower = written.encoder
    sizes = {} if tower is None else tower.init_args
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": sizes["num_mel_bins"],
        "d_model": sizes["d_model"],
        "encoder_layers": sizes["num_layers"],
        "encoder_attention_heads": sizes["num_heads"],
        "encoder_ffn_dim": sizes["ffn_dim"],
        "max_source_positions": sizes["max_source_positions"],
    }
    return {"model_type": MODEL_TYPE, "text_config": text, "audio_config": audio, READING_KEY: reading}
