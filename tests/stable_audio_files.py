"""Checkpoints of Stable Audio's autoencoder, made of a tiny codec: each tensor is taken from its module and named as the layouts name it.

The names are spelled out here a second time, from the description of the layouts, and not asked of the library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from soundomni.vae import OobleckCodec, SnakeBeta

SIZES: dict[str, Any] = {
    "sample_rate": 8000,
    "channels": 2,
    "base_channels": 4,
    "channel_multiples": [1, 2],
    "strides": [2, 4],
    "latent_dim": 2,
    "final_tanh": False,
    "use_snake": True,
}


def tiny_codec(seed: int = 0, **changes: Any) -> OobleckCodec:
    """A codec whose every parameter is away from where it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = OobleckCodec(**{**SIZES, **changes})
        with torch.no_grad():
            for parameter in codec.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return codec


def modules(codec: OobleckCodec) -> list[tuple[nn.Module, str, str]]:
    """Returns (module, name in stable-audio-tools, name in diffusers) of everything with parameters."""
    found: list[tuple[nn.Module, str, str]] = []

    def residual(unit: Any, name: str, other: str) -> None:
        for j, part in enumerate(["snake1", "conv1", "snake2", "conv2"]):
            found.append((unit.layers[j], f"{name}.layers.{j}", f"{other}.{part}"))

    for coder, network in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        layers: Any = network.layers
        blocks = [layer for layer in layers if hasattr(layer, "layers")]
        found.append((layers[0], f"{coder}.layers.0", f"{coder}.conv1"))
        for i, block in enumerate(blocks, start=1):
            name, other = f"{coder}.layers.{i}", f"{coder}.block.{i - 1}"
            first_unit = 0 if coder == "encoder" else 2
            for number in (1, 2, 3):
                j = first_unit + number - 1
                residual(block.layers[j], f"{name}.layers.{j}", f"{other}.res_unit{number}")
            snake, conv = (3, 4) if coder == "encoder" else (0, 1)
            found.append((block.layers[snake], f"{name}.layers.{snake}", f"{other}.snake1"))
            found.append((block.layers[conv], f"{name}.layers.{conv}", f"{other}.{'conv1' if coder == 'encoder' else 'conv_t1'}"))
        n = len(blocks)
        found.append((layers[n + 1], f"{coder}.layers.{n + 1}", f"{coder}.snake1"))
        found.append((layers[n + 2], f"{coder}.layers.{n + 2}", f"{coder}.conv2"))
    return found


def flat(codec: OobleckCodec, *, spelling: str = "weight_g", prefix: str = "") -> dict[str, Tensor]:
    """stable-audio-tools' own names. `spelling` of a weight norm: "weight_g", "parametrizations", or "folded"."""
    tensors: dict[str, Tensor] = {}
    for module, name, _ in modules(codec):
        tensors |= {f"{prefix}{name}.{key}": value for key, value in _parameters(module, spelling).items()}
    return tensors


def diffusers(codec: OobleckCodec) -> dict[str, Tensor]:
    """diffusers' names, with its snakes of three dimensions."""
    tensors: dict[str, Tensor] = {}
    for module, _, name in modules(codec):
        for key, value in _parameters(module, "weight_g").items():
            tensors[f"{name}.{key}"] = value.reshape(1, -1, 1) if key in ("alpha", "beta") else value
    return tensors


def _parameters(module: nn.Module, spelling: str) -> dict[str, Tensor]:
    if isinstance(module, SnakeBeta):
        return {"alpha": module.alpha.detach().clone(), "beta": module.beta.detach().clone()}
    if isinstance(module, nn.ELU):
        return {}
    convolution: Any = module
    weights = convolution.parametrizations.weight
    g, v = weights.original0.detach().clone(), weights.original1.detach().clone()
    kept = {
        "weight_g": {"weight_g": g, "weight_v": v},
        "parametrizations": {"parametrizations.weight.original0": g, "parametrizations.weight.original1": v},
        "folded": {"weight": g * v / v.flatten(1).norm(dim=1).reshape(g.shape)},
    }[spelling]
    return kept if convolution.bias is None else {**kept, "bias": convolution.bias.detach().clone()}


def full_model(codec: OobleckCodec) -> dict[str, Tensor]:
    """The autoencoder beside a diffusion model and its conditioners."""
    others = {
        "model.model.timestep_features.weight": torch.randn(3, 1),
        "model.model.transformer.layers.0.self_attn.to_qkv.weight": torch.randn(6, 2),
        "conditioner.conditioners.seconds_total.embedder.embedding.0.weights": torch.randn(2),
    }
    return {**others, **flat(codec, prefix="pretransform.model.")}


def training(codec: OobleckCodec, last: OobleckCodec | None = None) -> dict[str, Any]:
    """A Lightning checkpoint: the average is `codec` when `last` is given, otherwise there is none and `codec` is the last."""
    state: dict[str, Any] = {
        "discriminator.discriminators.convs.0.weight_g": torch.randn(2, 1, 1, 1),
        "losses_gen.losses.0.decay": torch.tensor(1.0),
        **flat(last or codec, prefix="autoencoder."),
    }
    if last is not None:
        state |= {
            **flat(codec, prefix="autoencoder_ema.ema_model."),
            **flat(last, prefix="autoencoder_ema.online_model."),
            "autoencoder_ema.initted": torch.tensor(True),
            "autoencoder_ema.step": torch.tensor(7),
        }
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}
    return {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.1.0", "state_dict": state, "optimizer_states": [optimizer]}


def write_layout(layout: str, codec: OobleckCodec, folder: Path) -> Path:
    """Writes a file, or a directory, in one of the layouts, with no config beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "diffusers-oobleck":
        save_file(diffusers(codec), folder / "diffusion_pytorch_model.safetensors")
        return folder
    if layout == "full-model":
        save_file(full_model(codec), folder / "model.safetensors")
        return folder / "model.safetensors"
    name, content = {
        "stable-audio-vae": ("vae.pth", flat(codec)),
        "unwrapped": ("vae.ckpt", {"state_dict": flat(codec)}),
        "training-average": ("step=7.ckpt", training(codec, last=tiny_codec(seed=99))),
        "training": ("step=7.ckpt", training(codec)),
    }[layout]
    torch.save(content, folder / name)
    return folder / name


def audio_vae(**changes: Any) -> dict[str, Any]:
    """stable-audio-tools' config of the codec of SIZES; `changes` are dotted keys with __ for the dots."""
    coder = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
    tree: dict[str, Any] = {
        "model_type": "autoencoder",
        "sample_size": 65536,
        "sample_rate": 8000,
        "audio_channels": 2,
        "model": {
            "encoder": {"type": "oobleck", "config": {**coder, "in_channels": 2, "latent_dim": 4}},
            "decoder": {"type": "oobleck", "config": {**coder, "out_channels": 2, "latent_dim": 2, "final_tanh": False}},
            "bottleneck": {"type": "vae"},
            "latent_dim": 2,
            "downsampling_ratio": 8,
            "io_channels": 2,
        },
        "training": {"learning_rate": 1.5e-4},
    }
    return changed(tree, changes)


def whole_model(**changes: Any) -> dict[str, Any]:
    """stable-audio-tools' config of a diffusion model over that autoencoder."""
    top = audio_vae()
    pretransform = {"type": "autoencoder", "iterate_batch": True, "scale": 1.0, "config": top["model"]}
    tree = {
        **top,
        "model_type": "diffusion_cond",
        "model": {"pretransform": pretransform, "diffusion": {"type": "dit", "config": {"depth": 1}}, "io_channels": 2},
    }
    return changed(tree, changes)


def diffusers_config(**changes: Any) -> dict[str, Any]:
    """diffusers' config of the codec of SIZES."""
    tree = {
        "_class_name": "AutoencoderOobleck",
        "_diffusers_version": "0.30.0",
        "audio_channels": 2,
        "channel_multiples": [1, 2],
        "decoder_channels": 4,
        "decoder_input_channels": 2,
        "downsampling_ratios": [2, 4],
        "encoder_hidden_size": 4,
        "sampling_rate": 8000,
    }
    return changed(tree, changes)


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Sets `a__b` to a value, or takes it out for the value `...`."""
    tree = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *path, last = key.split("__") if not key.startswith("_") else [key]
        inner = tree
        for name in path:
            inner = inner.setdefault(name, {})
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return tree


def write_json(tree: Any, path: Path) -> Path:
    path.write_text(json.dumps(tree))
    return path


@torch.no_grad()
def assert_same(one: OobleckCodec, other: OobleckCodec, *, atol: float = 0.0) -> None:
    """Both encode and decode the same, to the bit unless told otherwise."""
    from soundomni.core.representation import Representation

    generator = torch.Generator().manual_seed(5)
    ratio, spec = one.spec.downsampling_ratio, one.spec
    waveform = torch.randn(2, spec.channels, 5 * ratio + 3, generator=generator)
    latent = torch.randn(2, spec.latent_dim or 0, 6, generator=generator)
    lengths = torch.tensor([5 * ratio + 3, 2 * ratio])
    assert one.spec == other.spec
    encoded, again = (codec.encode(waveform, lengths).values for codec in (one, other))
    decoded, decoded_again = (codec.decode(Representation(latent, torch.tensor([6, 3]), spec)) for codec in (one, other))
    assert encoded.abs().max() > 0.01 and decoded.abs().max() > 0.01
    torch.testing.assert_close(again, encoded, atol=atol, rtol=atol)
    torch.testing.assert_close(decoded_again, decoded, atol=atol, rtol=atol)
