"""The spec of Stable Audio Open: its published sizes, and a run of it in which only the sizes are small."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import save_file
from t5_files import NUMBERS, tiny_t5
from test_run import measured

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.train.without_memory import model_without_memory

SMALL = {"sample_rate": 8000, "channels": 2, "base_channels": 2, "channel_multiples": [1, 2], "strides": [4, 8], "latent_dim": 4}


def test_the_transformer_has_the_published_size(tmp_path: Path) -> None:
    """1,056,828,544 parameters are those of the transformer with its layers around it, without conditioners and autoencoder."""
    t5 = tiny_t5(tmp_path / "t5", width=768)
    spec = resolve(load_spec(["stable-audio"], [("model.modalities.prompt.encoder.name", str(t5))]))
    model = model_without_memory(spec, trust_class_paths=False)
    parts = [*model.backbone.parameters(), *model.made().connector.parameters()]
    assert sum(parameter.numel() for parameter in parts) == 1_056_828_544
    assert sum(parameter.numel() for parameter in model.made().codec.parameters()) > 150e6
    rate, most = model.made().sample_rate, 47.5
    assert spec.data is not None and model.made().num_tokens(model.made().codec.spec.num_frames(round(most * rate))) <= 1025


def test_a_small_run_trains_measures_each_timestep_and_makes_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    music = tmp_path / "music"
    music.mkdir()
    for i in range(12):
        soundfile.write(music / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal((3000 + 500 * i, 2)), 8000)
        (music / f"{i}.json").write_text(json.dumps({"prompt": f"{NUMBERS[i % 6]} birds"}))
    save_file(build("codec", Slot("oobleck", SMALL)).state_dict(), tmp_path / "codec.safetensors")
    t5, codec = tiny_t5(tmp_path / "t5"), {**SMALL, "weights": str(tmp_path / "codec.safetensors")}
    small = [
        "--model.backbone={class_path: dit, init_args: {hidden_dim: 16, num_layers: 2, num_heads: 2, condition_dim: 8}}",
        f"--model.modalities.latent.codec={json.dumps({'class_path': 'oobleck', 'init_args': codec})}",
        "--model.modalities.latent.sampler.num_steps=2",
        f"--model.modalities.prompt.encoder.name={t5}",
        f"--data.datasets.music.source.path={music}",
        "--data.datasets.music.held_out=0.3",
        f"--train.run_dir={tmp_path / 'run'}",
        *("--train.steps=2", "--train.batches_per_step=1", "--train.validation.every=2", "--train.save_every=0", "--train.log_every=1"),
        *("--data.tokens_per_batch=1025", "--data.workers=1", "--train.threads=1"),
    ]
    assert main(["train", "--config", "stable-audio", *small]) == 0
    lines = measured(tmp_path / "run")
    for line in (lines[0], lines[-1]):
        assert {f"validation/loss/velocity@{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)} <= line.keys()
    assert "step 2: held-out velocity at timestep 0.1: " in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 0
    made = ["--prompt", "one birds", "--seconds", "0.5", "--no-pictures", "--out", str(tmp_path / "made")]
    assert main(["generate", "--model", str(tmp_path / "model"), *made]) == 0
    (clip,) = (tmp_path / "made").glob("*.wav")
    assert soundfile.read(clip)[0].shape == (4000, 2)
    encode = ["encode", "--config", "stable-audio", *small, "--out", str(tmp_path / "latents")]
    assert main(encode) == 0
    latents = "{class_path: encoded, init_args: {path: " + str(tmp_path / "latents" / "music") + "}}"
    kept = [option for option in small if "source.path" not in option and "run_dir" not in option]
    again = [*kept, f"--data.datasets.music.source={latents}", f"--train.run_dir={tmp_path / 'of'}"]
    assert main(["train", "--config", "stable-audio", *again]) == 0
    assert len(measured(tmp_path / "of")) == len(lines)
