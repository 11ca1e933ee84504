"""`soundomni import`: the weights of others become a codec that specs can name, or nothing is written and one line says why."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from stable_audio_files import (
    SIZES,
    assert_same,
    audio_vae,
    diffusers_config,
    flat,
    full_model,
    tiny_codec,
    whole_model,
    write_json,
    write_layout,
)

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec
from soundomni.vae import OobleckCodec

CONFIGS = {
    "stable-audio-vae": audio_vae(),
    "unwrapped": audio_vae(),
    "full-model": whole_model(),
    "training-average": audio_vae(),
    "training": audio_vae(),
    "diffusers-oobleck": diffusers_config(),
}


def imported(folder: Path) -> OobleckCodec:
    """The codec that codec.yaml names."""
    slot = yaml.safe_load((folder / "codec.yaml").read_text())["model"]["codec"]
    assert slot["class_path"] == "oobleck"
    return OobleckCodec(**slot["init_args"])


@pytest.mark.parametrize("layout", list(CONFIGS))
def test_every_layout_becomes_a_codec_that_is_equal_to_the_bit(tmp_path: Path, wav: Path, result: Any, layout: str) -> None:
    source, out = tiny_codec(seed=4), tmp_path / "out"
    path = write_layout(layout, source, tmp_path / "source")
    config = write_json(CONFIGS[layout], tmp_path / "c.json")
    made = result("import", "stable-audio-vae", path, "--config", config, "--out", out, "--check", wav, "--license", "mine")
    assert_same(source, imported(out))
    assert {entry.name for entry in out.iterdir()} == {"model.safetensors", "codec.yaml", "import-report.json", "README.md"}
    state, tensors = source.state_dict(), load_file(out / "model.safetensors")
    assert state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)
    report = json.loads((out / "import-report.json").read_text())
    (file,) = report["source"]["files"].items()
    content = next((tmp_path / "source").iterdir()).read_bytes()
    assert file[1] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert report["layout"] == made["layout"] and report["codec"]["init_args"] == SIZES and report["license"] == "mine"
    assert made["keys"] == {"used": len(report["keys"]["used"]), "unused": len(report["keys"]["unused"])}
    assert {name for names in report["keys"]["used"].values() for name in names} == set(state)
    card = (out / "README.md").read_text()
    assert "license: other\nlicense_name: mine" in card and file[1]["sha256"] in card and "base_channels: 4" in card
    assert made["check"].keys() >= {"file", "si_sdr", "stft_distance", "mel_distance", "si_sdr_file", "codec_sample_rate"}
    assert np.isfinite([made["check"]["si_sdr"], made["check"]["si_sdr_file"]]).all()


def test_the_check_measures_what_the_codec_does(tmp_path: Path, result: Any) -> None:
    path = write_layout("stable-audio-vae", tiny_codec(), tmp_path / "source")
    clip = 0.3 * np.random.default_rng(0).standard_normal((2, 4003)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", clip.T, 8000, subtype="FLOAT")
    arguments = ("import", "stable-audio-vae", path, "--config", write_json(audio_vae(), tmp_path / "c.json"), "--out", tmp_path / "out")
    made = result(*arguments, "--check", tmp_path / "clip.wav")["check"]
    with torch.no_grad():
        codec = imported(tmp_path / "out")
        decoded = codec.decode(codec.encode(torch.from_numpy(clip)[None], torch.tensor([4003])))[0, :, :4003].double().numpy()
    gain = (clip * decoded).sum(1) / (clip.astype(np.float64) ** 2).sum(1)
    ratio = ((gain[:, None] * clip) ** 2).sum(1) / ((decoded - gain[:, None] * clip) ** 2).sum(1)
    assert made["si_sdr"] == pytest.approx((10 * np.log10(ratio)).mean(), abs=0.01)


def test_a_model_trains_with_an_imported_codec(tmp_path: Path, tiny_spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_layout("diffusers-oobleck", tiny_codec(), tmp_path / "source")
    write_json(diffusers_config(), path / "config.json")
    out, run, model = tmp_path / "vae", tmp_path / "run", tmp_path / "model"
    assert main(["import", "stable-audio-vae", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "layout diffusers-oobleck" in text and "the config is config.json, found next to the weights" in text
    spec = load_spec([tiny_spec, out / "codec.yaml"])
    assert spec.model.codec.init_args["weights"] == str((out / "model.safetensors").resolve())
    layers = ["--config", str(tiny_spec), "--config", str(out / "codec.yaml")]
    assert main(["train", *layers, f"--train.run_dir={run}", "--train.steps=1", "--data.tokens_per_batch=1024"]) == 0
    assert main(["export", str(run), "--out", str(model)]) == 0
    held = load_file(model / "model.safetensors")
    state = tiny_codec().state_dict()
    assert all(torch.equal(held[f"modalities.latent.codec.{name}"], state[name]) for name in state)


def test_without_a_config_sizes_come_from_tensors_and_what_is_assumed_is_said(tmp_path: Path, result: Any) -> None:
    path = write_layout("full-model", tiny_codec(sample_rate=44100), tmp_path / "source")
    made = result("import", "stable-audio-vae", path, "--out", tmp_path / "out")
    assert made["codec"]["init_args"] == {**SIZES, "sample_rate": 44100}
    assert "the sample rate is assumed to be 44100 Hz" in made["notes"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the sample rate is assumed to be 44100 Hz" in card and "license: unknown" in card
    assert_same(tiny_codec(sample_rate=44100), imported(tmp_path / "out"))


class Runs:
    """Unpickling this makes a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def another_model(folder: Path) -> Path:
    save_file({"language_model.model.embed_tokens.weight": torch.zeros(3, 2)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def with_code(folder: Path) -> Path:
    torch.save({"state_dict": flat(tiny_codec()), "hook": Runs(folder / "ran")}, folder / "x.ckpt")
    return folder / "x.ckpt"


def truncated(folder: Path) -> Path:
    save_file(flat(tiny_codec()), folder / "x.safetensors")
    content = (folder / "x.safetensors").read_bytes()
    (folder / "x.safetensors").write_bytes(content[: len(content) // 2])
    return folder / "x.safetensors"


def missing_shard(folder: Path) -> Path:
    names = sorted(flat(tiny_codec()))
    table = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    write_json({"weight_map": table}, folder / "model.safetensors.index.json")
    tensors = flat(tiny_codec())
    save_file({name: tensors[name] for name in names[::2]}, folder / "model-00001-of-00002.safetensors")
    return folder


def other_widths(folder: Path) -> Path:
    save_file(full_model(tiny_codec(base_channels=3)), folder / "x.safetensors")
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (another_model, "does not hold Stable Audio's autoencoder; expected tensors such as encoder.layers.1."),
        (with_code, f"is a pickle with code in it: it asks for '{os.mkdir.__module__}.mkdir'"),
        (truncated, "cannot be read as safetensors; it is damaged or incomplete"),
        (missing_shard, "lacks 1 of 2 shards: model-00002-of-00002.safetensors"),
        (other_widths, "instead of ["),
        (lambda folder: folder / "absent.ckpt", "no weights at"),
        (lambda folder: write_json({}, folder / "weights.json"), "is not a weight file"),
    ],
)
def test_wrong_sources_end_in_one_line_and_nothing_is_written(tmp_path: Path, fails: Any, make: Any, told: str) -> None:
    folder, out = tmp_path / "source", tmp_path / "made" / "out"
    folder.mkdir()
    path = make(folder)
    config = write_json(audio_vae(), tmp_path / "c.json")
    assert told in fails("import", "stable-audio-vae", path, "--config", config, "--out", out)
    assert not out.exists() and not (tmp_path / "made").exists() and not (folder / "ran").exists()


def test_wrong_configs_end_in_one_line_and_nothing_is_written(tmp_path: Path, fails: Any) -> None:
    path, out = write_layout("stable-audio-vae", tiny_codec(), tmp_path / "source"), tmp_path / "out"

    def line(**changes: Any) -> str:
        config = write_json(audio_vae(**changes), tmp_path / "c.json")
        said: str = fails("import", "stable-audio-vae", path, "--config", config, "--out", out)
        assert not out.exists()
        return said

    assert "model.bottleneck.type is 'rvq'; expected 'vae'" in line(model__bottleneck__type="rvq")
    both = {"model__encoder__config__channels": 8, "model__decoder__config__channels": 8}
    assert "does not fit the codec's sizes" in line(**both)
    assert "expected strides from 2 to 1024" in line(
        model__encoder__config__strides=[1, 4], model__decoder__config__strides=[1, 4], model__downsampling_ratio=4
    )
    absent = tmp_path / "absent.json"
    assert "cannot be read as JSON" in fails("import", "stable-audio-vae", path, "--config", absent, "--out", out)


def test_what_lies_at_out_is_left_alone(tmp_path: Path, fails: Any, result: Any, wav: Path) -> None:
    path, out = write_layout("stable-audio-vae", tiny_codec(), tmp_path / "source"), tmp_path / "out"
    common = ("import", "stable-audio-vae", path, "--out", out)
    out.mkdir()
    result(*common)  # an empty directory is as good as none
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert "already exists; give --out a new or empty directory" in fails(*common)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert "already exists" in fails(*common[:-1], path)


def test_a_check_that_fails_writes_nothing(tmp_path: Path, fails: Any) -> None:
    path, out = write_layout("stable-audio-vae", tiny_codec(), tmp_path / "source"), tmp_path / "out"
    common = ("import", "stable-audio-vae", path, "--out", out, "--check")
    assert "cannot read" in fails(*common, tmp_path / "absent.wav")
    soundfile.write(tmp_path / "three.wav", np.zeros((800, 3)), 8000)
    assert "the clip has 3 channels; expected 2" in fails(*common, tmp_path / "three.wav")
    assert [entry.name for entry in tmp_path.iterdir() if "out" in entry.name] == []


def test_wrong_usage(tmp_path: Path, fails: Any) -> None:
    assert "stable-audio-vae" in fails("import")
    assert "the action is 'stable-audi'; expected one of" in fails("import", "stable-audi", "x", "--out", tmp_path)
    assert "does not read a spec" in fails("import", "stable-audio-vae", "x", "--out", tmp_path, "--model.codec=x")
    assert "Did you mean '--config'?" in fails("import", "stable-audio-vae", "x", "--out", tmp_path, "--confg=x")
