"""Adapters on disk, in peft's format.

An adapter is a folder:

| name | what it is |
|---|---|
| adapter_config.json | kind, rank, alpha, dropout and the adapted layers, as peft's LoraConfig; `timestep_interval` if there is one |
| adapter_model.safetensors | `base_model.model.<layer>.lora_A.weight` and `.lora_B.weight`; for DoRA, `.lora_magnitude_vector` too |

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from soundomni.core.assembly.dora_linear import DoRALinear, merge_scaled, row_norms
from soundomni.core.assembly.lora import KINDS, adapted_layers, open_gate, refuse_shared
from soundomni.core.assembly.lora_linear import LoRALinear, add_low_rank
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.timestep_gate import EVERYWHERE, Interval, is_interval
from soundomni.core.errors import CheckpointError, SpecError, did_you_mean, shown, some
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.paths import place
from soundomni.core.limits import LARGEST_SCALE
from soundomni.core.pretrained.directory import public_name
from soundomni.core.pretrained.foreign_weights import WeightFile, read_weights
from soundomni.core.pretrained.weights import check_dtype, check_finite, write_tensors
from soundomni.core.spec.schema import AdapterKind

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
MOST_RANK = 65_536
INTERVAL = "timestep_interval"
"""Key of the timesteps at which adapters act, which peft does not know and warns of."""

INITIALIZATIONS = (True, False, "gaussian", "orthogonal")
"""Values of peft's `init_lora_weights` that do not change the base weights; others, such as "pissa", change them before
training."""
NO_MATTER = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform"),
        *("lora_dropout", "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision"),
        *("target_modules", "task_type"),
    )
)
"""Keys of peft's config that do not affect what plain matrices A and B compute."""


def save_adapters(model: UnifiedModel, directory: str | Path, *, base: str | None = None) -> list[Path]:
    """Write the adapters of each stream to its own folder, `directory/<stream>`, in float32.

    Args:
        model: the whole model, with adapters.
        directory: a path that does not exist, or an empty folder.
        base: name or path of the model that they are for; only the last part of a path is written, as the rest is about
            this machine.

    Raises:
        CheckpointError: there are no adapters, the directory is not empty, or it cannot be written.
    """
    target, adapted = Path(directory), adapted_layers(model)
    if not adapted:
        raise CheckpointError("the model has no adapters to write; a spec with train.lora makes them")
    check_free(target)
    name = None if base is None else public_name(base)
    folders = []
    for stream in model.router.streams:
        own = {id(p) for p in model.backbone.expert_parameters(stream)}
        layers = {name: layer for name, layer in adapted.items() if id(layer.weight) in own}
        if layers:
            folders.append(target / stream)
            _write(folders[-1], layers, base=name)
    return folders


def check_free(directory: str | Path) -> None:
    """Raise CheckpointError unless `directory` is missing or an empty folder."""
    path = Path(directory)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"'{path}' is not an empty folder, and adapters never replace files. Choose another directory")


def load_adapter_file(model: nn.Module, directory: str | Path, *, interval: Interval | None = None) -> None:
    """Give a model the adapters in a folder that this library or peft wrote: all of them, or none on an error.

    They are merged into the weights, unless they only act at some timesteps.

    Args:
        model: the whole model.
        directory: the folder.
        interval: timesteps (low, high) of the flow at which they act; None for the ones in the folder, or all if it
            names none.

    Raises:
        CheckpointError: the folder is not an adapter, is not LoRA or DoRA, or does not fit the model in names or shapes; or the model
            already has adapters that are not merged.
        SpecError: an adapted layer shares its weight with another, or the model does not know the timesteps of clips.
    """
    path = Path(directory)
    if adapted_layers(model):
        raise CheckpointError(
            "the model already has adapters that only act at some timesteps, so no others can be added. Load the model again"
        )
    config = _read_config(path)
    adapters = _read_adapters(model, path, config)
    chosen = config.interval if interval is None else interval
    if chosen is None or tuple(chosen) == EVERYWHERE:
        _merge(model, adapters, config)
    else:
        _attach(model, adapters, config, chosen)


def _merge(model: nn.Module, adapters: Mapping[str, _Matrices], config: _Config) -> None:
    for name, (a, b, magnitude) in adapters.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor), "only linear layers have adapters"
        if magnitude is None:
            add_low_rank(weight, a, b, scale=config.scale)
        else:
            merge_scaled(weight, a, b, magnitude, scale=config.scale)


@torch.no_grad()
def _attach(model: nn.Module, adapters: Mapping[str, _Matrices], config: _Config, interval: Interval) -> None:
    """Put layers with adapters, which act only at some timesteps, in place of those of the model."""
    assert isinstance(model, UnifiedModel), "only such a model knows timesteps"
    streams = {
        id(parameter): index for index, stream in enumerate(model.router.streams) for parameter in model.backbone.expert_parameters(stream)
    }
    for name in adapters:
        if id(model.get_submodule(name).weight) not in streams:
            raise SpecError(
                f"the adapter of '{name}' has an interval of timesteps, but the inputs of that layer are not tokens of a stream"
            )
    gate = open_gate(model, interval, adapters, key="the interval of the adapter")
    for name, (a, b, magnitude) in adapters.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), "only linear layers have adapters"
        layer = KINDS[config.kind](linear, rank=config.rank, alpha=config.alpha)
        layer.lora_A.weight.copy_(a)
        layer.lora_B.weight.copy_(b)
        if magnitude is not None:
            cast(DoRALinear, layer).lora_magnitude.copy_(magnitude)
        layer.gate = None if gate is None else (gate, streams[id(linear.weight)])
        model.set_submodule(name, layer)


@dataclass(frozen=True)
class _Config:
    """What a folder says about its adapters: their kind, r, alpha, and the timesteps at which they act (None for
    all)."""

    kind: AdapterKind
    rank: int
    alpha: float
    interval: Interval | None = None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


_Matrices = tuple[Tensor, Tensor, Tensor | None]
"""A `[r, I]`, B `[O, r]` and, for DoRA, the magnitudes `[O]` of a layer."""


@dataclass(frozen=True)
class _Names:
    """Names of a layer's A, B and magnitudes in the file, and the shape `[O, I]` of B A."""

    a: str
    b: str
    magnitude: str | None
    shape: tuple[int, int]


def _read_adapters(model: nn.Module, path: Path, config: _Config) -> dict[str, _Matrices]:
    """Return the matrices of each adapted layer in a folder, all of which fit. Raise as `load_adapter_file`."""
    weights = read_weights(path / WEIGHTS_FILE)
    found = _find(weights, config)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, names in found.items():
        _check_fit(path, name, names, layers, config.rank)
    refuse_shared(model, found)
    read = {
        name: (weights[names.a], weights[names.b], None if names.magnitude is None else weights[names.magnitude])
        for name, names in found.items()
    }
    for name, matrices in read.items():
        _check_values(weights.path, name, layers[name].weight, matrices, scale=config.scale)
    return read


def _write(folder: Path, layers: Mapping[str, LoRALinear], *, base: str | None) -> None:
    first = next(iter(layers.values()))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": int(first.alpha) if float(first.alpha).is_integer() else first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": list(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": isinstance(first, DoRALinear),
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    if first.gate is not None:
        config[INTERVAL] = list(first.gate[0].interval)
    tensors = {}
    for name, layer in layers.items():
        parts = [(A, layer.lora_A.weight), (B, layer.lora_B.weight)]
        parts += [(MAGNITUDE, layer.lora_magnitude)] if isinstance(layer, DoRALinear) else []
        for key, matrix in parts:
            tensors[f"{PREFIX}{name}.{key}"] = matrix.detach().to("cpu", torch.float32).contiguous()
    try:
        folder.mkdir(parents=True)
        write_tensors(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter '{folder}' cannot be written: {error}") from error


def _read_config(folder: Path) -> _Config:
    """Return what a folder says about its adapters.

    Raise CheckpointError for anything that matrices A and B and magnitudes cannot express.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        near = f". Name one of its folders: {', '.join(inside)}" if inside else ""
        what = f"has no {CONFIG_FILE}" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"the adapter {place(folder)} {what}; expected a folder in peft's format{near}")
    config = read_object(file)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f'\'{file}\' is not a LoRA config; expected an object with "peft_type": "LORA"')
    rest = dict(config)
    rank, alpha = rest.pop("r", None), rest.pop("lora_alpha", None)
    initial, bias = rest.pop("init_lora_weights", True), rest.pop("bias", "none")
    kind: AdapterKind = "dora" if rest.get("use_dora") is True else "lora"
    if kind == "dora":
        del rest["use_dora"]
    interval = _read_interval(file, rest.pop(INTERVAL, None))
    if not (_is_number(rank, int) and 1 <= rank <= MOST_RANK):
        raise CheckpointError(f"'{file}': r is {shown(rank)}; expected a whole number from 1 to {MOST_RANK:,}")
    if not (_is_number(alpha, (int, float)) and 0 < alpha <= LARGEST_SCALE * rank):
        raise CheckpointError(f"'{file}': lora_alpha is {shown(alpha)}; expected a number above 0 and at most {LARGEST_SCALE:,.0f} times r")
    if initial not in INITIALIZATIONS or bias != "none":
        told = f"init_lora_weights is {shown(initial)} and bias {shown(bias)}"
        raise CheckpointError(f"'{file}': {told}; expected true and \"none\", because only plain LoRA and DoRA are supported")
    others = sorted(key for key, value in rest.items() if value and key not in NO_MATTER)
    if others:
        raise CheckpointError(f"'{file}' sets {some(others)}; only plain LoRA and DoRA are supported")
    return _Config(kind, rank, alpha, interval)


def _read_interval(file: Path, value: object) -> Interval | None:
    """Return the timesteps that a config gives, None for all. Raise CheckpointError for anything but an interval."""
    if value is None:
        return None
    ends = [end for end in value if _is_number(end, (int, float))] if isinstance(value, list) and len(value) == 2 else []
    if not is_interval(tuple(ends)):  # compared before it becomes a float, which cannot hold every integer
        raise CheckpointError(f"'{file}': {INTERVAL} is {shown(value)}; expected two numbers from 0 to 1, the lower one first")
    return None if tuple(ends) == EVERYWHERE else (float(ends[0]), float(ends[1]))


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _find(weights: WeightFile, config: _Config) -> dict[str, _Names]:
    """Return the tensors of each layer in a file, by layer name. Raise CheckpointError if the file holds anything
    else."""
    kinds = (A, B, MAGNITUDE) if config.kind == "dora" else (A, B)
    listed = f"{PREFIX}<layer>.{A} and .{B}" + (f" and .{MAGNITUDE}" if config.kind == "dora" else "")
    names: dict[str, dict[str, str]] = {}
    for key in weights:
        for kind in kinds:
            if key.startswith(PREFIX) and key.endswith(f".{kind}"):
                names.setdefault(key[len(PREFIX) : -len(kind) - 1], {})[kind] = key
                break
        else:
            raise CheckpointError(f"'{weights.path}' holds '{key}'; expected only {listed}")
    found = {}
    for name, own in names.items():
        if len(own) < len(kinds):
            missing = ", ".join(kind for kind in kinds if kind not in own)
            raise CheckpointError(f"'{weights.path}' does not hold {missing} of '{name}'; expected {listed}")
        a, b, rank = weights.shape(own[A]), weights.shape(own[B]), config.rank
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise CheckpointError(f"'{weights.path}': {A} and {B} of '{name}' are {a} and {b}; expected (r, I) and (O, r) with r = {rank}")
        if config.kind == "dora" and weights.shape(own[MAGNITUDE]) != (b[0],):
            shape = weights.shape(own[MAGNITUDE])
            raise CheckpointError(f"'{weights.path}': {MAGNITUDE} of '{name}' is {shape}; expected {(b[0],)}, one number for each row")
        found[name] = _Names(own[A], own[B], own.get(MAGNITUDE), (b[0], a[1]))
    if not found:
        raise CheckpointError(f"'{weights.path}' holds no adapter")
    return found


def _check_values(path: Path, name: str, weight: Tensor, matrices: _Matrices, *, scale: float) -> None:
    """Raise CheckpointError unless a layer's matrices are finite floats that are small enough for the merged weight to be finite
    as well."""
    a, b, magnitude = matrices
    for kind, matrix in ((A, a), (B, b), (MAGNITUDE, magnitude)):
        if matrix is None:
            continue
        check_dtype(f"{PREFIX}{name}.{kind}", matrix, path)
        check_finite(f"{PREFIX}{name}.{kind}", matrix, path)
    largest = float(a.abs().max()) * float(b.abs().max()) * len(a) * scale
    if magnitude is not None:
        largest = max(largest, float(magnitude.abs().max()))
    most = torch.finfo(weight.dtype).max / 2
    if not largest <= most:
        raise CheckpointError(f"'{path}' may change '{name}' by up to {largest:.3g}; expected at most {most:.3g}")
    if magnitude is not None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        norms = row_norms(weight.detach().to(wide), a.to(weight.device, wide), b.to(weight.device, wide), scale=scale)
        ratios = magnitude.to(weight.device, wide) / norms
        if not bool((norms > 0).all() and norms.isfinite().all() and ratios.isfinite().all()):
            raise CheckpointError(
                f"'{path}' makes rows of '{name}' zero or infinite; such rows have no direction that {MAGNITUDE} could scale"
            )


def _check_fit(path: Path, name: str, names: _Names, layers: Mapping[str, nn.Linear], rank: int) -> None:
    if name not in layers:
        raise CheckpointError(f"'{path}' adapts '{name}', which is not a linear layer of this model.{did_you_mean(name, layers)}")
    shape = tuple(layers[name].weight.shape)
    if shape != names.shape:
        raise CheckpointError(f"'{path}' adapts '{name}' of shape {names.shape}; expected {shape}, the shape in this model")
    if rank > max(shape):
        raise CheckpointError(f"'{path}' adapts '{name}' of shape {shape} with r = {rank}; expected at most {max(shape)}")
