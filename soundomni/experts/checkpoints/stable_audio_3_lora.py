"""Translates LoRA files of Stable Audio 3 into adapters in peft's format.

| there | here |
|---|---|
| `lora_config` in the metadata of the file: rank, alpha, adapter_type | adapter_config.json |
| `model.<layer>.parametrizations.weight.0.lora_A`, `lora_B`; for DoRA, `magnitude` too | the same matrices of our layer |
| `conditioners.seconds_total.<layer>...`, the same | the connector of seconds_total |

Stable Audio 3 applies DoRA to rows, as peft does. Its other kinds, which scale columns or need singular vectors of the
weights that the file does not hold, are refused.

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from soundomni.core.errors import CheckpointError, did_you_mean, shown
from soundomni.core.files.safe_tensors import open_tensors, readable
from soundomni.core.pretrained.adapters import CONFIG_FILE, MAGNITUDE, PREFIX, WEIGHTS_FILE, A, B
from soundomni.core.pretrained.config_sections import Section
from soundomni.core.pretrained.foreign_weights import WeightFile, read_float32, read_weights
from soundomni.core.pretrained.weights import write_tensors
from soundomni.experts.checkpoints.stable_audio_3_diffusers_layout import SECONDS
from soundomni.experts.checkpoints.stable_audio_layout import CONDITIONERS, DIT, Facts, parts_of
from soundomni.experts.sizes import MOST_LAYERS

METADATA = "lora_config"
KINDS: Mapping[str, bool] = {"lora": False, "dora-rows": True, "dora": True}
"""Kinds of adapters that are read → whether they are DoRA; "dora" is an older name, also of a kind for columns."""
OWN_NAMES = {"lora_A": A, "lora_B": B, "magnitude": MAGNITUDE}
_MARK = ".parametrizations.weight.0."
_LAYER = re.compile(r"model\.transformer\.layers\.(\d{1,4})\.")


@dataclass(frozen=True)
class ImportedLoRA:
    """The adapters in a file, none of which has been read yet.

    Args:
        weights: the file.
        rank, alpha: sizes of the adapters, which add alpha / r · B A.
        is_dora: whether rows are scaled to magnitudes.
        names: our name of a layer → our name of a matrix → its name in the file.
    """

    weights: WeightFile
    rank: int
    alpha: float
    is_dora: bool
    names: Mapping[str, Mapping[str, str]]


def read_lora(source: str | Path) -> ImportedLoRA:
    """Find the adapters in a LoRA file of Stable Audio 3.

    Raises:
        CheckpointError: it is not such a file, holds adapters of a kind or layer that cannot be read, or a matrix is
            missing or has another shape than the others say.
        SpecError: its config has an unknown key or a wrong value.
    """
    weights = read_weights(source, safe=True)
    kind, rank, alpha = _read_config(weights.path)
    layers = _layers_of(weights)
    found: dict[str, dict[str, str]] = {}
    for name in weights:
        theirs, mark, matrix = name.partition(_MARK)
        if not mark or matrix not in OWN_NAMES:
            expected = f"only <layer>{_MARK} with {', '.join(OWN_NAMES)}, the matrices of LoRA and DoRA"
            raise CheckpointError(f"'{weights.path}' holds '{name}'; expected {expected}")
        if theirs not in layers:
            near = did_you_mean(theirs, layers)
            raise CheckpointError(f"'{weights.path}' adapts '{theirs}', which is not a layer of Stable Audio 3.{near}")
        found.setdefault(layers[theirs], {})[OWN_NAMES[matrix]] = name
    if not found:
        raise CheckpointError(f"'{weights.path}' holds no adapter")
    ranks = {_check(weights, own, KINDS[kind]) for own in found.values()}
    if len(ranks) > 1 or (rank is not None and ranks != {rank}):
        told = f"adapters of the ranks {', '.join(map(str, sorted(ranks)))}"
        raise CheckpointError(f"'{weights.path}' holds {told}; expected one rank{'' if rank is None else f', {rank}'}")
    rank = ranks.pop()
    return ImportedLoRA(weights, rank, float(rank) if alpha is None else alpha, KINDS[kind], found)


def write_lora(lora: ImportedLoRA, folder: Path) -> None:
    """Write adapters into an empty folder in peft's format, in float32. Raise CheckpointError for damaged files."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "target_modules": list(lora.names),
        "bias": "none",
        "inference_mode": True,
        "use_dora": lora.is_dora,
    }
    tensors: dict[str, Tensor] = {}
    for layer, own in lora.names.items():
        for matrix, name in own.items():
            tensor = read_float32(lora.weights, name)
            tensors[f"{PREFIX}{layer}.{matrix}"] = tensor.flatten() if matrix == MAGNITUDE else tensor
    write_tensors(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_config(file: Path) -> tuple[str, int | None, float | None]:
    """Return the kind of the adapters in a file, their rank and their alpha; None for the one that follows from the
    matrices."""
    with readable(file):
        text = (open_tensors(file).metadata() or {}).get(METADATA)
    if text is None:
        raise CheckpointError(f"'{file}' has no {METADATA} in its metadata; expected a LoRA file of Stable Audio 3")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}': {METADATA} in its metadata is not JSON") from error
    config = Section(tree, METADATA)
    kind = config.take("adapter_type", str, "lora")
    rank, alpha = config.take("rank", int, None), config.take("alpha", float, None)
    config.close(unused=("dropout", "include", "exclude"))
    if kind not in KINDS:
        told = f"adapter_type of '{file}' is {shown(kind)}; expected one of {', '.join(KINDS)}"
        raise CheckpointError(f"{told}.{did_you_mean(kind, KINDS)} Other kinds cannot be written as plain LoRA or DoRA")
    return kind, rank, alpha


def _layers_of(weights: WeightFile) -> dict[str, str]:
    """Return the layers that may have adapters: name there → name here."""
    numbers = [int(match[1]) for name in weights if (match := _LAYER.match(name))]
    facts = Facts(
        num_layers=min(max(numbers, default=-1) + 1, MOST_LAYERS),
        hidden_dim=1,
        rotary_dim=1,
        crosses=True,
        global_ids=(SECONDS,),
        numbers=(),
        modulates=True,
        has_memory=True,
        norm="rms",
        head_norm="rms",
        has_frequencies=False,
        has_hints=True,
        fixed_numbers=(SECONDS,),
    )
    names = {part.source.removesuffix(".weight"): part.ours[0].removesuffix(".weight") for part in parts_of(facts)}
    starts = {DIT: "model.", CONDITIONERS: "conditioners."}
    return {
        f"{theirs}{name.removeprefix(full)}": ours
        for name, ours in names.items()
        for full, theirs in starts.items()
        if name.startswith(full)
    }


def _check(weights: WeightFile, own: Mapping[str, str], is_dora: bool) -> int:
    """Return the rank of a layer's adapter. Raise CheckpointError unless its matrices belong together."""
    wanted = {name: theirs for theirs, name in OWN_NAMES.items() if is_dora or name != MAGNITUDE}
    first = next(iter(own.values()))
    layer = first.partition(_MARK)[0]
    if own.keys() != wanted.keys():
        given = ", ".join(theirs for theirs, name in OWN_NAMES.items() if name in own)
        raise CheckpointError(f"'{weights.path}' holds {given} of '{layer}'; expected {', '.join(wanted.values())}")
    a, b = weights.shape(own[A]), weights.shape(own[B])
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        shapes = f"{list(a)} and {list(b)}; expected [r, I] and [O, r]"
        raise CheckpointError(f"'{weights.path}': lora_A and lora_B of '{layer}' have the shapes {shapes}")
    if is_dora and (shape := weights.shape(own[MAGNITUDE])) not in ((b[0],), (b[0], 1)):
        told = f"magnitude of '{layer}' has the shape {list(shape)}; expected [{b[0]}], one number for each row"
        raise CheckpointError(f"'{weights.path}': {told}. DoRA over columns cannot be read")
    return a[0]
