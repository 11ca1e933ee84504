"""The directory that importing a codec writes.

| name | what it is |
|---|---|
| model.safetensors | the parameters under their names here, float32 |
| codec.yaml | spec layer that makes this the codec of a model |
| import-report.json | where every tensor of the source went, and what was assumed |
| README.md | card: source, checksums, sizes, license |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.files.names import CARD_FILE, REPORT_FILE
from soundomni.core.files.small_files import read_text
from soundomni.core.pretrained.directory import Origin, front_matter, markdown_code, markdown_text, shown_license
from soundomni.core.pretrained.foreign_weights import WeightFile
from soundomni.core.pretrained.import_report import report_start
from soundomni.core.pretrained.weights import write_tensors
from soundomni.core.spec import yaml_text
from soundomni.core.spec.provenance import settle_names
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import convert

WEIGHTS_FILE, LAYER_FILE = "model.safetensors", "codec.yaml"


def codec_report_start(kind: str, source: WeightFile, *, title: str = "An autoencoder for audio") -> dict[str, Any]:
    """Return the beginning of a codec's report: what was imported, with checksums, and the card's title.

    Args:
        kind: kind of import.
        source: the imported weights.
        title: title of the card.
    """
    return {**report_start(kind, source), "title": title}


def write_codec(
    report: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path, *, final: Path, license: str | None = None
) -> dict[str, Any]:
    """Write the four files and return the report.

    Args:
        report: contents of import-report.json, without the license; its codec is a class_path with init_args.
        state: what the codec's argument `weights` takes.
        folder: an empty folder.
        final: the absolute path where the folder will be. A spec keeps paths as they are written, and a relative path
            would only be right for one working directory, so codec.yaml contains this one.
        license: license of the weights, as their owner names it; None for unknown.
    """
    report = {**report, "license": license}
    codec = report["codec"]
    layer = {"class_path": codec["class_path"], "init_args": {**codec["init_args"], "weights": str(final / WEIGHTS_FILE)}}
    comment = "# Imported weights. Their path is absolute; change it if you move this directory.\n"
    (folder / LAYER_FILE).write_text(comment + yaml_text.render({"model": {"codec": layer}}), encoding="utf-8")
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(_card(report), encoding="utf-8")
    write_tensors(state, folder / WEIGHTS_FILE)
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


def _card(report: Mapping[str, Any]) -> str:
    files = "\n".join(
        f"| {markdown_code(name)} | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in report["source"]["files"].items()
    )
    sizes = "\n".join(f"- {name}: {value}" for name, value in report["codec"]["init_args"].items())
    notes = "".join(f"- {markdown_text(note)}\n" for note in report["notes"])
    origin = Origin(license=report["license"], source=report["source"]["name"])
    front = front_matter(origin)
    return (
        f"---\n{front}---\n\n# {report['title']}\n\n"
        f"{report['parameters']:,} parameters, imported from the layout {report['layout']} of {markdown_code(report['source']['name'])}. "
        f"License of the weights: {shown_license(origin)}.\n\n"
        f"| file | bytes | SHA-256 |\n|---|---|---|\n{files}\n\n{sizes}\n\n"
        f"{notes}{chr(10) if notes else ''}"
        f"Use it as the codec of a model:\n\n```sh\nsoundomni train --config SPEC --config {LAYER_FILE}\n```\n\n"
        f"`{LAYER_FILE}` names the weights by an absolute path; change it if you move this directory. "
        f"`{REPORT_FILE}` says where every tensor of the source went.\n"
    )
