"""Stable Audio's autoencoder: from a published checkpoint to a directory that specs can name.

| name | what it is |
|---|---|
| model.safetensors | the parameters under their names here, float32, with weight norm, so that training can go on |
| codec.yaml | spec layer that makes this the codec of a model |
| import-report.json | where every tensor of the source went, and what was assumed |
| README.md | card: source, checksums, sizes, license |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import SpecError
from soundomni.core.files.names import CARD_FILE, REPORT_FILE
from soundomni.core.files.small_files import read_text
from soundomni.core.pretrained.directory import Origin, front_matter, markdown_code, markdown_text, shown_license
from soundomni.core.pretrained.foreign_weights import WeightFile, digest, read_weights
from soundomni.core.pretrained.weights import write_tensors
from soundomni.core.spec import yaml_text
from soundomni.core.spec.provenance import settle_names
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import convert
from soundomni.vae.checkpoints.stable_audio_config import CodecConfig, find_config, read_config
from soundomni.vae.checkpoints.stable_audio_layouts import Found, check_fit, find_autoencoder, load_state, shapes_of
from soundomni.vae.checkpoints.stable_audio_sizes import infer_config
from soundomni.vae.oobleck import OobleckCodec

WEIGHTS_FILE, LAYER_FILE = "model.safetensors", "codec.yaml"
FORMAT = 1
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
            "format": FORMAT,
            "kind": KIND,
            "source": {"name": self.source.path.resolve().name, "files": {file.name: digest(file) for file in self.source.files}},
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


def write_codec(imported: ImportedCodec, folder: Path, *, final: Path, license: str | None = None) -> dict[str, Any]:
    """Write the four files and return the report.

    Args:
        imported: the codec to write.
        folder: an empty folder.
        final: the absolute path where the folder will be. A spec keeps paths as they are written, and a relative path
            would only be right for one working directory, so codec.yaml contains this one.
        license: license of the weights, as their owner names it; None for unknown.
    """
    report = imported.report() | {"license": license}
    layer = {"class_path": "oobleck", "init_args": {**imported.config.init_args, "weights": str(final / WEIGHTS_FILE)}}
    comment = "# Imported weights. Their path is absolute; change it if you move this directory.\n"
    (folder / LAYER_FILE).write_text(comment + yaml_text.render({"model": {"codec": layer}}), encoding="utf-8")
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(_card(report), encoding="utf-8")
    write_tensors(imported.state, folder / WEIGHTS_FILE)
    return report


def read_layer(folder: Path) -> Slot:
    """Return the codec that a directory's codec.yaml names. Raise SpecError if it names none."""
    file = folder / LAYER_FILE
    tree = yaml_text.parse(read_text(file), str(file))
    try:
        given = settle_names(tree, {})["model"]["codec"]
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"'{file}' does not name a codec; expected the key model.codec") from error
    slot: Slot = convert(given, Slot, "model.codec")
    return slot


def _read_beside(config_file: Path) -> CodecConfig:
    """Read a config that was found next to the weights, and note that it was used."""
    try:
        known = read_config(config_file)
    except SpecError as error:
        raise SpecError(f"{error} (this config is next to the weights; name another with --config)") from error
    return replace(known, notes=(*known.notes, f"the config is {config_file.name}, found next to the weights"))


def _card(report: Mapping[str, Any]) -> str:
    files = "\n".join(
        f"| {markdown_code(name)} | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in report["source"]["files"].items()
    )
    sizes = "\n".join(f"- {name}: {value}" for name, value in report["codec"]["init_args"].items())
    notes = "".join(f"- {markdown_text(note)}\n" for note in report["notes"])
    origin = Origin(license=report["license"], source=report["source"]["name"])
    front = front_matter(origin)
    return (
        f"---\n{front}---\n\n# An autoencoder for audio\n\n"
        f"{report['parameters']:,} parameters, imported from the layout {report['layout']} of {markdown_code(report['source']['name'])}. "
        f"License of the weights: {shown_license(origin)}.\n\n"
        f"| file | bytes | SHA-256 |\n|---|---|---|\n{files}\n\n{sizes}\n\n"
        f"{notes}{chr(10) if notes else ''}"
        f"Use it as the codec of a model:\n\n```sh\nsoundomni train --config SPEC --config {LAYER_FILE}\n```\n\n"
        f"`{LAYER_FILE}` names the weights by an absolute path; change it if you move this directory. "
        f"`{REPORT_FILE}` says where every tensor of the source went.\n"
    )
