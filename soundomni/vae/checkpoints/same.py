"""Imports SAME, the autoencoder of Stable Audio 3, from a published checkpoint into a directory that specs can use (see
codec_directory.py).

Weight norm is kept, so that training can continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.foreign_weights import WeightFile, read_weights
from soundomni.vae.checkpoints.codec_directory import codec_report_start
from soundomni.vae.checkpoints.same_config import read_config
from soundomni.vae.checkpoints.same_layouts import Found, build_same, find_same, read_parameter
from soundomni.vae.checkpoints.stable_audio_config import CodecConfig, find_config
from soundomni.vae.same import SameCodec

KIND = "same"


@dataclass(frozen=True)
class ImportedSame:
    """An autoencoder whose tensors were all found and fit.

    Args:
        source: its weight file.
        config: its config.
        config_file: the file with the config.
        found: where its tensors are in the weight file.
        state: the state dict of a SameCodec with `config.init_args`.
    """

    source: WeightFile
    config: CodecConfig
    config_file: Path
    found: Found
    state: Mapping[str, Tensor]

    def codec(self) -> SameCodec:
        """Build the codec."""
        codec = build_same(self.config.init_args)
        codec.load_state_dict(dict(self.state))
        return codec

    def report(self) -> dict[str, Any]:
        """Return the contents of import-report.json as plain data; reads the source again for its checksums."""
        return {
            **codec_report_start(KIND, self.source),
            "layout": self.found.layout,
            "codec": {"class_path": KIND, "init_args": self.config.init_args},
            "parameters": sum(tensor.numel() for tensor in self.state.values()),
            "config": {"name": self.config_file.name, "unused": list(self.config.unused)},
            "notes": list(self.config.notes),
            "keys": {"used": self.found.used(), "unused": dict(self.found.unused), "missing": [], "unexpected": []},
        }


def import_same(source: str | Path, *, config: str | Path | None = None) -> ImportedSame:
    """Read the autoencoder of a checkpoint in any of the layouts of `same_layouts`.

    Args:
        source: a weight file, an index of shards, or a directory with one.
        config: its JSON config; None for the one next to the weights. It is needed because the tensors do not determine
            the strides or the window of the transformers.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another model or other sizes.
        SpecError: there is no config, or it is wrong, or asks for something that the codec cannot do.
    """
    weights = read_weights(source)
    config_file = find_config(Path(source)) if config is None else Path(config)
    if config_file is None:
        raise SpecError(
            f"no config next to '{source}'; use --config to name the autoencoder's or the model's config, such as model_config.json"
        )
    known = read_config(config_file)
    found = find_same(weights, known.init_args)
    return ImportedSame(weights, known, config_file, found, {name: read_parameter(weights, found, name) for name in found.sources})
