"""Stable Audio's autoencoder: from a published checkpoint to a directory that specs can name (see codec_directory.py).

Weight norm is kept, so that training can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import SpecError
from soundomni.core.pretrained.foreign_weights import WeightFile, read_weights
from soundomni.vae.checkpoints.codec_directory import codec_report_start
from soundomni.vae.checkpoints.stable_audio_config import CodecConfig, find_config, read_config
from soundomni.vae.checkpoints.stable_audio_layouts import Found, check_fit, find_autoencoder, load_state, shapes_of
from soundomni.vae.checkpoints.stable_audio_sizes import infer_config
from soundomni.vae.oobleck import OobleckCodec

KIND = "stable-audio-vae"


@dataclass(frozen=True)
class ImportedCodec:
    """An autoencoder that was read completely and fits.

    Args:
        source: its weight file.
        config: its config, or what its tensors imply.
        config_file: file that the config was read from; None if it comes from the tensors.
        found: where its tensors are in the file.
        state: the state dict of an OobleckCodec with `config.init_args`.
    """

    source: WeightFile
    config: CodecConfig
    config_file: Path | None
    found: Found
    state: Mapping[str, Tensor]

    def codec(self) -> OobleckCodec:
        """Build the codec."""
        codec = OobleckCodec(**self.config.init_args)
        codec.load_state_dict(dict(self.state))
        return codec

    def report(self) -> dict[str, Any]:
        """Return the contents of import-report.json as plain data; reads the source again for its checksums."""
        return {
            **codec_report_start(KIND, self.source),
            "layout": self.found.layout,
            "codec": {"class_path": "oobleck", "init_args": self.config.init_args},
            "parameters": sum(tensor.numel() for tensor in self.state.values()),
            "config": {"name": self.config_file.name if self.config_file else None, "unused": list(self.config.unused)},
            "notes": list(self.config.notes),
            "keys": {"used": self.found.used(), "unused": dict(self.found.unused), "missing": [], "unexpected": []},
        }


def import_stable_audio_vae(source: str | Path, *, config: str | Path | None = None) -> ImportedCodec:
    """Read the autoencoder of a checkpoint in any of the layouts of `stable_audio_layouts`.

    Args:
        source: a weight file, an index of shards, or a directory with one.
        config: its JSON config; None takes the one next to the weights or, if there is none, the sizes of the tensors.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another model or other sizes.
        SpecError: the config is wrong, or asks for something that the codec cannot do.
    """
    weights = read_weights(source)
    found = find_autoencoder(weights)
    config_file = find_config(Path(source)) if config is None else Path(config)
    if config_file is None:
        known = infer_config(shapes_of(weights, found), found.layout)
    elif config is None:
        known = _read_beside(config_file)
    else:
        known = read_config(config_file)
    with without_memory():
        expected = {name: tuple(tensor.shape) for name, tensor in OobleckCodec(**known.init_args).state_dict().items()}
    check_fit(weights, found, expected)
    return ImportedCodec(weights, known, config_file, found, load_state(weights, found))


def _read_beside(config_file: Path) -> CodecConfig:
    """Read a config that was found next to the weights, and note that it was used."""
    try:
        known = read_config(config_file)
    except SpecError as error:
        raise SpecError(f"{error} (this config is next to the weights; name another with --config)") from error
    return replace(known, notes=(*known.notes, f"the config is {config_file.name}, found next to the weights"))
