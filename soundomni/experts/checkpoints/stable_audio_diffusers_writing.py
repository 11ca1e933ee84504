"""Writes the files of a diffusers pipeline.

| name | what it is |
|---|---|
| model_index.json | the parts of the pipeline |
| transformer, vae and others | weights and config of each |
| scheduler | its config |
| text_encoder, tokenizer | a copy of the text encoder, see stable_audio_diffusers_t5.py |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.assembly.modality import EncoderModality
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.weights import write_tensors
from soundomni.experts.checkpoints.local_model import CONFIG
from soundomni.experts.checkpoints.stable_audio_diffusers_files import INDEX_FILE, SCHEDULER_FILE, Family
from soundomni.experts.checkpoints.stable_audio_diffusers_import import WEIGHTS_FILES
from soundomni.experts.checkpoints.stable_audio_diffusers_t5 import TextFiles, write_text_encoder
from soundomni.experts.checkpoints.stable_audio_model_config import Condition


def write_pipeline(
    model: SoundOmni,
    folder: Path,
    *,
    family: Family,
    version: str,
    text_files: TextFiles,
    prompt: Condition,
    scheduler: Mapping[str, Any],
    configs: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Write a pipeline into an empty folder.

    Args:
        model: the model, whose text encoder is copied.
        folder: the folder.
        family: what it is made of.
        version: version of diffusers to state.
        text_files: files of such a text encoder.
        prompt: the condition with the text encoder.
        scheduler: config of the scheduler.
        configs: prefix of a part → its config.
        tensors: the tensors of these parts, with prefixes.
        dtype: dtype in which weights are stored; the text encoder's weights keep theirs.

    Raises:
        SpecError: the pipeline cannot have the tokenizer of this text encoder.
        CheckpointError: the text encoder is damaged.
    """
    modality = model.model.modality(prompt.id)
    assert isinstance(modality, EncoderModality), "a condition has an encoder"
    source: Any = modality.encoder  # a text encoder, as the spec says
    write_text_encoder(source.model, folder, text_files, max_length=prompt.settings["max_length"])
    _write_json(folder / INDEX_FILE, family.index(version))
    _write_json(folder / "scheduler" / SCHEDULER_FILE, {**scheduler, "_diffusers_version": version})
    for prefix, tree in configs.items():
        _write_json(folder / prefix.rstrip(".") / CONFIG, {**tree, "_diffusers_version": version})
        _write_weights(tensors, prefix, folder, dtype)


def _write_weights(tensors: Mapping[str, Tensor], prefix: str, folder: Path, dtype: torch.dtype) -> None:
    """Write the tensors with a prefix into their folder. Rows of one weight stay views of it; they do not overlap."""
    own = {name.removeprefix(prefix): one.detach() for name, one in tensors.items() if name.startswith(prefix)}
    stored = {name: one.cpu().to(dtype).contiguous() for name, one in own.items()}
    write_tensors(stored, folder / prefix.rstrip(".") / WEIGHTS_FILES[0])


def _write_json(file: Path, tree: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
