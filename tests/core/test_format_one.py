"""Model directories of format 1, from when a model had one modality of each kind, are read as they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import RATE, TOKENIZER, clip, make_model, model_spec

from soundomni.core.errors import CheckpointError
from soundomni.core.files.shipped import SHIPPED
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.renamed_tensors import current_names, part_of
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.waveform import Audio

FIRST_NAMES = {
    "modalities.latent.codec.": "codec.",
    "modalities.latent.connector.": "latent_connector.",
    "modalities.latent.normalizer.": "normalizer.",
    "modalities.features.encoder.": "encoder.",
    "modalities.features.connector.": "features_connector.",
}


def first_name(name: str) -> str:
    """The name that a tensor of a model had in format 1."""
    for new, old in FIRST_NAMES.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def as_first_format(directory: Path) -> None:
    """Rewrite a model directory as an earlier version wrote it."""
    for file in directory.glob("*.safetensors"):
        save_file({first_name(name): tensor.clone() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.exists():
        tree = json.loads(index.read_text())
        tree["weight_map"] = {first_name(name): file for name, file in tree["weight_map"].items()}
        index.write_text(json.dumps(tree))
    config = json.loads((directory / "config.json").read_text())
    assert config["format"] == 2
    (directory / "config.json").write_text(json.dumps({**config, "format": 1}))
    assert "modalities" not in (directory / "spec.yaml").read_text()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = Spec(model=model_spec(sampler=Slot("euler", {"num_steps": 2})))
    return SoundOmni(make_model().float(), spec, TOKENIZER).save_pretrained(tmp_path_factory.mktemp("format") / "model")


def made(model: SoundOmni) -> tuple[bytes, list[str]]:
    texts = model.describe([Audio(clip(3, 160), RATE)], max_new_tokens=5)
    return model.generate(["one"], seconds=0.1, seeds=3)[0].waveform.tobytes(), texts


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 4000])
def test_a_directory_of_format_1_makes_the_same_bytes(saved: Path, tmp_path: Path, shard_bytes: int) -> None:
    model = SoundOmni.from_pretrained(saved)
    first = model.save_pretrained(tmp_path / "first", max_shard_bytes=shard_bytes)
    assert (len(list(first.glob("*.safetensors"))) > 1) == (shard_bytes == 4000)
    as_first_format(first)
    names = {name for file in first.glob("*.safetensors") for name in load_file(file)}
    assert not any(name.startswith("modalities.") for name in names) and any(name.startswith("latent_connector.") for name in names)
    old = SoundOmni.from_pretrained(first)
    assert made(old) == made(model)
    again = old.save_pretrained(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes(), "it is written in format 2"
    assert json.loads((again / "config.json").read_text())["format"] == 2
    old.save_pretrained(first)
    assert made(SoundOmni.from_pretrained(first)) == made(model), "an older model is replaced"


@pytest.mark.parametrize("rename", ["latent_conector.", "modality.latent.connector.", "modalities.late.connector."])
def test_names_of_neither_format_are_refused_in_one_line(saved: Path, tmp_path: Path, rename: str) -> None:
    path = Path(shutil.copytree(saved, tmp_path / "other"))
    found = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    tensors = {name.replace("modalities.latent.connector.", rename): tensor for name, tensor in found.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="holds the weights of another model: .* missing, .* unexpected") as caught:
        SoundOmni.from_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["latent_connector.inward.weight", "normalizer.mean", "features_connector.layers.0.weight"])
def test_names_of_both_formats_are_refused_in_one_line(saved: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(saved, tmp_path / "other"))
    as_first_format(path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    name = name if name in tensors else next(one for one in tensors if one.startswith(name.partition(".")[0] + "."))
    (new,) = [one for one in load_file(saved / "model.safetensors") if first_name(one) == name]
    save_file({**tensors, new: tensors[name] + 1}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"'{name}' and '{new}'.* the same tensor") as caught:
        SoundOmni.from_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", [0, 3, "1", None, [1]])
def test_other_formats_are_refused(saved: Path, tmp_path: Path, format: object) -> None:
    path = Path(shutil.copytree(saved, tmp_path / "other"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "format": format}))
    with pytest.raises(CheckpointError, match="has the format .*; this version reads the formats 1 and 2$"):
        SoundOmni.from_pretrained(path)


def test_only_whole_models_of_format_1_are_renamed() -> None:
    first = [
        "backbone.x",
        "latent_connector.inward.weight",
        "codec.y",
        "normalizer.mean",
        "ema/encoder.z",
        "optimizer/latent_connector.a/step",
    ]
    assert list(current_names(first).values()) == [
        "backbone.x",
        "modalities.latent.connector.inward.weight",
        "modalities.latent.codec.y",
        "modalities.latent.normalizer.mean",
        "ema/modalities.features.encoder.z",
        "optimizer/modalities.latent.connector.a/step",
    ]
    for others in (["encoder.x", "decoder.y"], ["latent_connector.x"], ["backbone.x", "modalities.latent.connector.y"], []):
        assert current_names(others) == {name: name for name in others}, "a codec, a part, format 2, nothing"
    assert part_of("modalities.codes.codec.quantizer.codebooks") == "codes.codec"


def test_nano_loads_under_either_format(tmp_path: Path) -> None:
    path = Path(shutil.copytree(SHIPPED / "nano", tmp_path / "nano"))
    tensors = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    assert torch.equal(
        SoundOmni.from_pretrained(path).model.state_dict()["backbone.norms.und.weight"], tensors["backbone.norms.und.weight"].float()
    )
    save_file({first_name(name): tensor for name, tensor in tensors.items()}, path / "model.safetensors", metadata={"format": "pt"})
    for name in ("spec.yaml", "README.md", "tokenizer.json"):
        assert (path / name).exists()
    old, new = SoundOmni.from_pretrained(path), SoundOmni.from_pretrained("nano")
    clips = [one.generate("a C4 sine", seconds=0.3, seeds=1, num_steps=2)[0].waveform for one in (old, new)]
    assert np.array_equal(*clips)
