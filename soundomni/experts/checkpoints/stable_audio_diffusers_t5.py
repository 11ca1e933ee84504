"""Copies a T5, without its decoder, as the text encoder and tokenizer of a diffusers pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.errors import SpecError, shown
from soundomni.core.files.paths import local_path, place
from soundomni.core.files.small_files import read_json
from soundomni.core.pretrained.foreign_weights import WeightFile, read_floating, read_weights
from soundomni.core.pretrained.weights import write_weights
from soundomni.experts.checkpoints.language_import import LazyState
from soundomni.experts.checkpoints.local_model import CONFIG, INDEX, NETWORK_FOLDER, TOKENIZER, TOKENIZER_FOLDER, WEIGHTS, LocalModel
from soundomni.experts.checkpoints.stable_audio_diffusers_config import TOKENIZER_FILE

ENCODER = ("shared.", "encoder.")
"""Prefixes of the names of an encoder's tensors."""
OTHERS = ("special_tokens_map.json", "added_tokens.json", "spiece.model")
"""Tokenizer files that are copied if they exist."""
MARKS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
USUAL = {"tokenizer_class": "T5TokenizerFast", **MARKS, "extra_ids": 0}
"""Tokenizer config to write if there is none."""
ALGORITHM = "Unigram"
"""The only algorithm that transformers' T5 tokenizer supports."""


def write_t5(model: LocalModel, folder: Path, *, max_length: int) -> None:
    """Write a T5 into the folders of a pipeline, in the precision of its own files.

    Args:
        model: the T5 and where its files are.
        folder: the pipeline.
        max_length: number of tokens of every text.

    Raises:
        SpecError: its tokenizer is not a T5 tokenizer.
        CheckpointError: its weights are damaged.
    """
    tokenizer, network = folder / TOKENIZER_FOLDER, folder / NETWORK_FOLDER
    kind = _tree(model.tokenizer_folder / TOKENIZER).get("model", {}).get("type")
    if kind != ALGORITHM:
        told = f"{place(model.tokenizer_folder / TOKENIZER)} is a tokenizer of type {shown(kind)}"
        raise SpecError(f"{told}; expected {ALGORITHM}, like every T5 tokenizer. diffusers cannot use this one")
    tokenizer.mkdir()
    network.mkdir()
    shutil.copyfile(model.tokenizer_folder / TOKENIZER, tokenizer / TOKENIZER)
    for name in OTHERS:
        if (model.tokenizer_folder / name).is_file():
            shutil.copyfile(model.tokenizer_folder / name, tokenizer / name)
    known = model.tokenizer_folder / TOKENIZER_FILE
    _write(tokenizer / TOKENIZER_FILE, {**(_tree(known) if known.is_file() else USUAL), "model_max_length": max_length})
    named = {} if local_path(model.name).is_dir() else {"_name_or_path": model.name}
    _write(network / CONFIG, {**model.read(), **named})
    weights = read_weights(model.folder / (WEIGHTS if (model.folder / WEIGHTS).is_file() else INDEX), safe=True)
    write_weights(_encoder(weights), network, dtype=None)


def _encoder(weights: WeightFile) -> Mapping[str, Tensor]:
    names = [name for name in weights if name.startswith(ENCODER)]
    return LazyState({name: lambda name=name: read_floating(weights, name) for name in names})  # type: ignore[misc]


def _tree(file: Path) -> dict[str, Any]:
    """Return a JSON object in a file. Raise SpecError if it is not one."""
    try:
        tree = read_json(file)
    except (OSError, ValueError) as error:
        raise SpecError(f"{place(file)} cannot be read as JSON: {error}") from error
    if not isinstance(tree, dict):
        raise SpecError(f"{place(file)} holds {shown(tree)}; expected a JSON object")
    return tree


def _write(file: Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
