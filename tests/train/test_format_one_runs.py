"""Runs whose checkpoints an earlier version wrote, with the names of format 1, go on and are exported."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_run import measured
from tiny_spec import tiny_spec

from soundomni.core.errors import CheckpointError
from soundomni.train.export import load_run
from soundomni.train.run import run_training
from soundomni.train.shards import ShardReader

FIRST_NAMES = {
    "modalities.latent.codec.": "codec.",
    "modalities.latent.connector.": "latent_connector.",
    "modalities.latent.normalizer.": "normalizer.",
    "modalities.features.encoder.": "encoder.",
    "modalities.features.connector.": "features_connector.",
}


def first_name(name: str) -> str:
    """The name that a tensor of a checkpoint had in format 1, behind model/, ema/ or optimizer/."""
    prefix, _, own = name.partition("/")
    for new, old in FIRST_NAMES.items():
        if own.startswith(new):
            return f"{prefix}/{old}{own.removeprefix(new)}"
    return name


def rename(checkpoint: Path, to: dict[str, str] | None = None) -> None:
    """Rename the tensors of every rank, in its file and in its index, and the digests that the manifest has of them."""
    for file in checkpoint.glob("rank-*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        names = {name: first_name(name) if to is None else to.get(name, name) for name in tensors}
        save_file({names[name]: tensor for name, tensor in tensors.items()}, file)
        index = file.with_suffix(".json")
        tree = json.loads(index.read_text())
        tree["tensors"] = {names[name]: place for name, place in tree["tensors"].items()}
        index.write_text(json.dumps(tree))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        entry["bytes"] = (checkpoint / name).stat().st_size
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def split(checkpoint: Path) -> None:
    """Split the file of one rank in two, as two ranks write it: each has half of the rows."""
    tensors = {name: tensor.clone() for name, tensor in load_file(checkpoint / "rank-00000.safetensors").items()}
    tree = json.loads((checkpoint / "rank-00000.json").read_text())
    for rank in range(2):
        half: dict[str, torch.Tensor] = {}
        places = {}
        for name, tensor in tensors.items():
            middle = (len(tensor) + 1) // 2 if tensor.ndim else 0
            if tensor.ndim == 0 and rank:
                continue
            part = tensor if tensor.ndim == 0 else tensor[middle * rank : middle * (rank + 1) or None]
            if part.numel() or tensor.ndim == 0:
                half[name] = part.clone()
                places[name] = {"shape": list(tensor.shape), "start": middle * rank}
        save_file(half, checkpoint / f"rank-{rank:05d}.safetensors")
        (checkpoint / f"rank-{rank:05d}.json").write_text(json.dumps({**tree, "tensors": places}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, saved after three."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    assert run_training(tiny_spec(run_dir)).finished
    return run_dir


def tensors(run_dir: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"))


def test_a_run_of_format_1_goes_on_bit_for_bit(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    rename(copy / "checkpoints" / "step-00000003")
    stored = tensors(copy, 3)
    assert {name.split("/")[0] for name in stored if "latent_connector." in name} == {"model", "ema", "optimizer"}
    assert not any("modalities." in name for name in stored)
    assert run_training(tiny_spec(copy), from_step=3).step == 6
    expected, found = tensors(run), tensors(copy)
    assert expected.keys() == found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert measured(copy)[-3:] == measured(run)[-3:]


@pytest.mark.parametrize("average", [True, False])
def test_a_run_of_format_1_is_exported(run: Path, tmp_path: Path, average: bool) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    rename(copy / "checkpoints" / "step-00000006")
    old, new = (load_run(path, average=average)[0] for path in (copy, run))
    expected = new.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in old.model.state_dict().items())
    clips = [one.generate("a sine", seconds=0.2, seeds=1)[0].waveform for one in (old, new)]
    assert np.array_equal(*clips)


def test_slices_of_several_ranks_are_read_under_their_present_names(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run / "checkpoints" / "step-00000006", tmp_path / "step"))
    split(copy)
    rename(copy)
    reader = ShardReader(copy, 2)
    reader.check()
    expected = tensors(run)
    assert reader.names == sorted(expected)
    for name, tensor in expected.items():
        target = torch.zeros_like(tensor)
        reader.read_into(name, target)
        assert torch.equal(target, tensor), name


def test_names_of_neither_format_or_of_both_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    name = "model/modalities.latent.connector.inward.weight"
    wrong = Path(shutil.copytree(run, tmp_path / "wrong"))
    rename(wrong / "checkpoints" / "step-00000003", {name: "model/latent_conector.inward.weight"})
    with pytest.raises(CheckpointError, match="belongs to another model: 1 tensor missing, 1 tensor unexpected") as caught:
        run_training(tiny_spec(wrong), from_step=3)
    assert "\n" not in str(caught.value)
    both = Path(shutil.copytree(run / "checkpoints" / "step-00000003", tmp_path / "both"))
    rename(both)
    rename(both, {"ema/latent_connector.inward.weight": name})
    with pytest.raises(CheckpointError, match=f"'model/latent_connector.inward.weight' and '{name}'.* the same tensor") as caught:
        ShardReader(both, 1)
    assert "\n" not in str(caught.value)
