"""Imports a diffusers pipeline of Stable Audio Open or Stable Audio 3, with the same result as importing its
checkpoint.

| folder | what is read |
|---|---|
| transformer, projection_model or duration_embedder | config.json, and diffusion_pytorch_model as safetensors or bin, or shards |
| vae | the same, see soundomni/vae/checkpoints |
| scheduler | scheduler_config.json |
| text_encoder, tokenizer | the name of the T5 or T5Gemma and the number of tokens; its encoder reads the rest |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError, some
from soundomni.core.pretrained.foreign_weights import PICKLE_SUFFIXES, SAFE_SUFFIX, WeightFile, join_weights, read_floating, read_weights
from soundomni.experts.checkpoints.stable_audio_3_diffusers_layout import third_places
from soundomni.experts.checkpoints.stable_audio_diffusers_config import Pipeline
from soundomni.experts.checkpoints.stable_audio_diffusers_files import INDEX_FILE
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import VAE, Piece, Places, places_of
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
        CheckpointError: a tensor is missing, has another shape or is unexplained, or one that follows from the sizes
            has other values.
        SpecError: the text encoder cannot be found.
    """
    places = third_places(pipeline.config) if pipeline.config.plugin == "dit-3" else places_of(pipeline.config)
    parts = {prefix: read_part(folder / prefix.rstrip(".")) for prefix in places.parts}
    weights = join_weights(folder, parts)
    _check(weights, places, by=f"the backbone {pipeline.config.plugin}")
    found: dict[str, tuple[Shape, Callable[[], Tensor]]] = {
        piece.source: (piece.joined_shape, partial(_join, weights, piece)) for piece in places.pieces
    }
    for name, tensor in buffers_of(facts_of(pipeline.config)):
        found[name] = tuple(tensor.shape), partial(_same, tensor)
    prefixed = replace(codec, used={f"{VAE}{name}": ours for name, ours in codec.used.items()})
    imported = import_stable_audio(
        weights.made_of(found), pipeline.config, prefixed, text_encoder=pipeline.text_encoder, sampler=pipeline.sampler
    )
    names = {piece.source: piece.theirs for piece in places.pieces}
    used = {theirs: ours for source, ours in imported.used.items() for theirs in names.get(source, (source,))}
    return replace(
        imported,
        weights=join_weights(folder, parts | {VAE: codec_weights}),
        layout=LAYOUT,
        used=used,
        unused=dict.fromkeys(places.constants, places.why) | dict.fromkeys(weights.others, "not a tensor"),
        notes=(*imported.notes, *pipeline.notes),
    )


def _check(weights: WeightFile, places: Places, *, by: str) -> None:
    """Raise CheckpointError unless a pipeline has exactly these tensors, and its constants have their values; `by` is
    the backbone."""
    wanted: dict[str, Shape] = {name: piece.shape for piece in places.pieces for name in piece.theirs}
    wanted |= {name: tuple(tensor.shape) for name, tensor in places.constants.items()}
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
    for name, expected in places.constants.items():
        stored = read_floating(weights, name)
        if torch.allclose(stored.float(), expected.to(stored.dtype).float(), rtol=1e-3, atol=0):
            continue
        if expected.any():
            raise CheckpointError(f"'{weights.path}': {name} has other values than its sizes give; {by} only has these")
        expected_zero = f"expected zero, because {by} does not have this bias"
        raise CheckpointError(f"'{weights.path}': {name} is not zero; {expected_zero}")


def _join(weights: WeightFile, piece: Piece) -> Tensor:
    """Read a tensor as stable-audio-tools has it, in the precision of the source."""
    return piece.join([read_floating(weights, name) for name in piece.theirs])


def _same(tensor: Tensor) -> Tensor:
    return tensor
