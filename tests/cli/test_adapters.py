"""Adapters from the command line: trained, exported alone, given to a model."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from soundomni.cli.main import main

LORA = ["--train.lora={streams: [und], rank: 2}", "--model.freeze=[gen, embedding, encoder, connectors]", "--train.optimizer.lr=0.5"]


@pytest.fixture(scope="module")
def adapter(tiny_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run of one expert's adapters was exported to; the run is beside it."""
    folder = tmp_path_factory.mktemp("adapters")
    assert main(["train", "--config", str(tiny_spec), f"--train.run_dir={folder / 'run'}", *LORA]) == 0
    assert main(["export", str(folder / "run"), "--format", "peft-adapter", "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_folder_per_stream_is_written_and_told(adapter: Path, tmp_path: Path, result: Any) -> None:
    assert sorted(str(path.relative_to(adapter)) for path in adapter.rglob("*.*")) == [
        "und/adapter_config.json",
        "und/adapter_model.safetensors",
    ]
    found = result("export", adapter.parent / "run", "--format", "peft-adapter", "--out", tmp_path / "again")
    assert found == {"run": str(adapter.parent / "run"), "step": 4, "out": str(tmp_path / "again"), "format": "peft-adapter"}
    first, second = (folder / "und" / "adapter_model.safetensors" for folder in (adapter, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes() and first.stat().st_mode == first.with_name("adapter_config.json").stat().st_mode


def test_commands_take_an_adapter(adapter: Path, tiny_model: Path, wav: Path, tmp_path: Path, result: Any) -> None:
    asked = ["describe", wav, "--model", tiny_model, "--max-tokens", "12"]
    plain, adapted = result(*asked), result(*asked, "--adapter", adapter / "und")
    assert plain["heard"][0]["text"] != adapted["heard"][0]["text"]
    made = ["generate", "--model", tiny_model, "--prompt", "noise", "--seconds", "0.2", "--no-pictures"]
    for name, more in (("plain", []), ("adapted", ["--adapter", adapter / "und"])):
        result(*made, *more, "--out", tmp_path / name)
    first, second = (next((tmp_path / name).glob("*.wav")).read_bytes() for name in ("plain", "adapted"))
    assert first != second


def test_what_an_adapter_is_worth_is_measured_and_told(adapter: Path, tiny_model: Path, result: Any) -> None:
    asked = ["evaluate", "--model", tiny_model, "--limit", "2", "--steps", "2"]
    plain, adapted = result(*asked), result(*asked, "--adapter", adapter / "und")
    assert plain["made_with"].pop("adapter") is None and plain["described"] != adapted["described"]
    told = adapted["made_with"].pop("adapter")
    files = (adapter / "und" / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    weights, config = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert told == {"name": str(adapter / "und"), "sha256": weights, "config_sha256": config}
    assert plain["made_with"] == adapted["made_with"]


def test_mistakes_are_told(adapter: Path, tiny_run: Path, tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    run = adapter.parent / "run"
    assert "is not an empty folder" in fails("export", run, "--format", "peft-adapter", "--out", adapter)
    assert "adapters are always written as float32" in fails(
        "export", run, "--format", "peft-adapter", "--dtype", "float16", "--out", tmp_path / "x"
    )
    assert "has no adapters: its spec has no train.lora" in fails("export", tiny_run, "--format", "peft-adapter", "--out", tmp_path / "x")
    generate = ["generate", "--model", tiny_model, "--prompt", "x", "--out", tmp_path / "made", "--adapter"]
    assert "Name one of its folders: und" in fails(*generate, adapter)
    assert "does not exist; expected a folder in peft's format" in fails(*generate, tmp_path / "nowhere")
    assert "is a file; expected a folder in peft's format" in fails(*generate, tiny_model / "spec.yaml")
    assert "has no adapter_config.json; expected a folder in peft's format" in fails(*generate, tiny_model)
    assert "which is not a linear layer of this model" in fails(
        "generate", "--model", "nano", "--prompt", "x", "--adapter", _foreign(adapter, tmp_path)
    )
    alone = fails(*generate[:-1], "--adapter-interval", "0:1")
    assert "--adapter-interval says when an adapter acts. Give the adapter with --adapter" in alone
    assert "expected LOW:HIGH, two timesteps from 0 to 1, such as 0:0.5" in fails(*generate, adapter / "und", "--adapter-interval", "1:0")
    line = fails(*generate, adapter / "und", "--adapter-interval", "0:0.5")
    assert "the interval of the adapter is [0, 0.5], but " in line and "does not know the timesteps of clips. Use the backbone dit" in line
    assert not (tmp_path / "x").exists() and not (tmp_path / "made").exists()


def _foreign(adapter: Path, folder: Path) -> Path:
    """An adapter of layers that no model has."""
    from safetensors.torch import load_file, save_file

    copy = folder / "foreign"
    copy.mkdir()
    (copy / "adapter_config.json").write_text(json.dumps(json.loads((adapter / "und" / "adapter_config.json").read_text())))
    tensors = load_file(adapter / "und" / "adapter_model.safetensors")
    save_file({name.replace("blocks", "layers"): tensor for name, tensor in tensors.items()}, copy / "adapter_model.safetensors")
    return copy
