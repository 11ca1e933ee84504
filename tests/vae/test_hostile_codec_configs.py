"""Configs of codecs with numbers that no codec has end in one line, and so do the arguments of the codecs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import same_files
from hostile_numbers import faults
from stable_audio_files import audio_vae, diffusers_config, flat, tiny_codec, write_json

from soundomni.cli.main import main
from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import SpecError
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.vae.checkpoints import same_config, stable_audio_config

CONFIGS: dict[str, tuple[Any, Callable[[Any], stable_audio_config.CodecConfig]]] = {
    "autoencoder": (audio_vae(), stable_audio_config.parse_config),
    "diffusers": (diffusers_config(), stable_audio_config.parse_config),
    "SAME small": (same_files.config(large=False), same_config.parse_config),
    "SAME large": (same_files.config(large=True), same_config.parse_config),
}
BLOCKS = {"sample_rate": 8000, "channels": 1, "base_channels": 4, "channel_multiples": [1, 2], "strides": [2, 4], "latent_dim": 2}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "oobleck": BLOCKS | {"kl_weight": 1.0},
    "soundstream": BLOCKS,
    "same": BLOCKS | {"patch_size": 4, "transformer": {"num_layers": [1, 1], "sine_layers": [0, 0], "head_dim": 4, "chunk_size": 16}},
    "dac": {"sample_rate": 8000, "strides": [2, 4]},
    "encodec": {"sample_rate": 8000, "strides": [2, 4]},
    "mimi": {"sample_rate": 8000, "strides": [2, 4]},
    "mel-magnitude": {"sample_rate": 8000, "channels": 1, "frame_size": 80, "window": 256, "num_mels": 4, "floor": 1e-6, "rounds": 2},
    "mel-codes": {"num_codebooks": 2, "codebook_size": 4, "sample_rate": 8000, "channels": 1},
    "harmonic-codes": {"num_codebooks": 2, "codebook_size": 4},
}
CRITICS: dict[str, dict[str, Any]] = {
    "complex-stft": {"window": 64, "widths": [4, 4]},
    "multi-scale-stft": {"windows": [64], "filters": 4, "dilations": [1, 2]},
    "multi-period": {"periods": [2], "widths": [4]},
    "multi-scale-waveform": {"num_scales": 1, "widths": [4, 4]},
    "multi-stft": {"windows": [64]},
}


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_no_number_of_a_config_ends_in_anything_but_one_line(kind: str) -> None:
    tree, parse = CONFIGS[kind]
    parse(tree)
    assert faults(tree, parse) == []


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_no_argument_of_a_codec_ends_in_anything_but_one_line(name: str) -> None:
    def built(arguments: Any) -> None:
        with without_memory():
            build("codec", Slot(name, arguments))

    assert faults(ARGUMENTS[name], built, values=(10**400, 10**18, 10**9, 0, -1)) == []


@pytest.mark.parametrize("name", list(CRITICS))
def test_no_argument_of_a_critic_ends_in_anything_but_one_line(name: str) -> None:
    def built(arguments: Any) -> None:
        with without_memory():
            build("critic", Slot(name, arguments), sample_rate=8000, channels=1)

    built(CRITICS[name])
    assert faults(CRITICS[name], built, values=(10**400, 10**18, 10**9, 0, -1)) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("channel_multiples", [10**9, 2], "channel_multiples is [1000000000, 2]; expected at most 16,384 everywhere, because"),
        ("channel_multiples", [2] * 100_000, "channel_multiples has 100,000 entries; expected 1 to 16"),
        ("downsampling_ratios", [10**9, 2], "downsampling_ratios is [1000000000, 2]; expected strides from 2 to 1024"),
        ("downsampling_ratios", [1024] * 16, "expected strides whose product is at most 16,777,216"),
        ("downsampling_ratios", [2] * 100_000, "downsampling_ratios has 100,000 entries; expected 1 to 16"),
        ("audio_channels", 10**9, "audio_channels is 1000000000; expected at most 1,024"),
        ("sampling_rate", 10**9, "sampling_rate is 1000000000; expected at most 1,000,000"),
        ("encoder_hidden_size", 10**9, "encoder_hidden_size is 1000000000; expected at most 65,536"),
        ("decoder_channels", float("inf"), "decoder_channels is inf; expected a finite number"),
    ],
)
def test_an_import_names_the_file_and_the_key(key: str, value: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file(flat(tiny_codec()), tmp_path / "model.safetensors")
    file = write_json(diffusers_config() | {key: value}, tmp_path / "config.json")
    assert main(["import", "stable-audio-vae", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"'{file}': " in line and told in line and not (tmp_path / "out").exists()
    assert json.loads(Path(file).read_text())["_class_name"] == "AutoencoderOobleck"


def test_a_size_that_only_torch_finds_too_large_is_told_as_such() -> None:
    with (
        pytest.raises(SpecError, match="^codec 'mimi': its sizes ask for tensors that are too large. Use smaller sizes$"),
        without_memory(),
    ):
        build("codec", Slot("mimi", {"codebook_dim": 10**18}))
