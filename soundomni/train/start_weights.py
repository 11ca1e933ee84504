"""Starting from an existing model: which weights are loaded from it, each rank reading its own part.

The model is only read before the first step. A resumed run has everything in its checkpoint, and its directory keeps
the spec layer of the model (core/pretrained/start.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.pretrained.directory import find_model, hub_name, without_codec_weights
from soundomni.core.pretrained.renamed_tensors import part_of
from soundomni.core.pretrained.start import StartModel, read_start
from soundomni.core.pretrained.weights import differing_names, load_weights, weight_shapes
from soundomni.core.spec import registry
from soundomni.core.spec.load import changed_keys, resolve, spec_of, spec_to_dict
from soundomni.core.spec.schema import ModelSpec, Spec
from soundomni.core.spec.shorthand import short_keys, short_part, written_key
from soundomni.core.spec.values import plain
from soundomni.core.tokenizer import TextTokenizer
from soundomni.train.preflight import build_without_memory
from soundomni.train.shards import local_slice

WHOLE = (".codec", ".normalizer")
"""Ends of the names of parts that every rank keeps whole. They are needed before anything is sharded, to measure latents."""
PARTS = ("codec", "encoder", "connector", "normalizer", "objective")
"""Parts that a modality may have."""
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
        model: the layer of its spec, and the source of its weights.
        own: the starting model's own resolved spec.
        fresh: parts of the model that are not loaded from it.
        changed: "key: old -> new" for each key of the model that the spec changes.
        added: modalities of the spec that it does not have; all their parts are fresh.
        removed: its modalities that the spec does not have, and "critic" if only the model has one.
        short: whether parts are named in short, as in a spec in short keys.
    """

    name: str
    directory: Path
    model: StartModel
    own: Spec
    fresh: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    short: bool = True

    def tokenizer(self) -> TextTokenizer:
        """Read its tokenizer, which fits its embedding."""
        return TextTokenizer.load(self.directory)

    def load_whole(self, model: UnifiedModel) -> None:
        """Load codec and latent normalization, before anything is sharded. Raise CheckpointError on failure."""
        load_weights(model, self.directory, wanted=self.wanted(lambda part: part.endswith(WHOLE)))

    def load(self, model: nn.Module) -> None:
        """Load everything else; each rank reads only its own rows. Raise CheckpointError on failure."""
        load_weights(model, self.directory, wanted=self.wanted(lambda part: not part.endswith(WHOLE)), part=_rows)

    def describe(self) -> str:
        """Return one line that says what is loaded."""
        parts = [f"starting from the weights of '{self.name}'"]
        parts_of_old = [part for part in self.fresh if _modality(part) not in self.added]
        new = [*(map(short_part, parts_of_old) if self.short else parts_of_old), *self.added]
        parts += [f"new: {', '.join(new)}"] if new else []
        parts += [f"left out: {', '.join(self.removed)}"] if self.removed else []
        parts += [f"the spec changes {', '.join(self.changed)}"] if self.changed else []
        return "; ".join(parts)

    def wanted(self, choose: Callable[[str], bool] = lambda part: True) -> Callable[[str], bool]:
        """Return a predicate: is the tensor of this name loaded from the start model, and is its part chosen?"""

        def wanted(name: str) -> bool:
            part = part_of(name)
            return part not in self.fresh and _modality(part) not in self.removed and choose(part) and ADAPTERS not in name

        return wanted


def open_start(spec: Spec, *, commit: str | None = None, weights: bool = True, trust_class_paths: bool = False) -> Start | None:
    """Find the model that a resolved spec starts from, and check that its weights fit; None if there is no such model.

    If the spec changes the codec or the latent normalization, latents are measured again. A modality that the model does not have
    begins as it would without it, and one that the spec does not have is left out.

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
    if spec.model is None:
        return None
    name = spec.model.start
    if name is None:
        if spec.model.start_fresh:
            raise SpecError("model.start_fresh is set, but model.start is not. Set model.start, or leave model.start_fresh out")
        return None
    repository = hub_name(name)
    directory = find_model(name if commit is None or repository is None else f"{repository[0]}@{commit}", weights=weights)
    model = read_start(name, directory)
    own = _resolved_like(spec, model.layer, trust_class_paths=trust_class_paths)
    old, new = (replace(one, model=without_codec_weights(one.of_model)) for one in (own, spec))
    added = tuple(modality for modality in new.of_model.used if modality not in old.of_model.used)
    removed = tuple(modality for modality in old.of_model.used if modality not in new.of_model.used)
    if old.of_model.critic is not None and new.of_model.critic is None:
        removed = (*removed, "critic")
    chosen = spec.of_model.start_fresh or []
    latents = [f"{modality}.normalizer" for modality in _new_latents(old.of_model, new.of_model, chosen)]
    codebooks = _new_codebooks(old.of_model, new.of_model, trust_class_paths=trust_class_paths)
    critic = ["critic"] if new.of_model.critic is not None and old.of_model.critic is None else []
    fresh = tuple(dict.fromkeys((*chosen, *critic, *codebooks, *latents, *(f"{modality}.{part}" for modality in added for part in PARTS))))
    _check_given(spec, changed_keys(_model_keys(own)["tokenizer"], _model_keys(spec)["tokenizer"]), fresh, name)
    changed, short = _changed(old, new, but=(*added, *removed)), bool(short_keys(spec.of_model))
    start = Start(name, directory, model, own, fresh, changed, added, removed, short)
    if weights:
        _check_shapes(start, spec, trust_class_paths=trust_class_paths)
    return start


def _new_latents(old: ModelSpec, new: ModelSpec, fresh: Collection[str]) -> list[str]:
    """Return the modalities that both models have but whose latents are measured again."""
    both = [(name, old.used[name], one) for name, one in new.used.items() if name in old.used and one.codec is not None]
    return [name for name, was, one in both if was.codec != one.codec or was.normalize != one.normalize or f"{name}.codec" in fresh]


def _new_codebooks(old: ModelSpec, new: ModelSpec, *, trust_class_paths: bool) -> list[str]:
    """Return the codecs that measure something on the data and that the spec changes: what they have measured is no longer true."""
    both = [(name, old.used[name].codec, one.codec) for name, one in new.used.items() if name in old.used]
    changed = [(name, codec) for name, was, codec in both if codec is not None and codec != was]
    load = partial(registry.load, "codec", trust_class_paths=trust_class_paths)
    classes = [(name, cast(type[Codec], load(codec.class_path))) for name, codec in changed]
    return [f"{name}.codec" for name, cls in classes if cls.fit is not Codec.fit]


def _changed(old: Spec, new: Spec, *, but: Collection[str]) -> tuple[str, ...]:
    """Return "key: old -> new" for each key of the model that differs, except in some modalities; keys as `new` is written."""
    left_out = [f"model.{key}" for key in (*CHOICES, *(f"modalities.{modality}" for modality in but))]
    lines = changed_keys({"model": plain(old.model)}, {"model": plain(new.model)}, may_change=left_out)
    pairs = (line.partition(": ") for line in lines)
    return tuple(f"{written_key(key, new.model)}: {values}" for key, _, values in pairs)


def _modality(part: str) -> str:
    return part.partition(".")[0]


def _model_keys(spec: Spec) -> dict[str, Any]:
    return {key: value for key, value in spec_to_dict(spec)["model"].items() if key not in CHOICES}


def _resolved_like(spec: Spec, layer: Mapping[str, Any], *, trust_class_paths: bool) -> Spec:
    """Return the resolved spec of the model itself."""
    rest = {section: tree for section, tree in spec_to_dict(spec).items() if section in ("data", "train")}
    return resolve(spec_of({**rest, **layer}), trust_class_paths=trust_class_paths)


def _check_given(spec: Spec, tokenizer: list[str], fresh: Collection[str], name: str) -> None:
    if tokenizer:
        raise SpecError(
            f"model.tokenizer.{tokenizer[0]}: the tokenizer comes from model.start, '{name}', so that ids keep their meaning. Leave it out"
        )
    for modality, one in spec.of_model.used.items():
        weights = one.codec.init_args.get("weights") if one.codec is not None else None
        part = f"{modality}.codec"
        if weights is not None and part not in fresh:
            key = short_keys(spec.of_model).get(f"model.modalities.{part}", f"model.modalities.{part}")
            raise SpecError(
                f"{key}.weights: '{weights}' was given, but the codec's weights come from model.start, '{name}'. "
                f"Leave it out, or name {short_part(part)} in model.start_fresh"
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
    parts = sorted({short_part(part_of(name)) for names in differing for name in names})
    raise SpecError(
        f"model.start: the weights of '{start.name}' do not fit {'; '.join(start.changed)}: {differing}. Leave these "
        "keys out" + ("" if "backbone" in parts else f", or name {', '.join(parts)} in model.start_fresh")
    )


def _rows(tensor: Tensor) -> tuple[Tensor, int]:
    part = local_slice(tensor, rank=0)
    return part.values, part.start
