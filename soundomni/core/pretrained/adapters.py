"""Adapters on disk, in peft's format.

An adapter is a folder:

| name | what it is |
|---|---|
| adapter_config.json | rank, alpha, dropout and the adapted layers, as peft's LoraConfig |
| adapter_model.safetensors | `base_model.model.<layer>.lora_A.weight` and `.lora_B.weight` of each layer |

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from soundomni.core.assembly.lora import LoRALinear, adapted_layers, add_low_rank, refuse_shared
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, did_you_mean, shown, some
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.paths import place
from soundomni.core.limits import LARGEST_SCALE
from soundomni.core.pretrained.directory import public_name
from soundomni.core.pretrained.foreign_weights import WeightFile, read_weights
from soundomni.core.pretrained.weights import check_finite, write_tensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = "lora_A.weight", "lora_B.weight"
MOST_RANK = 65_536

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


def merge_adapter_file(model: nn.Module, directory: str | Path) -> None:
    """Add the adapters in a folder that this library or peft wrote to the weights of `model`: all of them, or none on
    an error.

    Raises:
        CheckpointError: the folder is not an adapter, is not plain LoRA, or does not fit the model in names or shapes.
        SpecError: an adapted layer shares its weight with another.
    """
    path = Path(directory)
    scale, rank = _read_config(path)
    weights = read_weights(path / WEIGHTS_FILE)
    pairs = _pairs(weights, rank)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, pair in pairs.items():
        _check_fit(path, name, pair, layers, rank)
    refuse_shared(model, pairs)
    matrices = {name: (weights[pair.a], weights[pair.b]) for name, pair in pairs.items()}
    for name, (a, b) in matrices.items():
        _check_values(weights.path, name, layers[name].weight, a, b, scale=scale)
    for name, (a, b) in matrices.items():
        add_low_rank(layers[name].weight, a, b, scale=scale)


@dataclass(frozen=True)
class _Pair:
    """Names of a layer's A and B in the file, and the shape `[O, I]` of their product."""

    a: str
    b: str
    shape: tuple[int, int]


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
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    tensors = {}
    for name, layer in layers.items():
        for key, matrix in ((A, layer.lora_A.weight), (B, layer.lora_B.weight)):
            tensors[f"{PREFIX}{name}.{key}"] = matrix.detach().to("cpu", torch.float32).contiguous()
    try:
        folder.mkdir(parents=True)
        write_tensors(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter '{folder}' cannot be written: {error}") from error


def _read_config(folder: Path) -> tuple[float, int]:
    """Return alpha / r and r of a folder.

    Raise CheckpointError for anything that plain matrices A and B cannot express.
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
    if not (_is_number(rank, int) and 1 <= rank <= MOST_RANK):
        raise CheckpointError(f"'{file}': r is {shown(rank)}; expected a whole number from 1 to {MOST_RANK:,}")
    if not (_is_number(alpha, (int, float)) and 0 < alpha <= LARGEST_SCALE * rank):
        raise CheckpointError(f"'{file}': lora_alpha is {shown(alpha)}; expected a number above 0 and at most {LARGEST_SCALE:,.0f} times r")
    if initial not in INITIALIZATIONS or bias != "none":
        told = f"init_lora_weights is {shown(initial)} and bias {shown(bias)}"
        raise CheckpointError(f"'{file}': {told}; expected true and \"none\", because only plain LoRA is supported")
    others = sorted(key for key, value in rest.items() if value and key not in NO_MATTER)
    if others:
        raise CheckpointError(f"'{file}' sets {some(others)}; only plain LoRA is supported")
    return alpha / rank, rank


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _pairs(weights: WeightFile, rank: int) -> dict[str, _Pair]:
    """Return A and B of each layer in a file, by layer name. Raise CheckpointError if it holds anything else."""
    names: dict[str, dict[str, str]] = {}
    for key in weights:
        for kind in (A, B):
            if key.startswith(PREFIX) and key.endswith(f".{kind}"):
                names.setdefault(key[len(PREFIX) : -len(kind) - 1], {})[kind] = key
                break
        else:
            raise CheckpointError(f"'{weights.path}' holds '{key}'; expected only {PREFIX}<layer>.{A} and .{B}")
    pairs = {}
    for name, found in names.items():
        if len(found) < 2:
            raise CheckpointError(f"'{weights.path}' holds only one of {A} and {B} of '{name}'; expected both")
        a, b = weights.shape(found[A]), weights.shape(found[B])
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise CheckpointError(f"'{weights.path}': {A} and {B} of '{name}' are {a} and {b}; expected (r, I) and (O, r) with r = {rank}")
        pairs[name] = _Pair(found[A], found[B], (b[0], a[1]))
    if not pairs:
        raise CheckpointError(f"'{weights.path}' holds no adapter")
    return pairs


def _check_values(path: Path, name: str, weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> None:
    """Raise CheckpointError unless A and B are finite floats that are small enough for the merged weight to be finite
    as well."""
    for kind, matrix in ((A, a), (B, b)):
        if not matrix.is_floating_point():
            raise CheckpointError(f"'{path}': {kind} of '{name}' holds {str(matrix.dtype).removeprefix('torch.')}; expected floating point")
        check_finite(f"{PREFIX}{name}.{kind}", matrix, path)
    largest = float(a.abs().max()) * float(b.abs().max()) * len(a) * scale
    most = torch.finfo(weight.dtype).max / 2
    if not largest <= most:
        raise CheckpointError(f"'{path}' may change '{name}' by up to {largest:.3g}; expected at most {most:.3g}")


def _check_fit(path: Path, name: str, pair: _Pair, layers: Mapping[str, nn.Linear], rank: int) -> None:
    if name not in layers:
        raise CheckpointError(f"'{path}' adapts '{name}', which is not a linear layer of this model.{did_you_mean(name, layers)}")
    shape = tuple(layers[name].weight.shape)
    if shape != pair.shape:
        raise CheckpointError(f"'{path}' adapts '{name}' of shape {pair.shape}; expected {shape}, the shape in this model")
    if rank > max(shape):
        raise CheckpointError(f"'{path}' adapts '{name}' of shape {shape} with r = {rank}; expected at most {max(shape)}")
