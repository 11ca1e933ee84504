"""Imports a diffusers pipeline of Stable Audio Open, with the same result as importing its stable-audio-tools
checkpoint.

| folder | what is read |
|---|---|
| transformer, projection_model | config.json and diffusion_pytorch_model.safetensors, or .bin, or shards with an index |
| vae | the same, see soundomni/vae/checkpoints |
| scheduler | scheduler_config.json |
| text_encoder, tokenizer | the name of the T5 and the number of tokens; the encoder `t5` reads the rest from there |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from soundomni.core.errors import CheckpointError, some
from soundomni.core.pretrained.foreign_weights import PICKLE_SUFFIXES, SAFE_SUFFIX, WeightFile, join_weights, read_floating, read_weights
from soundomni.experts.checkpoints.stable_audio_diffusers_config import INDEX_FILE, Pipeline
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import PROJECTION, TRANSFORMER, VAE, Piece, norm_biases, pieces_of
from soundomni.experts.checkpoints.stable_audio_import import CodecPart, ImportedModel, facts_of, import_stable_audio
from soundomni.experts.checkpoints.stable_audio_layout import Shape, buffers_of

LAYOUT = "diffusers"
WEIGHTS = "diffusion_pytorch_model"
WEIGHTS_FILES = (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json", f"{WEIGHTS}.bin")


def is_pipeline(source: Path) -> bool:
    """Return whether a source is a diffusers pipeline: a model_index.json, or a folder with one and without weights.

    The Hub repository of Stable Audio Open has both a checkpoint and a pipeline; then the checkpoint is the source.
    """
    if source.name == INDEX_FILE:
        return True
    suffixes = (SAFE_SUFFIX, *PICKLE_SUFFIXES)
    return (source / INDEX_FILE).is_file() and not any(file.suffix in suffixes for file in source.iterdir())


def read_part(folder: Path) -> WeightFile:
    """Open the weights in one folder of a pipeline; if there are variants such as fp16, take the plain weights."""
    return read_weights(next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), folder))


def import_pipeline(folder: Path, pipeline: Pipeline, codec: CodecPart, codec_weights: WeightFile) -> ImportedModel:
    """Determine where every tensor of the model comes from.

    Args:
        folder: the pipeline.
        pipeline: the contents of its configs.
        codec: its codec.
        codec_weights: the file with the codec's weights.

    Raises:
        CheckpointError: a tensor is missing, has another shape or is unexplained, or the bias of a norm is not zero.
        SpecError: the text encoder cannot be found.
    """
    parts = {prefix: read_part(folder / prefix.rstrip(".")) for prefix in (TRANSFORMER, PROJECTION)}
    weights = join_weights(folder, parts)
    pieces, biases = pieces_of(pipeline.config), norm_biases(pipeline.config.backbone["num_layers"])
    _check(weights, pieces, biases, pipeline.config.backbone["hidden_dim"])
    found: dict[str, tuple[Shape, Callable[[], Tensor]]] = {
        piece.source: (piece.joined_shape, partial(_join, weights, piece)) for piece in pieces
    }
    for name, tensor in buffers_of(facts_of(pipeline.config)):
        found[name] = tuple(tensor.shape), partial(_same, tensor)
    prefixed = replace(codec, used={f"{VAE}{name}": ours for name, ours in codec.used.items()})
    imported = import_stable_audio(
        weights.made_of(found), pipeline.config, prefixed, text_encoder=pipeline.text_encoder, sampler=pipeline.sampler
    )
    names = {piece.source: piece.theirs for piece in pieces}
    used = {theirs: ours for source, ours in imported.used.items() for theirs in names.get(source, (source,))}
    return replace(
        imported,
        weights=join_weights(folder, parts | {VAE: codec_weights}),
        layout=LAYOUT,
        used=used,
        unused=dict.fromkeys(biases, "zero, like that of every norm") | dict.fromkeys(weights.others, "not a tensor"),
        notes=(*imported.notes, *pipeline.notes),
    )


def _check(weights: WeightFile, pieces: Iterable[Piece], biases: Mapping[str, str], hidden_dim: int) -> None:
    """Raise CheckpointError unless a pipeline has exactly these tensors, and the biases of its norms are zero."""
    wanted: dict[str, Shape] = {name: piece.shape for piece in pieces for name in piece.theirs}
    wanted |= dict.fromkeys(biases, (hidden_dim,))
    problems = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(weights.shape(name))} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in weights and weights.shape(name) != shape
        ],
    }
    told = [f"{len(found)} {what} ({some(found)})" for what, found in problems.items() if found]
    if told:
        start = f"'{weights.path}' does not fit its configs: of the {len(wanted)} tensors"
        raise CheckpointError(f"{start} of the model, {'; '.join(told)}")
    for name in biases:
        if read_floating(weights, name).any():
            raise CheckpointError(f"'{weights.path}': {name} is not zero; expected zero, because the backbone dit does not have this bias")


def _join(weights: WeightFile, piece: Piece) -> Tensor:
    """Read a tensor as stable-audio-tools has it, in the precision of the source."""
    return piece.join([read_floating(weights, name) for name in piece.theirs])


def _same(tensor: Tensor) -> Tensor:
    return tensor
