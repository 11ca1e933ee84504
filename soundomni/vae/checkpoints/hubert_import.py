"""Speech networks in the layout of transformers, with centroids of a layer, as the codec `hubert-kmeans`.

`SRC` is a directory with config.json, preprocessor_config.json and model.safetensors. The network may be the whole
model, or the part of one with a head, such as one for transcripts. Nothing is unpickled.

Shape letters: M clusters, D dimensions of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError, SpecError, shown
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.names import CONFIG_FILE
from soundomni.core.files.paths import local_path, place
from soundomni.core.pretrained.foreign_weights import SAFE_SUFFIX, WeightFile, digest, read_float32, read_weights
from soundomni.core.pretrained.weights import write_tensors
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import plain
from soundomni.vae.checkpoints.codec_directory import codec_report_start
from soundomni.vae.checkpoints.codec_weights import check_fit, place_names
from soundomni.vae.checkpoints.hubert_config import KEYS, check_layer, read_preprocessor, read_speech
from soundomni.vae.checkpoints.transformers_files import LAYOUT, OLDER_NAMES, find_weights
from soundomni.vae.hubert_kmeans import HubertKmeansCodec
from soundomni.vae.speech_network import CLASSES, Family, SpeechNetwork

CODEC = "hubert-kmeans"
PREPROCESSOR_FILE = "preprocessor_config.json"
CENTROIDS, LAYER = "centroids", "layer"
"""Tensors of a file of centroids: `[M, D]`, and the layer that they belong to, which other people's files may lack."""

_LAYER_NAME = re.compile(r"encoder\.layers\.(\d+)\.")
_FINAL_NORM = "encoder.layer_norm."
_MASK = "masked_spec_embed"


@dataclass(frozen=True)
class SpeechSource:
    """A network that was read up to a layer, and fits.

    Args:
        weights: its weight file.
        init_args: arguments of the codec, without the number of clusters.
        network: sizes of the network.
        sources: tensor of the network → tensor of the file.
        unused: tensor of the file → why it is not used.
        unused_keys: keys of the config that do not matter.
    """

    weights: WeightFile
    init_args: Mapping[str, Any]
    network: SpeechNetwork
    sources: Mapping[str, str]
    unused: Mapping[str, str]
    unused_keys: tuple[str, ...]

    @property
    def layer(self) -> int:
        """The last layer that was read."""
        layer: int = self.init_args["layer"]
        return layer

    def state(self) -> dict[str, Tensor]:
        """Return the network's tensors as float32. Raise CheckpointError if one is damaged."""
        return {ours: read_float32(self.weights, theirs) for ours, theirs in self.sources.items()}

    def codec(self) -> HubertKmeansCodec:
        """Return the codec with this network and a random centroid, for its `features`."""
        codec = HubertKmeansCodec(**{**self.init_args, "network": self.network, "num_clusters": 1})
        codec.network.load_state_dict(self.state())
        return codec


@dataclass(frozen=True)
class ImportedTokens:
    """A codec that was read completely and fits.

    Args:
        source: the network.
        init_args: arguments of the codec.
        centroids: file of the centroids.
        state: state dict of the codec.
    """

    source: SpeechSource
    init_args: Mapping[str, Any]
    centroids: WeightFile
    state: Mapping[str, Tensor]

    def report(self) -> dict[str, Any]:
        """Return the contents of import-report.json as plain data; reads the sources again for their checksums."""
        start = codec_report_start(CODEC, self.source.weights, title="Semantic tokens of audio")
        used = {theirs: [f"network.{ours}"] for ours, theirs in self.source.sources.items()}
        return {
            **start,
            "layout": LAYOUT,
            "codec": {"class_path": CODEC, "init_args": dict(self.init_args)},
            "parameters": sum(tensor.numel() for tensor in self.state.values()),
            "config": {"name": CONFIG_FILE, "unused": list(self.source.unused_keys)},
            "centroids": {file.name: digest(file) for file in self.centroids.files},
            "notes": [],
            "keys": {"used": used, "unused": dict(self.source.unused), "missing": [], "unexpected": []},
        }


def read_speech_source(source: str | Path, layer: int) -> SpeechSource:
    """Read a network up to a layer.

    Args:
        source: a directory with config.json, preprocessor_config.json and model.safetensors, as transformers writes it.
        layer: the last layer that runs, from 1.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model or other sizes.
        SpecError: the config asks for something that the codec cannot do, or the network does not have this layer.
    """
    directory = local_path(source)
    weights = find_weights(directory, "HubertModel, WavLMModel or Wav2Vec2Model")
    tree = read_object(directory / CONFIG_FILE)
    family: Any = tree.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        expected = f"expected one of {', '.join(CLASSES)}"
        raise CheckpointError(f"'{directory / CONFIG_FILE}': model_type is {shown(family)}; {expected}")
    if not (directory / PREPROCESSOR_FILE).exists():
        what = "which says whether clips are normalized (do_normalize). Copy it from the repository of the model"
        raise CheckpointError(f"no {PREPROCESSOR_FILE} in '{directory}', {what}")
    try:
        known = {name: value for name, value in tree.items() if name in KEYS}
        network, num_layers = read_speech(known, cast(Family, family))
        check_layer(layer, num_layers)
    except SpecError as error:
        raise SpecError(f"'{directory / CONFIG_FILE}': {error}") from error
    try:
        clips = read_preprocessor(read_object(directory / PREPROCESSOR_FILE))
    except SpecError as error:
        raise SpecError(f"'{directory / PREPROCESSOR_FILE}': {error}") from error
    init_args = {**clips, "network": plain(network), "layer": layer}
    with without_memory():
        empty = build("codec", Slot(CODEC, {**init_args, "num_clusters": 1})).network
    unused = _unused(weights, family, layer, keeps_norm=not network.norm_first)
    prefix = _prefix(weights, family)
    names = {name.removeprefix(prefix): name for name in weights if name not in unused}
    placed = place_names(names, empty.state_dict(), OLDER_NAMES, weights.path)
    sources = {ours: names[name] for ours, name in placed.items()}
    check_fit(empty, {ours: weights.shape(theirs) for ours, theirs in sources.items()}, weights.path)
    unused_keys = tuple(name for name in tree if name not in (*KEYS, "model_type"))
    return SpeechSource(weights, init_args, network, sources, unused, unused_keys)


def import_hubert_kmeans(source: str | Path, *, centroids: str | Path, layer: int | None = None) -> ImportedTokens:
    """Read a network and centroids of one of its layers.

    Args:
        source: as in `read_speech_source`.
        centroids: a .safetensors file with "centroids" `[M, D]`, as `write_centroids` writes it.
        layer: their layer, from 1; None for the one in the file.

    Raise CheckpointError or SpecError as `read_speech_source`, or if the centroids are missing or damaged, or belong to
    another layer.
    """
    file = _open_centroids(centroids)
    found = read_speech_source(source, _layer(file, layer))
    shape = file.shape(CENTROIDS)
    if len(shape) != 2 or not shape[0] or shape[1] != found.network.hidden_dim:
        expected = f"expected [clusters, {found.network.hidden_dim}], as wide as the network"
        raise CheckpointError(f"'{file.path}': '{CENTROIDS}' is {list(shape)}; {expected}")
    state = {f"network.{name}": tensor for name, tensor in found.state().items()}
    init_args = {**found.init_args, "num_clusters": shape[0]}
    return ImportedTokens(found, init_args, file, state | {CENTROIDS: read_float32(file, CENTROIDS)})


def write_centroids(centroids: Tensor, layer: int, path: Path) -> None:
    """Write float32 `[M, D]` and their layer as a file for `import_hubert_kmeans`."""
    write_tensors({CENTROIDS: centroids.cpu().contiguous(), LAYER: torch.tensor(layer)}, path)


def _open_centroids(path: str | Path) -> WeightFile:
    expected = f"expected a {SAFE_SUFFIX} file with the tensor '{CENTROIDS}', as `soundomni fit-kmeans` writes it"
    file = local_path(path)
    if not file.is_file() or file.suffix != SAFE_SUFFIX:
        what = "is not a safetensors file" if file.exists() else "does not exist"
        raise CheckpointError(f"{place(path)} {what}; {expected}")
    weights = read_weights(file)
    if CENTROIDS not in weights:
        raise CheckpointError(f"'{file}' does not hold centroids; {expected}")
    return weights


def _layer(file: WeightFile, given: int | None) -> int:
    """Return the layer of the centroids. Raise SpecError if nothing says it, or two disagree."""
    stored = int(file[LAYER]) if LAYER in file and file.shape(LAYER) == () else None
    if given is None and stored is None:
        raise SpecError(f"'{file.path}' does not say which layer its centroids belong to. Set --layer")
    if given is not None and stored is not None and given != stored:
        raise SpecError(f"--layer is {given}, but '{file.path}' has centroids of layer {stored}. Leave --layer out")
    return stored if given is None else given  # type: ignore[return-value]  # one of them is there


def _prefix(weights: WeightFile, family: str) -> str:
    """Return what names of the network start with in a model that has more parts, such as a head."""
    prefix = f"{family}."
    return prefix if any(name.startswith(prefix) for name in weights) else ""


def _unused(weights: WeightFile, family: str, layer: int, *, keeps_norm: bool) -> dict[str, str]:
    """Return tensor of the file → why the first layers do not need it."""
    prefix, unused = _prefix(weights, family), {}
    for name in weights:
        own = name.removeprefix(prefix)
        later = _LAYER_NAME.match(own)
        if not name.startswith(prefix):
            unused[name] = "part of a head, not of the network"
        elif own == _MASK:
            unused[name] = "only used to train the network"
        elif later and int(later[1]) >= layer:
            unused[name] = f"comes after layer {layer}"
        elif own.startswith(_FINAL_NORM) and not keeps_norm:
            unused[name] = "comes after all layers"
    return unused
