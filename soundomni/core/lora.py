"""Low-rank adapters (Hu et al. 2021) on the linear layers of chosen expert streams, trained, merged, and kept in the format of peft.

An adapter of a layer W `[O, I]` computes W x + (alpha / r) · B A x with A `[r, I]` and B `[O, r]` (section 4.1). On disk it is a folder:

| name | what it is |
|---|---|
| adapter_config.json | rank, alpha, dropout and the adapted layers, as peft's LoraConfig |
| adapter_model.safetensors | `base_model.model.<layer>.lora_A.weight` and `.lora_B.weight` of each layer |

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean, shown, some
from soundomni.core.limits import LARGEST_SCALE
from soundomni.core.model import UnifiedModel
from soundomni.core.model_directory import public_name
from soundomni.core.model_weights import check_finite, write_tensors
from soundomni.core.schema import LoRASpec
from soundomni.core.small_files import read_json
from soundomni.core.weight_files import WeightFile, read_weights

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = "lora_A.weight", "lora_B.weight"
MOST_RANK = 65_536

INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Values of peft's `init_lora_weights` that leave the base weights alone; others, such as "pissa", change them before training."""
NO_MATTER = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform"),
        *("lora_dropout", "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision"),
        *("target_modules", "task_type"),
    )
)
"""Keys of peft's config that change nothing in what plain matrices A and B compute."""


class LoRALinear(nn.Linear):
    """A linear layer with an adapter: `[..., I]` → `[..., O]`. A starts random, B at zero, so that it computes what the layer did.

    Weight and bias are the layer's own parameters under their names, frozen or not as they were.

    Args:
        linear: the layer.
        rank: r.
        alpha: the adapter counts alpha / r times.
        dropout: share of the adapter's inputs that are zeroed wherever gradients are computed.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, **like)  # drawn as any linear layer, Kaiming-uniform
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` → `[..., O]`."""
        drops = self.dropout > 0 and torch.is_grad_enabled()
        adapted = functional.dropout(input, self.dropout) if drops else input
        update: Tensor = self.lora_B(self.lora_A(adapted))
        return super().forward(input) + self.alpha / self.rank * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns a plain layer that computes the same; the weight is changed in place."""
        add_low_rank(self.weight, self.lora_A.weight, self.lora_B.weight, scale=self.alpha / self.rank)
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


@torch.no_grad()
def add_low_rank(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> None:
    """Adds scale · B A to `weight` `[O, I]` in place, computed in float32 or what is wider."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = b.to(weight.device, wide) @ a.to(weight.device, wide)
    weight.copy_(weight.to(wide).add_(update, alpha=scale))


def add_adapters(model: UnifiedModel, spec: LoRASpec, *, seed: int = 0) -> None:
    """Freezes the parameters of the chosen expert streams, and gives adapters to those of their linear layers that `targets` names.

    Layers of any backbone are found: instances of nn.Linear itself within `Backbone.layers` whose weight is one of
    `Backbone.expert_parameters`. Subclasses are left alone, as their weight may be used in another way.

    Args:
        model: whole, not yet sharded; changed in place.
        spec: streams, sizes and targets.
        seed: of the adapters' first weights, which depend on nothing else.

    Raises:
        SpecError: a stream does not exist or has no layer of these names, a target names no layer, or a layer shares its weight.
    """
    layers = {stream: _linears(model, stream) for stream in _checked_streams(model, spec.streams)}
    known = {name.rpartition(".")[2] for found in layers.values() for name in found}
    chosen = {stream: [name for name in found if _is_target(name, spec.targets)] for stream, found in layers.items()}
    names = [name for found in chosen.values() for name in found]
    for target in spec.targets:
        if not any(_is_target(name, [target]) for name in names):
            near = did_you_mean(target.rpartition(".")[2], known)
            raise SpecError(f"train.lora.targets: no linear layer '{target}'.{near} The layers are {', '.join(sorted(known)) or 'none'}")
    for stream, found in chosen.items():
        if not found:
            raise SpecError(f"train.lora.streams: the stream '{stream}' has no linear layer of train.lora.targets")
    _refuse_shared(model, names)
    for stream in chosen:
        for parameter in model.backbone.expert_parameters(stream):
            parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear), "chosen above"
            model.set_submodule(name, LoRALinear(linear, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout))


def merge_adapters(model: nn.Module) -> None:
    """Adds every adapter of `model` to the weight of its layer, and puts plain layers back in place."""
    for name, layer in _adapted(model).items():
        model.set_submodule(name, layer.merged())


def check_merged(model: nn.Module) -> None:
    """Raises CheckpointError when a model has adapters, which a model directory has no place for."""
    if _adapted(model):
        raise CheckpointError("the model has adapters, which a model directory cannot hold: call merge_adapters first, or save_adapters")


def save_adapters(model: UnifiedModel, directory: str | Path, *, base: str | None = None) -> list[Path]:
    """Writes the adapters of each stream as a folder of its own, `directory/<stream>`, in float32.

    Args:
        model: with adapters, whole.
        directory: missing or empty.
        base: name or path of the model that they are for; of a path, only the last part is written, as the rest is about this machine.

    Raises:
        CheckpointError: there are no adapters, something is there already, or it cannot be written.
    """
    target, adapted = Path(directory), _adapted(model)
    if not adapted:
        raise CheckpointError("the model has no adapters to write: a spec with train.lora makes them")
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
    """Raises CheckpointError unless `directory` is missing or an empty folder."""
    path = Path(directory)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"'{path}' is not an empty folder, and adapters replace nothing; choose another directory")


def merge_adapter_file(model: nn.Module, directory: str | Path) -> None:
    """Adds the adapters of a folder that this library or peft wrote to the weights of `model`: all of them, or nothing on an error.

    Raises:
        CheckpointError: the folder is no adapter, is of another kind than plain LoRA, or does not fit the model in names or shapes.
        SpecError: an adapted layer shares its weight with another.
    """
    path = Path(directory)
    scale, rank = _read_config(path)
    weights = read_weights(path / WEIGHTS_FILE)
    pairs = _pairs(weights, rank)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, pair in pairs.items():
        _check_fit(path, name, pair, layers, rank)
    _refuse_shared(model, pairs)
    matrices = {name: (weights[pair.a], weights[pair.b]) for name, pair in pairs.items()}
    for name, (a, b) in matrices.items():
        _check_values(weights.path, name, layers[name].weight, a, b, scale=scale)
    for name, (a, b) in matrices.items():
        add_low_rank(layers[name].weight, a, b, scale=scale)


@dataclass(frozen=True)
class _Pair:
    """Names in the file of A and B of one layer, and the shape `[O, I]` of their product."""

    a: str
    b: str
    shape: tuple[int, int]


def _checked_streams(model: UnifiedModel, streams: Iterable[str]) -> list[str]:
    known = model.router.streams
    found = list(dict.fromkeys(streams))
    for stream in found:
        if stream not in known:
            raise SpecError(f"train.lora.streams: no expert stream '{stream}'.{did_you_mean(stream, known)} There are {', '.join(known)}")
    return found


def _linears(model: UnifiedModel, stream: str) -> dict[str, nn.Linear]:
    """Returns the plain linear layers of a stream, by their names in the model."""
    own = {id(p) for p in model.backbone.expert_parameters(stream)}
    inside = {id(module) for layer in model.backbone.layers for module in layer.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and id(module) in inside and id(module.weight) in own
    }


def _is_target(name: str, targets: Iterable[str]) -> bool:
    """As peft matches a list: the name itself, or its last parts."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _refuse_shared(model: nn.Module, names: Iterable[str]) -> None:
    """A weight that two layers share would, once merged, change both, though one alone was adapted."""
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for name in names:
        shared = holders[id(model.get_submodule(name).weight)]
        if len(shared) > 1:
            raise SpecError(f"'{shared[0]}' and '{shared[1]}' are one weight, which cannot have an adapter")


def _adapted(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


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
    """Returns alpha / r and r of a folder. Raises CheckpointError for anything that plain matrices A and B do not say."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        near = f"; name one of its folders: {', '.join(inside)}" if inside else ""
        raise CheckpointError(f"'{folder}' is not an adapter: it has no {CONFIG_FILE}{near}")
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f'\'{file}\' is not of LoRA: expected an object with "peft_type": "LORA"')
    rest = dict(config)
    rank, alpha = rest.pop("r", None), rest.pop("lora_alpha", None)
    initial, bias = rest.pop("init_lora_weights", True), rest.pop("bias", "none")
    if not (_is_number(rank, int) and 1 <= rank <= MOST_RANK):
        raise CheckpointError(f"'{file}': r is {shown(rank)}; expected a whole number from 1 to {MOST_RANK:,}")
    if not (_is_number(alpha, (int, float)) and 0 < alpha <= LARGEST_SCALE * rank):
        raise CheckpointError(f"'{file}': lora_alpha is {shown(alpha)}; expected a number above 0 and at most {LARGEST_SCALE:g} times r")
    if initial not in INITIALISATIONS or bias != "none":
        told = f"init_lora_weights is {shown(initial)} and bias {shown(bias)}"
        raise CheckpointError(f"'{file}': {told}; expected true and \"none\", because only plain LoRA is supported")
    others = sorted(key for key, value in rest.items() if value and key not in NO_MATTER)
    if others:
        raise CheckpointError(f"'{file}' sets {some(others)}; only plain LoRA is supported")
    return alpha / rank, rank


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _pairs(weights: WeightFile, rank: int) -> dict[str, _Pair]:
    """Returns A and B of each layer of a file by the name of the layer. Raises CheckpointError when it holds anything else."""
    names: dict[str, dict[str, str]] = {}
    for key in weights:
        for kind in (A, B):
            if key.startswith(PREFIX) and key.endswith(f".{kind}"):
                names.setdefault(key[len(PREFIX) : -len(kind) - 1], {})[kind] = key
                break
        else:
            raise CheckpointError(f"'{weights.path}' holds '{key}'; expected {PREFIX}<layer>.{A} and .{B} alone")
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
    """Raise CheckpointError unless A and B are finite floats, and so small that the merged weight is finite too."""
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
        raise CheckpointError(f"'{path}' adapts '{name}', which is no linear layer of this model.{did_you_mean(name, layers)}")
    shape = tuple(layers[name].weight.shape)
    if shape != pair.shape:
        raise CheckpointError(f"'{path}' adapts '{name}' of shape {pair.shape}; this model has {shape}")
    if rank > max(shape):
        raise CheckpointError(f"'{path}' adapts '{name}' of shape {shape} with r = {rank}; expected at most {max(shape)}")
