"""Starting from an existing model: which weights are loaded from it, each rank reading its own part.

The model is only read before the first step. A resumed run has everything in its checkpoint, and its directory keeps
the spec layer of the model (core/pretrained/start.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.pretrained.directory import find_model, hub_name
from soundomni.core.pretrained.start import StartModel, read_start
from soundomni.core.pretrained.weights import differing_names, load_weights, weight_shapes
from soundomni.core.spec.load import changed_keys, resolve, spec_to_dict
from soundomni.core.spec.schema import Spec
from soundomni.core.spec.values import convert
from soundomni.core.tokenizer import TextTokenizer
from soundomni.train.preflight import build_without_memory
from soundomni.train.shards import local_slice

WHOLE = ("codec", "normalizer")
"""Parts that every rank keeps whole. They are needed before anything is sharded, to measure latents."""
ADAPTERS = ".lora_"
"""Part of the names of all tensors that train.lora adds to the model; they are always new."""
CHOICES = ("start", "start_fresh", "freeze")
"""Keys of the section `model` that do not describe the model."""


@dataclass(frozen=True)
class Start:
    """A model directory whose weights fit a spec.

    Args:
        name: its name in the spec.
        directory: the directory itself.
        model: its spec, and the source of its weights.
        fresh: parts of the model that are not loaded from it.
        changed: "key: old -> new" for each key of the model that the spec changes.
    """

    name: str
    directory: Path
    model: StartModel
    fresh: tuple[str, ...]
    changed: tuple[str, ...]

    def tokenizer(self) -> TextTokenizer:
        """Read its tokenizer, which fits its embedding."""
        return TextTokenizer.load(self.directory)

    def load_whole(self, model: UnifiedModel) -> None:
        """Load codec and latent normalization, before anything is sharded. Raise CheckpointError on failure."""
        load_weights(model, self.directory, wanted=self.wanted(lambda part: part in WHOLE))

    def load(self, model: nn.Module) -> None:
        """Load everything else; each rank reads only its own rows. Raise CheckpointError on failure."""
        load_weights(model, self.directory, wanted=self.wanted(lambda part: part not in WHOLE), part=_rows)

    def describe(self) -> str:
        """Return one line that says what is loaded."""
        parts = [f"starting from the weights of '{self.name}'"]
        parts += [f"new: {', '.join(self.fresh)}"] if self.fresh else []
        parts += [f"the spec changes {', '.join(self.changed)}"] if self.changed else []
        return "; ".join(parts)

    def wanted(self, choose: Callable[[str], bool] = lambda part: True) -> Callable[[str], bool]:
        """Return a predicate: is the tensor of this name loaded from the start model, and is its part chosen?"""

        def wanted(name: str) -> bool:
            part = name.partition(".")[0]
            return part not in self.fresh and choose(part) and ADAPTERS not in name

        return wanted


def open_start(spec: Spec, *, commit: str | None = None, weights: bool = True, trust_class_paths: bool = False) -> Start | None:
    """Find the model that a resolved spec starts from, and check that its weights fit; None if there is no such model.

    If the spec changes the codec or the latent normalization, latents are measured again.

    Args:
        spec: the spec.
        commit: commit in the Hub repository; None for the one that the name gives. Only used for models on the Hub.
        weights: download the weights from the Hub if needed, and compare their shapes.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        SpecError: the spec changes the tokenizer, the names or shapes of weights to load, or the weights of a loaded
            codec.
    """
    name = spec.model.start
    if name is None:
        if spec.model.start_fresh:
            raise SpecError("model.start_fresh is set, but model.start is not. Set model.start, or leave model.start_fresh out")
        return None
    repository = hub_name(name)
    directory = find_model(name if commit is None or repository is None else f"{repository[0]}@{commit}", weights=weights)
    model = read_start(name, directory)
    old, new = _model_keys(_resolved_like(spec, model.layer, trust_class_paths=trust_class_paths)), _model_keys(spec)
    codec_weights = new["codec"]["init_args"].pop("weights", None)
    old["codec"]["init_args"].pop("weights", None)
    _check_given(spec, codec_weights, changed_keys(old["tokenizer"], new["tokenizer"]), name)
    chosen = spec.model.start_fresh or []
    new_latents = old["codec"] != new["codec"] or old["normalize"] != new["normalize"] or "codec" in chosen
    fresh = (*chosen, *(("normalizer",) if new_latents else ()))
    changed = tuple(f"model.{line}" for line in changed_keys(old, new))
    start = Start(name, directory, model, fresh, changed)
    if weights:
        _check_shapes(start, spec, trust_class_paths=trust_class_paths)
    return start


def _model_keys(spec: Spec) -> dict[str, Any]:
    return {key: value for key, value in spec_to_dict(spec)["model"].items() if key not in CHOICES}


def _resolved_like(spec: Spec, layer: Mapping[str, Any], *, trust_class_paths: bool) -> Spec:
    """Return the resolved spec of the model itself."""
    return resolve(convert({**spec_to_dict(spec), **layer}, Spec, ""), trust_class_paths=trust_class_paths)


def _check_given(spec: Spec, codec_weights: object, tokenizer: list[str], name: str) -> None:
    if tokenizer:
        raise SpecError(
            f"model.tokenizer.{tokenizer[0]}: the tokenizer comes from model.start, '{name}', so that ids keep their meaning. Leave it out"
        )
    if codec_weights is not None and "codec" not in (spec.model.start_fresh or ()):
        raise SpecError(
            f"model.codec.weights: '{codec_weights}' was given, but the codec's weights come from model.start, "
            f"'{name}'. "
            "Leave it out, or name codec in model.start_fresh"
        )


def _check_shapes(start: Start, spec: Spec, *, trust_class_paths: bool) -> None:
    """Raise SpecError, which names the keys that the spec changes, if tensors to load do not fit."""
    model = build_without_memory(spec, trust_class_paths=trust_class_paths)
    if model is None:
        return  # a warning said so; loading compares the shapes again
    wanted = start.wanted()
    expected = {name: tensor for name, tensor in model.state_dict().items() if wanted(name)}
    differing = differing_names(expected, {name: shape for name, shape in weight_shapes(start.directory).items() if wanted(name)})
    if not any(differing):
        return
    if not start.changed:
        raise CheckpointError(f"'{start.directory}' has the weights of another model: {differing}")
    parts = sorted({name.partition(".")[0] for names in differing for name in names})
    raise SpecError(
        f"model.start: the weights of '{start.name}' do not fit {'; '.join(start.changed)}: {differing}. Leave these "
        "keys out" + ("" if "backbone" in parts else f", or name {', '.join(parts)} in model.start_fresh")
    )


def _rows(tensor: Tensor) -> tuple[Tensor, int]:
    part = local_slice(tensor, rank=0)
    return part.values, part.start
