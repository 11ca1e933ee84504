"""The codec that wraps the package stable-audio-tools, with that package; `make test` installs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from soundomni import testing
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.representation import Representation
from soundomni.vae.stable_audio_tools import StableAudioToolsCodec


def config(bottleneck: str | None = "vae", strides: tuple[int, ...] = (2, 4)) -> dict[str, Any]:
    """A tiny autoencoder's JSON."""
    coder = {"channels": 4, "c_mults": [1, 2], "strides": list(strides), "use_snake": True}
    ratio = strides[0] * strides[1]
    return {
        "model_type": "autoencoder",
        "sample_rate": 8000,
        "model": {
            "encoder": {"type": "oobleck", "config": {**coder, "in_channels": 2, "latent_dim": 6 if bottleneck == "vae" else 3}},
            "decoder": {"type": "oobleck", "config": {**coder, "out_channels": 2, "latent_dim": 3, "final_tanh": False}},
            **({"bottleneck": {"type": bottleneck}} if bottleneck else {}),
            "latent_dim": 3,
            "downsampling_ratio": ratio,
            "io_channels": 2,
        },
    }


class TestTanhOfOddStrides(testing.CodecSuite):
    def make(self) -> StableAudioToolsCodec:
        return StableAudioToolsCodec(config=config("tanh", (3, 5)))


class TestNoBottleneck(testing.CodecSuite):
    def make(self) -> StableAudioToolsCodec:
        return StableAudioToolsCodec(config=config(None))


@torch.no_grad()
def test_it_computes_what_the_package_does(tmp_path: Path) -> None:
    from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

    theirs: Any = create_autoencoder_from_config(config()).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(theirs.state_dict(), tmp_path / "vae.safetensors")
    codec = StableAudioToolsCodec(config=config(), weights=str(tmp_path / "vae.safetensors"))
    waveform, latent = torch.randn(1, 2, 80), torch.randn(1, 3, 10)
    found = codec.encode(waveform, torch.tensor([80]))
    torch.testing.assert_close(found.values, theirs.encode(waveform, skip_bottleneck=True).chunk(2, 1)[0], rtol=0, atol=0)
    decoded = codec.decode(Representation(latent, torch.tensor([10]), codec.spec))
    torch.testing.assert_close(decoded, theirs.decode(latent), rtol=0, atol=0)
    drawn = codec.encode(waveform, torch.tensor([80]), [torch.Generator().manual_seed(i) for i in range(1)]).values
    mean, scale = theirs.encode(waveform, skip_bottleneck=True).chunk(2, 1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, mean + (torch.nn.functional.softplus(scale) + 1e-4) * noise)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in config().items() if name != key}


def with_model(**changes: Any) -> dict[str, Any]:
    return config() | {"model": config()["model"] | changes}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "config has no 'model_type'; expected the JSON config of a stable-audio-tools autoencoder"),
        (without("sample_rate"), "config has no 'sample_rate'"),
        (config() | {"model_type": "diffusion_cond"}, "config.model_type is 'diffusion_cond'; expected 'autoencoder'"),
        (config("rvq"), "config.model.bottleneck.type is 'rvq'; expected one of vae, tanh, l2_norm, none"),
        (config() | {"model": {"encoder": {"type": "oobleck"}}}, "config.model.decoder.type is 'None'; expected one of oobleck"),
        (with_model(pretransform={"type": "dac_pretrained", "config": {}}), "config.model.pretransform is given; expected none"),
        (with_model(encoder={"type": "seanet", "config": {}}), "stable-audio-tools cannot build this config: "),
    ],
)
def test_what_it_cannot_wrap_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        StableAudioToolsCodec(config=given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit this AudioAutoencoder"):
        StableAudioToolsCodec(config=config(), weights=str(tmp_path / "other.safetensors"))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_audio_tools.models.autoencoders", None)
    with pytest.raises(SpecError, match=r"needs the package of that name, .*requirements/stable-audio-tools.txt"):
        StableAudioToolsCodec(config=config())
