"""A checkpoint of the original SoundOmni research code as a model directory that computes the same.

Such a checkpoint does not contain the VAE: a spec layer names it, for example one written by `soundomni import
stable-audio-vae`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.directory import portable
from soundomni.core.pretrained.foreign_weights import WeightFile, read_floating, read_weights
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.provenance import lasting_name, own_names
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Spec
from soundomni.experts.checkpoints.language_config import LanguageConfig, Node
from soundomni.experts.checkpoints.language_import import UND, Checkpoint, ImportedModel, Sources, assemble, read_tokenizer
from soundomni.experts.checkpoints.language_layout import Shape, count_layers, named_rows, shape_of
from soundomni.experts.checkpoints.moe_gen_layout import LANGUAGE, MODULE, Experts, beside, check_layout, find_language_config, read_experts
from soundomni.experts.checkpoints.original_layout import CONNECTOR, HEARING, PLACES, READING, READING_KEY, TOWER, check_places
from soundomni.experts.checkpoints.qwen2_audio_config import check_mel, read_tower

KIND = "soundomni"
FREE = tuple(f"model.{name}" for name in ("codec", "freeze", "tokenizer", "feature_positions", "feature_attend", "chat"))
"""Keys that layers of a spec may change, in addition to data and run; the rest follows from the checkpoint."""

QWEN2_AUDIO_7B = LanguageConfig(
    hidden_dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_dim=11008,
    vocab_size=156032,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=False,
    max_tokens=8192,
)
"""The language model of the original run (Chu et al. 2024)."""


def import_soundomni(
    source: str | Path,
    *,
    llm: str | Path | None = None,
    layers: Sequence[Path | str] = (),
    overrides: Sequence[tuple[str, str]] = (),
) -> ImportedModel:
    """Determine where every tensor of a checkpoint goes.

    Args:
        source: a weight file, or a directory with one.
        llm: directory with config.json (or llm_config.json) and tokenizer.json, such as that of Qwen2-Audio; None means
            that of the weights. Without a config, a checkpoint with the sizes of Qwen2-Audio-7B is taken to be built on
            it.
        layers, overrides: of a spec; they name the codec that made the latents.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
        SpecError: a layer is wrong, or contradicts the checkpoint.
    """
    weights = read_weights(source).without(MODULE)
    check_layout(weights, "model of the original SoundOmni")
    directory = beside(source, llm)
    found = find_language_config(directory)
    config, tree = found if found is not None else (_known(weights, directory), Node({}, ""))
    experts = read_experts(weights, config)
    tokenizer = read_tokenizer(directory, rows=experts.config.vocab_size)
    encoder = _encoder(weights, tree, directory)
    latent_dim = _latent_dim(weights)
    if PLACES in weights:
        check_places(read_floating(weights, PLACES), weights.path)
    said = tree.node(READING_KEY).values
    reading = {key: said[key] for key in READING if key in said}
    base = _base_layer(experts.backbone(tokenizer), encoder, reading)
    _check_codec(load_spec([base, *layers], overrides, base={}), latent_dim)
    notes = [] if found is not None else ["there is no config; heads and norms are those of Qwen2-Audio-7B, which has these sizes"]
    checkpoint = Checkpoint(
        kind=KIND,
        title="model of the original SoundOmni",
        layout="the original SoundOmni",
        weights=weights,
        config=experts.config,
        tokenizer=tokenizer,
        base=base,
        free=FREE,
        sources=partial(_sources, experts),
        known={PLACES: "sines and cosines of places, which are computed"},
        notes=notes,
    )
    return assemble(checkpoint, layers=layers, overrides=overrides)


def _sources(experts: Experts, shapes: Mapping[str, Shape]) -> Sources:
    return {**experts.rows(), **dict(named_rows(CONNECTOR | HEARING, shapes))}


def _known(weights: WeightFile, directory: Path) -> LanguageConfig:
    """Return the config of Qwen2-Audio-7B if the tensors have its sizes; they do not determine the number of heads."""
    known, layer = QWEN2_AUDIO_7B, f"{LANGUAGE}layers.0."
    expected = {
        f"{layer}self_attn.q_proj.weight": (known.hidden_dim, known.hidden_dim),
        f"{layer}self_attn.k_proj.weight": (known.hidden_dim, known.hidden_dim),
        f"{layer}mlp.gate_proj.weight": (known.intermediate_dim, known.hidden_dim),
    }
    same = all(name in weights and weights.shape(name) == shape for name, shape in expected.items())
    if not same or count_layers(weights, LANGUAGE) != known.num_layers:
        raise CheckpointError(
            f"no config.json in '{directory}', and '{weights.path}' does not have the sizes of Qwen2-Audio-7B; "
            "name the directory of its language model with --llm"
        )
    return known


def _latent_dim(weights: WeightFile) -> int:
    name = "audiovae2llm.weight"
    if name not in weights:
        raise CheckpointError(f"'{weights.path}' lacks {name}: it cannot generate audio, so it does not belong to the original SoundOmni")
    return shape_of(weights, name, 2)[1]


def _check_codec(spec: Spec, latent_dim: int) -> None:
    """Raise CheckpointError unless a spec's codec can be the checkpoint's: it has as many dimensions, and is
    trained."""
    codec = spec.of_model.codec
    with without_memory():
        given = build("codec", portable(spec).of_model.codec).spec.token_dim
    advice = "name the codec that made its latents with --config codec.yaml, as written by `soundomni import stable-audio-vae`"
    if given != latent_dim:
        raise CheckpointError(
            f"the checkpoint makes latents of {latent_dim} dimensions, but the codec {codec.class_path} has {given}; {advice}"
        )
    if lasting_name("codec", codec.class_path) == "oobleck" and codec.init_args.get("weights") is None:
        raise CheckpointError(f"the checkpoint has no VAE, and the codec {codec.class_path} has no weights; {advice}")


def _encoder(weights: WeightFile, tree: Node, directory: Path) -> dict[str, int] | None:
    """Return the arguments of the audio tower from its tensors, and its heads from the config; None if there is no
    tower."""
    if f"{TOWER}conv1.weight" not in weights:
        return None
    width, mel, _ = shape_of(weights, f"{TOWER}conv1.weight", 3)
    positions, inner = (shape_of(weights, f"{TOWER}{name}.weight", 2)[0] for name in ("embed_positions", "layers.0.fc1"))
    said = read_tower(tree.node("audio_config"))
    heads = said["num_heads"]
    if said["d_model"] != width:
        raise CheckpointError(
            f"'{weights.path}' has an audio tower of width {width}; the config in '{directory}' says {said['d_model']}; "
            "name the directory of its Qwen2-Audio with --llm"
        )
    check_mel(directory, mel)
    sizes = {"num_mel_bins": mel, "d_model": width, "num_layers": count_layers(weights, TOWER), "num_heads": heads}
    return sizes | {"ffn_dim": inner, "max_source_positions": positions}


def _base_layer(backbone: Mapping[str, Any], encoder: Mapping[str, int] | None, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec layer that a checkpoint stands for; `reading` says how audio is heard, if an export has stated
    it."""
    model = {
        "backbone": dict(backbone),
        "router": "modality",
        "codec": "oobleck",
        "encoder": None if encoder is None else {"class_path": "qwen2-audio", "init_args": dict(encoder)},
        "connectors": {"latent": "linear", "features": None if encoder is None else "linear"},
        "objective": "flow-matching",
        "freeze": [UND, "embedding", *(["encoder"] if encoder is not None else [])],
        "latent_positions": "shared",
        "normalize": "none",
        **reading,
    }
    return own_names({"model": model, "sampler": "euler"})
