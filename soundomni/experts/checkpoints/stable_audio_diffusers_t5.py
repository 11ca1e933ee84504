"""Copies a T5 or T5Gemma, without its decoder, as the text encoder and tokenizer of a diffusers pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
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
from soundomni.experts.checkpoints.stable_audio_diffusers_files import TOKENIZER_FILE

OTHERS = ("special_tokens_map.json", "added_tokens.json", "spiece.model", "tokenizer.model")
"""Tokenizer files that are copied if they exist."""


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """What transformers expects in the files of a text encoder.

    Args:
        what: the kind of model in words.
        algorithm: the only algorithm that its tokenizer supports.
        tokenizer: tokenizer config to write if there is none.
        tensors: prefixes of an encoder's tensors.
        container: prefix of all tensors in a file that also has a decoder.
        config: keys that are changed in the config.
    """

    what: str
    algorithm: str
    tokenizer: Mapping[str, Any]
    tensors: tuple[str, ...]
    container: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


T5_FILES = TextFiles(
    what="T5",
    algorithm="Unigram",
    tokenizer={
        "tokenizer_class": "T5TokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    },
    tensors=("shared.", "encoder."),
)
T5GEMMA_FILES = TextFiles(
    what="T5Gemma",
    algorithm="BPE",
    tokenizer={
        "tokenizer_class": "GemmaTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
    tensors=("encoder.",),
    container="model.",
    config={"architectures": ["T5GemmaEncoderModel"], "is_encoder_decoder": False},
)


def write_text_encoder(model: LocalModel, folder: Path, files: TextFiles, *, max_length: int) -> None:
    """Write a text encoder into the folders of a pipeline, in the precision of its own files.

    Args:
        model: the text encoder and where its files are.
        folder: the pipeline.
        files: what transformers expects in them.
        max_length: number of tokens of every text.

    Raises:
        SpecError: its tokenizer is of another kind.
        CheckpointError: its weights are damaged.
    """
    tokenizer, network = folder / TOKENIZER_FOLDER, folder / NETWORK_FOLDER
    kind = _tree(model.tokenizer_folder / TOKENIZER).get("model", {}).get("type")
    if kind != files.algorithm:
        told = f"{place(model.tokenizer_folder / TOKENIZER)} is a tokenizer of type {shown(kind)}"
        expected = f"{files.algorithm}, like every {files.what} tokenizer"
        raise SpecError(f"{told}; expected {expected}. diffusers cannot use this one")
    tokenizer.mkdir()
    network.mkdir()
    shutil.copyfile(model.tokenizer_folder / TOKENIZER, tokenizer / TOKENIZER)
    for name in OTHERS:
        if (model.tokenizer_folder / name).is_file():
            shutil.copyfile(model.tokenizer_folder / name, tokenizer / name)
    known = model.tokenizer_folder / TOKENIZER_FILE
    settings = _tree(known) if known.is_file() else files.tokenizer
    _write(tokenizer / TOKENIZER_FILE, {**settings, "model_max_length": max_length})
    named = {} if local_path(model.name).is_dir() else {"_name_or_path": model.name}
    _write(network / CONFIG, {**model.read(), **files.config, **named})
    weights = read_weights(model.folder / (WEIGHTS if (model.folder / WEIGHTS).is_file() else INDEX), safe=True)
    write_weights(_encoder(weights, files), network, dtype=None)


def _encoder(weights: WeightFile, files: TextFiles) -> Mapping[str, Tensor]:
    names = {name.removeprefix(files.container): name for name in weights}
    own = {name: theirs for name, theirs in names.items() if name.startswith(files.tensors)}
    return LazyState({name: partial(read_floating, weights, theirs) for name, theirs in own.items()})


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
