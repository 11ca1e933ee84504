"""Stages of a chain are trained by their own specs, and the chain takes their run directories."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_run import measured

from soundomni import Chain, Kept
from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError, PluginError, SpecError
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import load_spec
from soundomni.core.waveform import Audio
from soundomni.train.memory.diagnosis import diagnose
from soundomni.train.run import run_training
from soundomni.train.stages import load_chain
from soundomni.vae.quantizers.settings import QuantizerSettings
from soundomni.vae.soundstream import SoundStreamCodec

SIZES: dict[str, Any] = {"sample_rate": 8000, "base_channels": 2, "channel_multiples": [1, 2], "strides": [8, 16], "latent_dim": 4}
LEVELS = {"semantic": 1, "acoustic": 3}
MADE = """
backbone: {class_path: mot, init_args: {hidden_dim: 16, num_layers: 1, num_heads: 2}}
router: modality
tokenizer: {vocab_size: 300}
"""
DATA = """
datasets:
  toys:
    source: {class_path: toy-sounds, init_args: {size: 32, seconds: 0.4, events: [1, 1]}}
    tasks: {generate: 2, continue: 1}
tokens_per_batch: 512
lookahead: 4
workers: 1
condition_dropout: {latent: 0.2}
"""
TRAIN = {
    "steps": 8,
    "optimizer": {"lr": 1e-2, "eps": 1e-8},
    "schedule": {"warmup_steps": 1},
    "ema_decay": 0.5,
    "log_every": 1,
    "save_every": 4,
    "threads": 1,
    "validation": None,
}


def quantizer(levels: int) -> dict[str, Any]:
    return {"method": "fsq", "num_levels": levels, "steps": [3, 3]}


def part(of: str, weights: Path, objective: dict[str, Any] | None = None) -> dict[str, Any]:
    """A modality with the codec of the semantic or the acoustic codes, which is made if it has an objective."""
    arguments = {**SIZES, "quantizer": quantizer(LEVELS[of]), "weights": str(weights)}
    found: dict[str, Any] = {"codec": {"class_path": "soundstream", "init_args": arguments}, "connector": "codes"}
    if objective is None:
        return found
    sampler = {"autoregressive": "next-token", "masked": {"class_path": "maskgit", "init_args": {"iterations": [2, 1]}}}
    return found | {"objective": objective, "sampler": sampler[objective["class_path"]]}


def specs(folder: Path) -> dict[str, dict[str, Any]]:
    """The specs of three stages; their codecs have random weights that all of them share."""
    weights = {}
    for seed, (name, levels) in enumerate(LEVELS.items()):
        torch.manual_seed(seed)
        codec = SoundStreamCodec(**SIZES, quantizer=QuantizerSettings(**quantizer(levels)))
        weights[name] = folder / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in codec.state_dict().items()}, weights[name])
    semantic, text = weights["semantic"], [{"text": "{caption}"}]
    coarse = {"class_path": "autoregressive", "init_args": {"levels": [0, 2]}}
    parts: dict[str, Any] = {
        "semantic": ({"semantic": part("semantic", semantic, {"class_path": "autoregressive", "init_args": {}})}, text),
        "coarse": (
            {"semantic": part("semantic", semantic), "acoustic": part("acoustic", weights["acoustic"], coarse)},
            [*text, {"audio": "context", "of": "semantic"}],
        ),
        "fine": ({"acoustic": part("acoustic", weights["acoustic"], {"class_path": "masked", "init_args": {"levels": [2, 3]}})}, []),
    }
    made, data = yaml_text.parse(MADE, "model"), yaml_text.parse(DATA, "data")
    return {
        name: {
            "model": {**made, "modalities": modalities, "prompt": prompt},
            "data": data,
            "train": {**TRAIN, "run_dir": str(folder / "runs" / name)},
        }
        for name, (modalities, prompt) in parts.items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of three stages, and a spec that chains them."""
    folder = tmp_path_factory.mktemp("stages")
    for spec in specs(folder).values():
        assert run_training(load_spec([spec])).finished
    (folder / "chain.yaml").write_text("stages: {semantic: runs/semantic, coarse: runs/coarse, fine: runs/fine}\n")
    return folder


@pytest.mark.parametrize(("name", "loss"), [("semantic", "autoregressive"), ("coarse", "autoregressive"), ("fine", "masked")])
def test_each_stage_learns_and_resumes_bit_exactly(trained: Path, tmp_path: Path, name: str, loss: str) -> None:
    values = [line[f"loss/{loss}"] for line in measured(trained / "runs" / name) if f"loss/{loss}" in line]
    assert len(values) == 8 and np.mean(values[-2:]) < np.mean(values[:2]), values
    copy = Path(shutil.copytree(trained / "runs" / name, tmp_path / "copy"))
    spec = specs(trained)[name]
    spec["train"]["run_dir"] = str(copy)
    assert run_training(load_spec([spec]), from_step=4).step == 8
    expected, found = (
        load_file(path / "checkpoints" / "step-00000008" / "rank-00000.safetensors") for path in (trained / "runs" / name, copy)
    )
    assert expected.keys() == found.keys() and all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_the_memory_of_each_stage_is_estimated(trained: Path) -> None:
    for spec in specs(trained).values():
        found = diagnose(load_spec([spec]), gpus=1, gpu_memory=1 << 34, seconds=0.4, text_tokens=4)
        assert found.complete and found.fits


def test_a_chain_takes_run_directories_and_is_exported(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = load_chain(trained / "chain.yaml")
    tone = Audio((0.3 * np.sin(np.arange(3000)[None] / 5)).astype(np.float32), 11025)
    made = stages.make(["a C4 sine", "a click"], seconds=0.4, known=Kept(tone, [(0.0, 0.2)]))
    for coarse, fine in zip(made["coarse"], made["fine"], strict=True):
        assert fine.values.shape[1] == 3 and torch.equal(fine.values[:, :2], coarse.values)
    saved = Chain.from_pretrained(stages.save_pretrained(trained / "saved"))
    for ours, theirs in zip(stages.generate("a click", seconds=0.4), saved.generate("a click", seconds=0.4), strict=True):
        assert np.array_equal(ours.waveform, theirs.waveform)
    options = ["--prompt", "a click", "--seconds", "0.4", "--no-pictures", "--out", str(trained / "out")]
    assert main(["--json", "generate", "--model", str(trained / "chain.yaml"), *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["clips"]) == 1
    with pytest.raises(SpecError, match="stages.fine: sampler cannot be changed in the run .*Export it, and name the model directory"):
        load_chain(trained / "chain.yaml", overrides={"stages.fine.sampler": "maskgit"})
    with pytest.raises(CheckpointError, match="is a run directory, not a model directory. Export it"):
        Chain.from_pretrained(trained / "chain.yaml")


EVIL = """
from pathlib import Path
from soundomni.flow import NextTokenSampler as Evil

Path("was-run").touch()
"""


@pytest.mark.parametrize("hidden", [["lock.json"], ["checkpoints"], []])
def test_a_chain_from_a_stranger_runs_no_code_of_theirs(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: list[str]
) -> None:
    """A directory holds models and no runs, whatever is in its stages and whatever its user trusts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    (tmp_path / "evilmod.py").write_text(EVIL)
    folder = Path("theirs")
    for name in ("semantic", "coarse", "fine"):
        shutil.copytree(trained / "runs" / name, folder / name)
    spec = folder / "semantic" / "spec.yaml"
    spec.write_text(spec.read_text().replace("next-token", "evilmod.Evil"))
    for name in hidden:
        found = folder / "semantic" / name
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    (folder / "spec.yaml").write_text("stages: {semantic: semantic, coarse: coarse, fine: fine}\n")
    for trust in (True, False):
        with pytest.raises((CheckpointError, SpecError, PluginError)):
            load_chain(folder, trust_class_paths=trust)
    assert main(["generate", "--trust-class-paths", "--model", "theirs", "--prompt", "one", "--out", "out"]) == 2
    assert not Path("was-run").exists() and not Path("out").exists()
    if hidden == ["lock.json"]:  # a spec of one's own may name such runs, if one trusts them
        Path("mine.yaml").write_text("stages: {semantic: theirs/semantic, coarse: theirs/coarse, fine: theirs/fine}\n")
        assert load_chain("mine.yaml", trust_class_paths=True) and Path("was-run").exists()
