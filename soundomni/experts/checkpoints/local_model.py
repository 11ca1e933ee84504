"""Pretrained models that encoders name but do not hold: found in a folder or in the Hub's local cache, never downloaded.

A folder holds config.json, tokenizer.json and weights. A diffusers pipeline holds the same files in its folders
text_encoder and tokenizer.

Strangers may have written their files. Only sizes are read from a config, weights only from safetensors, and a network is compared
with the shapes in its file before it takes any memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from soundomni.core.assembly.uninitialized import uninitialized, without_memory
from soundomni.core.errors import CheckpointError, SpecError, describe, message_of, shown
from soundomni.core.files.paths import local_path, place
from soundomni.core.files.small_files import read_json
from soundomni.core.pretrained.foreign_weights import WeightFile, read_float32, read_weights
from soundomni.core.spec.values import convert

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SLOW_TOKENIZER = "spiece.model"
NETWORK_FOLDER, TOKENIZER_FOLDER = "text_encoder", "tokenizer"
"""Folders of a diffusers pipeline that hold its text encoder."""
MOST_TOKENIZER_BYTES = 1 << 26
"""Largest tokenizer.json that is read; T5's is 2.4 MB, and Gemma's 34 MB."""
_CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
"""Endings of names of buffers that follow from the config or are not used; they are computed, never read."""

Sizes = TypeVar("Sizes")


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A folder with a pretrained model in transformers' layout.

    Args:
        plugin: name of the plugin, with which errors begin.
        what: the kind of model in words, such as "a T5 model".
        name: the name that the spec gives: a folder, or a Hub repository.
        folder: folder with its config and weights.
        tokenizer_folder: folder with its tokenizer.
    """

    plugin: str
    what: str
    name: str
    folder: Path
    tokenizer_folder: Path

    @classmethod
    def find(
        cls,
        name: str,
        revision: str | None,
        *,
        plugin: str,
        what: str,
        example: str,
        files: Collection[str] = (CONFIG, TOKENIZER),
        folder: str | None = None,
    ) -> LocalModel:
        """Find a model in the file system, or in the Hub's cache.

        Args:
            name: a folder, or a Hub repository.
            revision: revision of the repository; None for its main branch.
            plugin, what: as in LocalModel.
            example: a Hub repository that errors suggest.
            files: files that it needs besides its weights.
            folder: the folder with the files; None to look `name` up.

        Raise SpecError if it is not there, or lacks a file.
        """
        if not name.strip():
            raise SpecError(f"{plugin}: name is {name!r}; expected a folder with {what}, or a Hub repository such as {example}")
        found = _existing(name, key=f"{plugin}: name") if folder is None else _existing(folder, key=f"{plugin}: folder")
        if found is None and folder is not None:
            raise SpecError(f"{plugin}: folder is '{folder}', which does not exist; expected a folder with {what}")
        found = found or _cached(name, revision)
        if found is None:
            raise SpecError(
                f"{plugin}: name is '{name}'; expected a folder with {what}, or a Hub repository in the local cache. "
                f"Nothing is downloaded: fetch it with `hf download {name}`, or give its folder"
            )
        is_pipeline = (found / NETWORK_FOLDER).is_dir()
        network, tokenizer = (NETWORK_FOLDER, TOKENIZER_FOLDER) if is_pipeline else ("", "")
        needed = [str(Path(tokenizer if file == TOKENIZER else network, file)) for file in files]
        missing = [file for file in needed if not (found / file).is_file()]
        has_weights = any((found / network / file).is_file() for file in (WEIGHTS, INDEX))
        missing += [] if has_weights else [str(Path(network, WEIGHTS))]
        if not missing:
            return cls(plugin=plugin, what=what, name=name, folder=found / network, tokenizer_folder=found / tokenizer)
        told = f"{plugin}: {place(found)} lacks {', '.join(missing)}; expected {what} with weights as safetensors"
        raise SpecError(told + _conversion(found / tokenizer))

    def read(self, file: str = CONFIG) -> Mapping[str, Any]:
        """Return the JSON object in a file of the folder. Raise SpecError if it cannot be read."""
        try:
            tree = read_json(self.folder / file)
        except (OSError, ValueError) as error:
            raise SpecError(f"{self.plugin}: {place(self.folder / file)} cannot be read: {message_of(error)}") from error
        if not isinstance(tree, dict):
            raise SpecError(f"{self.plugin}: {place(self.folder / file)} holds {shown(tree)}; expected the JSON object of {self.what}")
        return tree

    def config(self, *model_types: str) -> Mapping[str, Any]:
        """Return the config. Raise SpecError if it is that of another kind of model."""
        config = self.read()
        kind = config.get("model_type")
        if kind not in model_types:
            expected = " or ".join(model_types)
            raise SpecError(f"{self.plugin}: '{self.name}' has a config of model_type {shown(kind)}; expected {expected}")
        return config

    def sizes(self, tree: object, sizes_class: type[Sizes], *required: str, key: str = "") -> Sizes:
        """Return the fields of a dataclass that a config has under the same names; the rest keep their defaults.

        Args:
            tree: the config, or the part of it at `key`.
            sizes_class: the dataclass.
            required: names that the config has to have.
            key: name of the part, for errors.

        Raise SpecError if it is not an object, lacks a name, or has a value that cannot be.
        """
        told = f"{self.plugin}: the config of '{self.name}'" + (f", {key}" if key else "")
        if not isinstance(tree, Mapping):
            raise SpecError(f"{told} is {shown(tree)}; expected that of {self.what}")
        lacking = [name for name in required if name not in tree]
        if lacking:
            raise SpecError(f"{told} lacks {', '.join(lacking)}; expected that of {self.what}")
        fields: Mapping[str, Any] = sizes_class.__dataclass_fields__  # type: ignore[attr-defined]
        try:
            sizes: Sizes = convert({name: value for name, value in tree.items() if name in fields}, sizes_class, "")
        except SpecError as error:
            raise SpecError(f"{told}: {error}") from error
        return sizes

    def tokenizer(self) -> Any:
        """Return the tokenizer, which neither cuts nor pads texts. Raise CheckpointError if its file is damaged."""
        from tokenizers import Tokenizer

        file = self.tokenizer_folder / TOKENIZER
        if file.stat().st_size > MOST_TOKENIZER_BYTES:
            raise CheckpointError(f"{self.plugin}: {place(file)} has more than {MOST_TOKENIZER_BYTES >> 20} MiB; expected a tokenizer")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain exceptions
            raise CheckpointError(f"{self.plugin}: {place(file)} is not a tokenizer: {describe(error)}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def load(self, make: Callable[[], nn.Module], *, other_names: Callable[[str], Collection[str]] = lambda name: ()) -> Any:
        """Return a network with the weights of the folder, in float32, frozen and in evaluation mode.

        Args:
            make: builds the network.
            other_names: a tensor's name in the network → names that files may have it under instead.

        Raises:
            CheckpointError: the weights are damaged, lack a tensor, or do not fit the sizes.
        """
        with without_memory():
            like = make().state_dict()
        weights = read_weights(self.folder / (WEIGHTS if (self.folder / WEIGHTS).is_file() else INDEX), safe=True)
        tensors = self._tensors(like, weights, other_names)
        with uninitialized():  # buffers get their values
            network = make()
        constants = {name: tensor for name, tensor in network.state_dict().items() if name.endswith(_CONSTANTS)}
        network.load_state_dict(constants | tensors, assign=True)
        return network.requires_grad_(False).eval()

    def _tensors(self, like: Mapping[str, Tensor], weights: WeightFile, other_names: Callable[[str], Collection[str]]) -> dict[str, Tensor]:
        """Return the tensors of a network from a file. Raise CheckpointError if one is missing, of another shape or not finite."""
        names: dict[str, str] = {}
        for ours, tensor in like.items():
            if ours.endswith(_CONSTANTS):
                continue
            theirs = next((name for name in (ours, *other_names(ours)) if name in weights), None)
            told = f"{self.plugin}: {place(weights.path)}"
            if theirs is None:
                raise CheckpointError(f"{told} lacks the tensor '{ours}'; expected the weights of {self.what}")
            if weights.shape(theirs) != tuple(tensor.shape):
                shapes = f"{list(weights.shape(theirs))}; expected {list(tensor.shape)}, as its config says"
                raise CheckpointError(f"{told}: '{theirs}' has the shape {shapes}")
            names[ours] = theirs
        read = {theirs: read_float32(weights, theirs) for theirs in names.values()}
        return {ours: read[theirs] for ours, theirs in names.items()}


def holds_pipeline(folder: Path) -> bool:
    """Return whether a folder holds a diffusers pipeline with the weights of its text encoder."""
    return any((folder / NETWORK_FOLDER / file).is_file() for file in (WEIGHTS, INDEX))


def _existing(path: str, *, key: str) -> Path | None:
    """Return the folder of a path; None if it does not exist. Raise SpecError if it cannot be one."""
    folder = local_path(path)
    try:
        return folder if folder.is_dir() else None
    except OSError as error:  # the path is too long
        raise SpecError(f"{key} is '{path[:40]}…', which cannot be a folder: {error.strerror}") from error


def _conversion(folder: Path) -> str:
    """Return advice for an error if a folder only has the slow tokenizer; otherwise an empty text."""
    if (folder / TOKENIZER).is_file() or not (folder / SLOW_TOKENIZER).is_file():
        return ""
    code = f"from transformers import AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained('{folder}')"
    return f'. Make {TOKENIZER} from its {SLOW_TOKENIZER} with transformers and sentencepiece: `python -c "{code}"`'


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of a repository in the Hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, CONFIG, revision=revision)
    except ValueError:  # not a name of a repository
        return None
    return Path(found).parent if isinstance(found, str) else None
