"""LoRA files of Stable Audio 3 change an imported model as their formulas say.

No package has Stable Audio 3's classes, so the formulas and the names in its files are spelled out here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_stable_audio_3_import import checkpoint, config, imported
from torch import Tensor

from soundomni import SoundOmni
from soundomni.cli.main import main

RANK, ALPHA = 3, 6.0
DIT, CONDITIONERS = "model.model.", "conditioner.conditioners."


def layers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of all linear layers and pointwise convolutions, by their names in LoRA files."""
    own = {name: one for name, one in tensors.items() if name.endswith(".weight") and one.dim() > 1}
    found = {f"model.{name.removeprefix(DIT)}": one for name, one in own.items() if name.startswith(DIT)}
    starts = len("conditioner.")
    found |= {name[starts:]: one for name, one in own.items() if name.startswith(CONDITIONERS)}
    return {name.removesuffix(".weight"): one for name, one in found.items()}


def lora(tensors: dict[str, Tensor], *, kind: str = "lora") -> dict[str, Tensor]:
    """Random adapters of every layer, in half precision, as Stable Audio 3 stores them."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, weight in layers(tensors).items():
        start, (rows, columns) = f"{name}.parametrizations.weight.0.", weight.flatten(1).shape
        found[f"{start}lora_A"] = 0.3 * torch.randn(RANK, columns, generator=generator)
        found[f"{start}lora_B"] = 0.3 * torch.randn(rows, RANK, generator=generator)
        if kind != "lora":
            found[f"{start}magnitude"] = 0.5 + torch.rand(rows, generator=generator)
    return {name: one.half() for name, one in found.items()}


def adapted(tensors: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint with adapters: W + alpha / r · B A, whose rows have the length of their magnitudes."""
    changed = dict(tensors)
    for name, weight in layers(tensors).items():
        a, b, magnitude = (
            None if one is None else one.double()
            for one in (given.get(f"{name}.parametrizations.weight.0.{kind}") for kind in ("lora_A", "lora_B", "magnitude"))
        )
        assert a is not None and b is not None
        moved = weight.flatten(1).double() + ALPHA / RANK * b @ a
        if magnitude is not None:
            moved = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
        full = f"{DIT}{name.removeprefix('model.')}" if name.startswith("model.") else f"conditioner.{name}"
        changed[f"{full}.weight"] = moved.float().reshape(weight.shape)
    return changed


def saved(file: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    values = {"rank": RANK, "alpha": ALPHA, "adapter_type": "lora", "dropout": 0.0, "include": None, "exclude": None}
    tree = {name: value for name, value in {**values, **changes}.items() if value is not ...}
    save_file(tensors, file, metadata={"lora_config": json.dumps(tree)})
    return file


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "dora"])
@pytest.mark.parametrize("differential", [False, True])
def test_an_adapter_gives_the_weights_of_its_formula(kind: str, differential: bool, tmp_path: Path) -> None:
    tensors = checkpoint(differential=differential)
    given = lora(tensors, kind=kind)
    file = saved(tmp_path / "lora.safetensors", given, adapter_type=kind)
    assert imported(tmp_path / "plain", config(differential=differential), tensors) == 0
    assert main(["import", "stable-audio-lora", str(file), "--out", str(tmp_path / "adapter")]) == 0
    model = SoundOmni.from_pretrained(tmp_path / "plain" / "out")
    model.load_adapter(tmp_path / "adapter")
    assert imported(tmp_path / "other", config(differential=differential), adapted(tensors, given)) == 0
    wanted = load_file(tmp_path / "other" / "out" / "model.safetensors")
    before = load_file(tmp_path / "plain" / "out" / "model.safetensors")
    state = model.model.state_dict()
    assert sum(not torch.equal(before[name], wanted[name]) for name in wanted) == len(layers(tensors))
    for name, one in wanted.items():
        if one.dtype == torch.bool:
            continue  # whether the normalizer has been fitted
        torch.testing.assert_close(state[name], one, rtol=1e-5, atol=1e-5 * float(one.abs().max()), msg=name)


def test_sizes_that_the_config_omits_follow_from_the_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "lora.safetensors", lora(checkpoint()), rank=..., alpha=...)
    assert main(["import", "stable-audio-lora", str(file), "--out", str(tmp_path / "adapter"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rank"], told["alpha"], told["kind"], told["layers"]) == (RANK, RANK, "lora", len(layers(checkpoint())))


QKV = "model.transformer.layers.0.self_attn.to_qkv.parametrizations.weight.0."
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Tensor | None], str]] = {
    "another kind": ({"adapter_type": "lora-xs"}, {}, "is 'lora-xs'; expected one of lora, dora-rows, dora. Did you mean 'lora'?"),
    "columns": (
        {"adapter_type": "dora"},
        {f"{QKV}magnitude": torch.ones(1, 64)},
        "has the shape [1, 64]; expected [192], one number for each row. DoRA over columns cannot be read",
    ),
    "a key that is not known": ({"rnak": 3}, {}, "rnak"),
    "another rank": ({"rank": 4}, {}, "holds adapters of the ranks 3; expected one rank, 4"),
    "a matrix is missing": ({}, {f"{QKV}lora_B": None}, "holds lora_A of 'model.transformer.layers.0.self_attn.to_qkv'"),
    "matrices that do not fit": ({}, {f"{QKV}lora_B": torch.ones(192, 2)}, "have the shapes [3, 64] and [192, 2]"),
    "magnitudes of LoRA": ({}, {f"{QKV}magnitude": torch.ones(192)}, "expected lora_A, lora_B"),
    "singular vectors": ({}, {f"{QKV}M_xs": torch.ones(3, 3)}, "M_xs'; expected only <layer>.parametrizations.weight.0."),
    "another layer": (
        {},
        {QKV.replace("to_qkv", "to_qk") + "lora_A": torch.ones(3, 64)},
        "adapts 'model.transformer.layers.0.self_attn.to_qk', which is not a layer of Stable Audio 3. Did you mean",
    ),
}


@pytest.mark.parametrize("refused", list(REFUSED))
def test_what_cannot_be_read_is_refused_in_one_line(refused: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, tensors, told = REFUSED[refused]
    is_dora = changes.get("adapter_type") == "dora"
    given = {**lora(checkpoint(), kind="dora" if is_dora else "lora"), **tensors}
    file = saved(tmp_path / "lora.safetensors", {name: one for name, one in given.items() if one is not None}, **changes)
    assert main(["import", "stable-audio-lora", str(file), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[-1] and not (tmp_path / "out").exists()


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file(lora(checkpoint()), plain)
    (tmp_path / "bad").mkdir()
    damaged = tmp_path / "damaged.safetensors"
    save_file(lora(checkpoint()), damaged, metadata={"lora_config": "{"})
    pickle = tmp_path / "lora.ckpt"
    torch.save({"state_dict": {}}, pickle)
    for file, told in ((plain, "has no lora_config in its metadata"), (damaged, "is not JSON"), (pickle, "lora.ckpt")):
        assert main(["import", "stable-audio-lora", str(file), "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]
