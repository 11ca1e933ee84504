"""Changing one slot on the command line trains and generates; nothing else of the spec has to follow."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main

OOBLECK = (
    "{class_path: oobleck, init_args: {sample_rate: 16000, channels: 2, base_channels: 4, "
    "channel_multiples: [1, 2], strides: [4, 16], latent_dim: 6}}"
)
SWAPS = {
    "codec oobleck": f"--model.codec={OOBLECK}",
    "codec mdct": "--model.codec={class_path: mdct, init_args: {sample_rate: 12000, channels: 2, frame_size: 100}}",
    "router dense": "--model.router=dense",
    "router top-k": "--model.router=top-k",
    "connector mlp": "--model.connectors.latent=mlp",
    "sampler dpmpp": "--sampler=dpmpp",
    "sampler rk4": "--sampler=rk4",
    "positions": "--model.latent_positions=advance",
    "narrow expert": "--model.backbone.gen_intermediate_dim=16",
    "normalisation": "--model.normalize=channel",
    "bf16": "--train.precision=bf16",
    "checkpointing": "--train.activation_checkpointing=true",
}


@pytest.mark.parametrize("name", list(SWAPS))
def test_one_option_swaps_one_part(name: str, tiny_spec: Path, tmp_path: Path) -> None:
    run, model, out = (str(tmp_path / part) for part in ("run", "model", "out"))
    swap = [SWAPS[name], *(["--train.random_codec=true"] if "oobleck" in name else [])]
    small = ["--train.steps=2", "--sampler.num_steps=2"] if "sampler" not in name else ["--train.steps=2"]
    assert main(["train", "--config", str(tiny_spec), f"--train.run_dir={run}", *swap, *small]) == 0
    assert main(["export", run, "--out", model]) == 0
    assert main(["generate", "--model", model, "--prompt", "a sine tone", "--steps", "2", "--seconds", "0.3", "--out", out]) == 0
    (wav,) = Path(out).glob("*.wav")
    waveform, rate = soundfile.read(wav, always_2d=True)
    assert len(waveform) == round(0.3 * rate) and np.isfinite(waveform).all()
    if name.startswith("codec"):
        assert waveform.shape[1] == 2 and rate in (12000, 16000)


def test_a_codec_is_trained_alone_and_then_used(tiny_spec: Path, tmp_path: Path) -> None:
    run, second = str(tmp_path / "codec-run"), str(tmp_path / "run")
    arguments = ["train", "--config", str(tiny_spec), "--train.steps=2"]
    codec = ["--model=null", f"--codec.codec={OOBLECK}", "--codec.critics.l1=l1"]
    assert main([*arguments, f"--train.run_dir={run}", *codec]) == 0
    (weights,) = Path(run).glob("*.safetensors")
    assert main([*arguments, f"--train.run_dir={second}", f"--model.codec={OOBLECK}", f"--model.codec.weights={weights}"]) == 0
    assert main(["export", second, "--out", str(tmp_path / "model")]) == 0
    weights.unlink()  # a model directory holds its codec's weights itself
    out = str(tmp_path / "out")
    assert main(["generate", "--model", str(tmp_path / "model"), "--prompt", "x", "--seconds", "0.2", "--out", out]) == 0
