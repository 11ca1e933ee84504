"""Published codecs in the layout of transformers: a directory with config.json and model.safetensors.

The names of the tensors are kept, with two exceptions: EnCodec's older files spell weight norm as weight_g and
weight_v, and newer versions of transformers have other names for Mimi's parts than older ones and published files.
Nothing is unpickled: files of other kinds are refused unread. Sizes are compared with what the file holds before
anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError, SpecError, shown
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.names import CONFIG_FILE
from soundomni.core.pretrained.foreign_weights import WeightFile, read_float32
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.vae.checkpoints import dac_config, encodec_config, mimi_config
from soundomni.vae.checkpoints.codec_directory import codec_report_start
from soundomni.vae.checkpoints.codec_weights import check_fit, place_names
from soundomni.vae.checkpoints.transformers_files import LAYOUT, OLDER_NAMES, find_weights


@dataclass(frozen=True)
class _Kind:
    """A kind of codec.

    Args:
        model: name of its class in transformers.
        keys: keys of its config that matter.
        read: maps the values of those keys to the arguments of the codec.
        renamed: pattern in a tensor's name in the file → what it is in the codec, for names that the codec lacks.
    """

    model: str
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    renamed: Mapping[str, str]


_KINDS = {
    "dac": _Kind(dac_config.MODEL, dac_config.KEYS, dac_config.read_dac, {}),
    "encodec": _Kind(encodec_config.MODEL, encodec_config.KEYS, encodec_config.read_encodec, OLDER_NAMES),
    "mimi": _Kind(mimi_config.MODEL, mimi_config.KEYS, mimi_config.read_mimi, mimi_config.OTHER_NAMES),
}


@dataclass(frozen=True)
class ImportedCodec:
    """A codec that was read completely and fits.

    Args:
        kind: name of the codec, which is also the config's model_type.
        source: its weight file.
        init_args: arguments of the codec.
        unused: keys of the config that do not matter for it.
        sources: tensor of the codec's network → tensor of the file.
        state: state dict of the codec's network.
    """

    kind: str
    source: WeightFile
    init_args: Mapping[str, Any]
    unused: tuple[str, ...]
    sources: Mapping[str, str]
    state: Mapping[str, Tensor]

    def report(self) -> dict[str, Any]:
        """Return the contents of import-report.json as plain data; reads the source again for its checksums."""
        return {
            **codec_report_start(self.kind, self.source),
            "layout": LAYOUT,
            "codec": {"class_path": self.kind, "init_args": dict(self.init_args)},
            "parameters": sum(tensor.numel() for tensor in self.state.values()),
            "config": {"name": CONFIG_FILE, "unused": list(self.unused)},
            "notes": [],
            "keys": {"used": {theirs: [ours] for ours, theirs in self.sources.items()}, "unused": {}, "missing": [], "unexpected": []},
        }


def import_codec(kind: str, source: str | Path) -> ImportedCodec:
    """Read a codec of transformers.

    Args:
        kind: "dac", "encodec" or "mimi".
        source: a directory with config.json and model.safetensors.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model or other sizes.
        SpecError: the config asks for something that the codec cannot do.
    """
    directory, known = Path(source), _KINDS[kind]
    weights = find_weights(directory, known.model)
    init_args, unused = _read_config(directory / CONFIG_FILE, kind)
    with without_memory():
        codec = build("codec", Slot(kind, init_args))
    sources = place_names(weights, codec.network.state_dict(), known.renamed, weights.path)
    check_fit(codec.network, {ours: weights.shape(theirs) for ours, theirs in sources.items()}, weights.path)
    state = {ours: read_float32(weights, theirs) for ours, theirs in sources.items()}
    return ImportedCodec(kind, weights, init_args, unused, sources, state)


def _read_config(file: Path, kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the codec's arguments and the keys that do not matter for them."""
    tree = read_object(file)
    if tree.get("model_type") != kind:
        raise CheckpointError(f"'{file}': model_type is {shown(tree.get('model_type'))}; expected '{kind}'")
    keys = _KINDS[kind].keys
    try:
        init_args = _KINDS[kind].read({name: value for name, value in tree.items() if name in keys})
    except SpecError as error:
        raise SpecError(f"'{file}': {error}") from error
    return init_args, tuple(name for name in tree if name not in (*keys, "model_type"))
