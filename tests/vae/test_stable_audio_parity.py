"""The real packages beside ours, with random weights at the size of Stable Audio Open's autoencoder: 156 million parameters.

They are installed by `make test`; see requirements/stable-audio-tools.txt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from soundomni.core.representation import Representation
from soundomni.core.spec.registry import validate_init_args
from soundomni.core.spec.schema import Slot
from soundomni.vae.checkpoints.stable_audio import import_stable_audio_vae
from soundomni.vae.checkpoints.stable_audio_export import export_codec
from soundomni.vae.checkpoints.stable_audio_layouts import to_layout
from soundomni.vae.oobleck import OobleckCodec
from soundomni.vae.weight_norm import fold_weight_norm

pytestmark = pytest.mark.long

RATIO, FRAMES = 2048, 5
CODER = {"channels": 128, "c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8], "use_snake": True}
CONFIG: dict[str, Any] = {
    "model_type": "autoencoder",
    "sample_size": 65536,
    "sample_rate": 44100,
    "audio_channels": 2,
    "model": {
        "encoder": {"type": "oobleck", "config": {**CODER, "in_channels": 2, "latent_dim": 128}},
        "decoder": {"type": "oobleck", "config": {**CODER, "out_channels": 2, "latent_dim": 64, "final_tanh": False}},
        "bottleneck": {"type": "vae"},
        "latent_dim": 64,
        "downsampling_ratio": RATIO,
        "io_channels": 2,
    },
}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """stable-audio-tools' own autoencoder, its activations away from where they start."""
    from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

    torch.manual_seed(0)
    model: nn.Module = create_autoencoder_from_config(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.normal_(std=0.3)
    assert sum(p.numel() for p in model.parameters()) == 156_112_514
    return model


@pytest.fixture(scope="module")
def given() -> tuple[Tensor, Tensor]:
    """A waveform `[1, 2, S]` and latents `[1, 64, T]`."""
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(1, 2, FRAMES * RATIO, generator=generator), torch.randn(1, 64, FRAMES, generator=generator)


@pytest.fixture(scope="module")
def expected(theirs: nn.Module, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What stable-audio-tools encodes, its mean, and decodes."""
    model: Any = theirs
    with torch.no_grad():
        mean, _ = model.encode(given[0], skip_bottleneck=True).chunk(2, dim=1)
        return mean, model.decode(given[1])


def flat(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "vae.pth")
    return folder / "vae.pth"


def unwrapped(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": state}, folder / "vae.ckpt")
    return folder / "vae.ckpt"


def full_model(state: dict[str, Tensor], folder: Path) -> Path:
    tensors = {f"pretransform.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors | {"model.model.transformer.layers.0.ff.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def training(state: dict[str, Tensor], folder: Path) -> Path:
    average = {f"autoencoder_ema.ema_model.{name}": tensor for name, tensor in state.items()}
    last = {f"autoencoder.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": average | last, "global_step": 7}, folder / "step=7.ckpt")
    return folder / "step=7.ckpt"


def diffusers(state: dict[str, Tensor], folder: Path) -> Path:
    """Written by diffusers itself, from weights that ours gave it."""
    codec = import_stable_audio_vae(flat(state, folder), config=write_config(folder)).codec()
    (folder / "vae.pth").unlink()
    (folder / "audio_vae.json").unlink()
    other_package(codec).save_pretrained(folder / "vae")
    return folder / "vae"


def write_config(folder: Path) -> Path:
    (folder / "audio_vae.json").write_text(json.dumps(CONFIG))
    return folder / "audio_vae.json"


def other_package(codec: OobleckCodec) -> Any:
    """diffusers' autoencoder with the weights of ours."""
    from diffusers import AutoencoderOobleck

    model = AutoencoderOobleck(
        encoder_hidden_size=128,
        downsampling_ratios=[2, 4, 4, 8, 8],
        channel_multiples=[1, 2, 4, 8, 16],
        decoder_channels=128,
        decoder_input_channels=64,
        audio_channels=2,
        sampling_rate=44100,
    ).eval()
    state = to_layout(codec.state_dict(), "diffusers-oobleck")
    own = model.state_dict()  # torch's spelling of weight norm, which diffusers' version decides
    spelled = {
        name.replace("weight_g", "parametrizations.weight.original0").replace("weight_v", "parametrizations.weight.original1"): tensor
        for name, tensor in state.items()
    }
    model.load_state_dict(spelled if any("parametrizations" in name for name in own) else state)
    return model


@torch.no_grad()
def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert float(wanted.abs().max()) > 1e-3
    assert error <= 1e-5, error


@pytest.mark.parametrize("layout", [flat, unwrapped, full_model, training, diffusers])
def test_every_layout_encodes_and_decodes_as_stable_audio_tools_does(
    layout: Callable[[dict[str, Tensor], Path], Path],
    theirs: nn.Module,
    given: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    imported = import_stable_audio_vae(layout(dict(theirs.state_dict()), tmp_path))
    codec = imported.codec().eval()
    fold_weight_norm(codec)
    lengths = torch.tensor([FRAMES])
    with torch.no_grad():
        encoded = codec.encode(given[0], lengths * RATIO).values
        decoded = codec.decode(Representation(given[1], lengths, codec.spec))
    assert_close(encoded, expected[0])
    assert_close(decoded, expected[1])


def test_diffusers_loads_what_is_exported_and_agrees(
    theirs: nn.Module, given: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    from diffusers import AutoencoderOobleck

    imported = import_stable_audio_vae(flat(dict(theirs.state_dict()), tmp_path), config=write_config(tmp_path))
    (tmp_path / "out").mkdir()
    export_codec(
        imported.codec(), validate_init_args("codec", Slot("oobleck", imported.config.init_args)), tmp_path / "out", "diffusers-oobleck"
    )
    model = AutoencoderOobleck.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert_close(model.encode(given[0]).latent_dist.mode(), expected[0])
        assert_close(model.decode(given[1]).sample, expected[1])


def test_stable_audio_tools_loads_what_is_exported(theirs: nn.Module, tmp_path: Path) -> None:
    from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

    imported = import_stable_audio_vae(flat(dict(theirs.state_dict()), tmp_path), config=write_config(tmp_path))
    (tmp_path / "out").mkdir()
    export_codec(
        imported.codec(), validate_init_args("codec", Slot("oobleck", imported.config.init_args)), tmp_path / "out", "stable-audio-vae"
    )
    model = create_autoencoder_from_config(json.loads((tmp_path / "out" / "audio_vae.json").read_text()))
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
