"""`soundomni import bagel|soundomni` and `soundomni export --format`: in, out and in again, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_gen_files import LATENT_DIM, bagel, original, write_bagel, write_original
from safetensors.torch import load_file, save_file

from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.load import dump_spec, load_spec, spec_to_dict
from soundomni.vae.oobleck import OobleckCodec

SIZES: dict[str, Any] = {
    "sample_rate": 8000,
    "channels": 1,
    "base_channels": 2 * LATENT_DIM,
    "channel_multiples": [1, 1],
    "strides": [2, 4],
    "latent_dim": LATENT_DIM,
}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec as `import stable-audio-vae` writes it, in the folder of its codec.yaml."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    save_file(OobleckCodec(**SIZES).state_dict(), folder / "model.safetensors")
    arguments = json.dumps(SIZES | {"weights": str(folder / "model.safetensors")})
    (folder / "codec.yaml").write_text(f'model: {{"codec": {{"class_path": "oobleck", "init_args": {arguments}}}}}\n')
    (folder / "import-report.json").write_text(json.dumps({"source": {"name": "their-vae"}, "license": "Theirs"}))
    return folder


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """An imported checkpoint of the original."""
    from soundomni.cli.main import main

    folder = tmp_path_factory.mktemp("original")
    weights = write_original(folder / "source", original()) / "model.safetensors"
    assert main(["import", "soundomni", str(weights), "--out", str(folder / "model"), "--config", str(vae / "codec.yaml")]) == 0
    return folder / "model"


def test_a_codec_that_a_run_trained_leaves_without_the_model_that_the_run_started_from(vae: Path, tmp_path: Path, result: Any) -> None:
    codec = spec_to_dict(load_spec(["demo", vae / "codec.yaml"]))["model"]["codec"]
    spec = load_spec(["demo", {"model": None, "codec": {"codec": codec}}])
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    (tmp_path / "codec.safetensors").write_bytes((vae / "model.safetensors").read_bytes())
    result("export", tmp_path, "--format", "diffusers-oobleck", "--out", tmp_path / "out")
    assert list((tmp_path / "out").glob("*.safetensors"))


def test_an_original_model_generates_and_leaves_again(omni: Path, vae: Path, tmp_path: Path, result: Any) -> None:
    made = result("generate", "--model", omni, "--prompt", "a dog", "--seconds", "0.2", "--steps", "2", "--out", tmp_path / "made")
    assert len(made["clips"]) == 1
    result("export", omni, "--format", "soundomni", "--out", tmp_path / "back")
    again = result("import", "soundomni", tmp_path / "back", "--out", tmp_path / "again", "--config", vae / "codec.yaml")
    assert again["keys"]["unused"] == 1 and "beside" not in " ".join(again["notes"])
    first, second = load_file(omni / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert (omni / "spec.yaml").read_text() == (tmp_path / "again" / "spec.yaml").read_text()
    card = (omni / "README.md").read_text()
    assert "# A model of the original SoundOmni" in card and "model.generate(" in card
    origin = json.loads((omni / "config.json").read_text())
    assert origin["license"] == "unknown; of the codec: Theirs" and origin["source"] == "model.safetensors, codec their-vae"
    assert "unknown; of the codec: Theirs" in card


@pytest.mark.parametrize("layout", ["stable-audio-vae", "diffusers-oobleck"])
def test_a_codec_leaves_and_comes_back(omni: Path, vae: Path, tmp_path: Path, result: Any, layout: str) -> None:
    for source in (vae, omni):  # the codec alone, and that of a model
        out = tmp_path / source.name
        told = result("export", source, "--format", layout, "--out", out)
        assert told["format"] == layout
        result("import", "stable-audio-vae", out, "--out", tmp_path / f"{source.name}-again")
        first, second = (load_file(folder / "model.safetensors") for folder in (vae, tmp_path / f"{source.name}-again"))
        assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_model_is_written_anew_in_another_precision(omni: Path, tmp_path: Path, result: Any) -> None:
    result("export", omni, "--out", tmp_path / "half", "--dtype", "bfloat16")
    assert next(iter(load_file(tmp_path / "half" / "model.safetensors").values())).dtype == torch.bfloat16
    SoundOmni.from_pretrained(tmp_path / "half")


def test_bagel_is_imported_from_the_command_line(tmp_path: Path, result: Any, fails: Any) -> None:
    source = write_bagel(tmp_path / "source", bagel())
    made = result("import", "bagel", source, "--out", tmp_path / "out", "--license", "Apache-2.0")
    assert made["keys"]["unused"] == 7 and "codec mdct" in made["notes"][0]
    assert "latent normalizer has not been fitted" in fails(
        "generate", "--model", tmp_path / "out", "--prompt", "x", "--out", tmp_path / "made"
    )


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tiny_run: Path, vae: Path, tmp_path: Path, fails: Any) -> None:
    out = tmp_path / "out"
    assert "model.encoder is 'log-mel', but the original SoundOmni only has 'qwen2-audio'" in fails(
        "export", tiny_run, "--format", "soundomni", "--out", out
    )
    assert "only the codec oobleck can be written as diffusers-oobleck, not MDCTCodec. Choose another --format" in fails(
        "export", tiny_run, "--format", "diffusers-oobleck", "--out", out
    )
    with_tanh = (vae / "codec.yaml").read_text().replace('"latent_dim"', '"final_tanh": true, "latent_dim"')
    (tmp_path / "tanh").mkdir()
    (tmp_path / "tanh" / "codec.yaml").write_text(with_tanh)
    told = fails("export", tmp_path / "tanh", "--format", "diffusers-oobleck", "--out", out)
    assert "codec.final_tanh is True, but diffusers' autoencoder only has False; write it as stable-audio-vae" in told
    assert "--dtype float16 only applies to models" in fails(
        "export", vae, "--format", "stable-audio-vae", "--dtype", "float16", "--out", out
    )
    assert "not a run directory" in fails("export", vae, "--format", "soundomni", "--out", out)
    assert "--last only applies to run directories" in fails("export", "nano", "--last", "--out", out)
    assert "already exists" in fails("export", vae, "--format", "stable-audio-vae", "--out", vae)
    assert not out.exists()
