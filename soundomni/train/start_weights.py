"""Starting from a model that exists: what is taken of it, and how its weights come into a run, each rank reading its own part.

It is looked at before the first step alone. A run that goes on has everything in its checkpoint, and in its directory the layer of the
spec that the model stood for (core/pretrained/start.py).
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
"""Parts that every rank holds whole, and that are needed before anything is sharded, to measure latents."""
ADAPTERS = ".lora_"
"""In the names of what train.lora adds to the model, all of which is new."""
CHOICES = ("start", "start_fresh", "freeze")
"""Keys of the section model that are no part of what a model is."""


@dataclass(frozen=True)
class Start:
    """A model directory whose weights fit a spec.

    Args:
        name: what the spec calls it.
        directory: where it is.
        model: what its spec says, and where its weights come from.
        fresh: parts of the model that are not taken from it.
        changed: "key: old -> new" for each key of the model that the spec says otherwise.
    """

    name: str
    directory: Path
    model: StartModel
    fresh: tuple[str, ...]
    changed: tuple[str, ...]

    def tokenizer(self) -> TextTokenizer:
        """Reads its tokenizer, whose ids are those of its embedding."""
        return TextTokenizer.load(self.directory)

    def load_whole(self, model: UnifiedModel) -> None:
        """Loads codec and latent normalisation, before anything is sharded. Raises CheckpointError."""
        load_weights(model, self.directory, wanted=self.wanted(lambda part: part in WHOLE))

    def load(self, model: nn.Module) -> None:
        """Loads all else, on each rank the rows that it holds. Raises CheckpointError."""
        load_weights(model, self.directory, wanted=self.wanted(lambda part: part not in WHOLE), part=_rows)

    def describe(self) -> str:
        """Says in one line what is taken."""
        parts = [f"starting from the weights of '{self.name}'"]
        parts += [f"new: {', '.join(self.fresh)}"] if self.fresh else []
        parts += [f"the spec changes {', '.join(self.changed)}"] if self.changed else []
        return "; ".join(parts)

    def wanted(self, choose: Callable[[str], bool] = lambda part: True) -> Callable[[str], bool]:
        """Returns what says of a tensor's name whether it is taken, and of a part to `choose`."""

        def wanted(name: str) -> bool:
            part = name.partition(".")[0]
            return part not in self.fresh and choose(part) and ADAPTERS not in name

        return wanted


def open_start(spec: Spec, *, commit: str | None = None, weights: bool = True, trust_class_paths: bool = False) -> Start | None:
    """Finds the model that a resolved spec starts from, and checks that its weights fit; None for a spec that starts from none.

    Latents are measured anew where the codec, or how latents are normalised, is not that of the model.

    Args:
        spec: it.
        commit: of the Hub that is meant; None for that of the name. It is not used for a model that is not from there.
        weights: whether they are fetched from the Hub, and their shapes compared.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        SpecError: the spec changes names or shapes of what is to be taken, the tokenizer, or the weights of a codec that is taken.
    """
    name = spec.model.start
    if name is None:
        if spec.model.start_fresh:
            raise SpecError("model.start_fresh names parts of a model to start from, but model.start names none")
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
    """Returns the resolved spec of the model itself."""
    return resolve(convert({**spec_to_dict(spec), **layer}, Spec, ""), trust_class_paths=trust_class_paths)


def _check_given(spec: Spec, codec_weights: object, tokenizer: list[str], name: str) -> None:
    if tokenizer:
        raise SpecError(
            f"model.tokenizer.{tokenizer[0]}: the tokenizer is that of model.start, '{name}', so that ids mean what they did; leave it out"
        )
    if codec_weights is not None and "codec" not in (spec.model.start_fresh or ()):
        raise SpecError(
            f"model.codec.weights: '{codec_weights}' was given, but the codec's weights are those of model.start, '{name}'; "
            "leave it out, or name codec in model.start_fresh"
        )


def _check_shapes(start: Start, spec: Spec, *, trust_class_paths: bool) -> None:
    """Raises SpecError, naming the keys that the spec changes, when tensors that are to be taken do not fit."""
    model = build_without_memory(spec, trust_class_paths=trust_class_paths)
    if model is None:
        return  # which has been logged; load compares them again
    wanted = start.wanted()
    expected = {name: tensor for name, tensor in model.state_dict().items() if wanted(name)}
    differing = differing_names(expected, {name: shape for name, shape in weight_shapes(start.directory).items() if wanted(name)})
    if not any(differing):
        return
    if not start.changed:
        raise CheckpointError(f"'{start.directory}' holds the weights of another model: {differing}")
    parts = sorted({name.partition(".")[0] for names in differing for name in names})
    raise SpecError(
        f"model.start: the weights of '{start.name}' do not fit {'; '.join(start.changed)}: {differing}; leave these keys out"
        + ("" if "backbone" in parts else f", or name {', '.join(parts)} in model.start_fresh")
    )


def _rows(tensor: Tensor) -> tuple[Tensor, int]:
    part = local_slice(tensor, rank=0)
    return part.values, part.start
