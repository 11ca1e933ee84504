"""SAME's checkpoints come in from every layout and go out again to the bit, and what is not SAME is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from same_files import LATENT, RATIO, config, tensors, whole_model, write, write_whole

from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.pretrained.foreign_weights import read_weights
from soundomni.core.representation import Representation
from soundomni.core.spec.registry import validate_init_args
from soundomni.core.spec.schema import Slot
from soundomni.vae import OobleckCodec
from soundomni.vae.checkpoints.same import import_same
from soundomni.vae.checkpoints.same_config import parse_config
from soundomni.vae.checkpoints.same_export import export_same, same_codec
from soundomni.vae.checkpoints.same_layouts import find_same, read_parameter, to_layout
from soundomni.vae.checkpoints.stable_audio import import_stable_audio_vae
from soundomni.vae.checkpoints.stable_audio_config import parse_config as parse_oobleck

BOTH = pytest.mark.parametrize("large", [False, True], ids=["small", "large"])


def outputs(codec) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    waveform, latents = (
        torch.randn(1, 2, 5 * RATIO + 3, generator=generator),
        torch.randn(1, LATENT, 5, generator=generator),
    )
    with torch.no_grad():
        encoded = codec.encode(waveform, torch.tensor([waveform.shape[-1]])).values
        return [encoded, codec.decode(Representation(latents, torch.tensor([5]), codec.spec))]


def assert_same(one, other) -> None:
    for first, second in zip(outputs(one), outputs(other), strict=True):
        assert first.abs().max() > 0.01
        torch.testing.assert_close(second, first, atol=0, rtol=0)


@BOTH
def test_every_layout_loads_to_the_bit_and_every_tensor_is_told(tmp_path: Path, large: bool) -> None:
    own = import_same(write(tmp_path / "own", tensors(large, seed=3), config(large)))
    whole = import_same(write_whole(tmp_path / "whole", large=large, seed=3) / "model.safetensors")
    save_file(tensors(large, seed=3, prefix="state_dict."), tmp_path / "unwrapped.safetensors")
    unwrapped = import_same(tmp_path / "unwrapped.safetensors", config=tmp_path / "own" / "model_config.json")
    assert [one.found.layout for one in (own, whole, unwrapped)] == ["same", "full-model", "same"]
    for one in (own, whole, unwrapped):
        assert_same(own.codec(), one.codec())
        keys = one.report()["keys"]
        assert sorted([*keys["used"], *keys["unused"]]) == sorted(one.source) and keys["missing"] == keys["unexpected"] == []
        assert sorted(name for names in keys["used"].values() for name in names) == sorted(own.state)
        assert sum(reason == "follows from the sizes" for reason in keys["unused"].values()) == 9
    assert whole.found.unused["model.model.to_cond_embed.0.weight"] == "the diffusion model"
    assert "model.diffusion" in whole.config.unused and "model.pretransform.iterate_batch" in whole.config.unused
    assert own.config.notes == (
        "the original adds noise when it decodes (bottleneck.noise_regularize, decoder.mask_noise 0.01); here it is left out, so that "
        "decoding is not random",
    )


@BOTH
def test_goes_out_under_the_names_it_came_from(tmp_path: Path, large: bool) -> None:
    imported = import_same(write(tmp_path / "source", tensors(large), config(large)))
    codec, arguments = imported.codec(), validate_init_args("codec", Slot("same", imported.config.init_args))
    (tmp_path / "out").mkdir()
    export_same(codec, arguments, tmp_path / "out", "same")
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), tensors(large)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) and written[name].shape == wanted[name].shape for name in wanted)
    again = import_same(tmp_path / "out")
    assert again.config.notes == () and again.config.init_args == imported.config.init_args
    assert_same(codec, again.codec())
    inner, tree = same_codec(codec, arguments)
    assert inner.keys() == wanted.keys() and tree["encoder"]["type"] == "same"


def test_diffusers_directories_come_and_go(tmp_path: Path) -> None:
    imported = import_same(write(tmp_path / "source", tensors(large=True), config(large=True)))
    codec = imported.codec()
    for folder in ("out", "again"):
        (tmp_path / folder).mkdir()
    export_same(codec, imported.config.init_args, tmp_path / "out", "diffusers-same")
    stored, tree = (
        load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors"),
        json.loads((tmp_path / "out/config.json").read_text()),
    )
    assert (tree["_class_name"], tree["decoder_sinusoidal_blocks"], tree["sliding_window"]) == (
        "AutoencoderSAME",
        [3],
        1,
    )
    name = "encoder.blocks.0.transformers.1.attn.to_qkv.weight"
    theirs = tensors(large=True)["encoder.layers.0.transformers.1.self_attn.to_qkv.weight"].chunk(5)
    assert torch.equal(stored[name], torch.cat([theirs[part] for part in (0, 3, 1, 4, 2)]))
    back = import_same(tmp_path / "out")
    assert back.found.layout == "diffusers-same" and back.found.unused == {}
    assert_same(codec, back.codec())
    export_same(back.codec(), back.config.init_args, tmp_path / "again", "diffusers-same")
    again = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert again.keys() == stored.keys() and all(torch.equal(again[name], stored[name]) for name in stored)


def test_parameters_can_be_read_one_by_one(tmp_path: Path) -> None:
    imported = import_same(write_whole(tmp_path))
    weights = read_weights(tmp_path)
    found = find_same(weights, imported.config.init_args)
    assert all(torch.equal(read_parameter(weights, found, name), imported.state[name]) for name in found.sources)


def test_half_precision_becomes_float32_exactly(tmp_path: Path) -> None:
    halved = {name: tensor.half() for name, tensor in tensors().items()}
    imported = import_same(write(tmp_path, halved, config()))
    assert all(tensor.dtype == torch.float32 for tensor in imported.state.values())
    assert torch.equal(imported.state["encoder.output.bias"], halved["encoder.layers.2.bias"].float())


def refused(folder: Path, stored: dict[str, torch.Tensor], tree: dict) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_same(write(folder, stored, tree))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_may_be_missing_unexpected_or_of_another_shape(tmp_path: Path) -> None:
    for name in (
        "encoder.layers.0.new_tokens",
        "bottleneck.running_std",
        "decoder.layers.3.transformers.2.rope.inv_freq",
    ):
        less = {key: tensor for key, tensor in tensors().items() if key != name}
        line = refused(tmp_path, less, config())
        assert "1 missing (" in line and " unexpected (" not in line
    line = refused(tmp_path, tensors() | {"bottleneck.extra": torch.ones(1)}, config())
    assert line.endswith("1 unexpected (bottleneck.extra)") and " missing (" not in line
    line = refused(tmp_path, tensors(large=True), config())
    assert "decoder.layers.3.mapping.weight_v [8, 16, 1] instead of [8, 16, 3]" in line
    line = refused(tmp_path, tensors() | {"bottleneck.noise_scaling_factor": torch.ones(1, 2, 1)}, config())
    assert "bottleneck.noise_scaling_factor [1, 2, 1] instead of [1, 0, 1]" in line
    line = refused(tmp_path, tensors() | {"decoder.layers.3.transformers.2.rope.inv_freq": torch.ones(2)}, config())
    assert "decoder.layers.3.transformers.2.rope.inv_freq does not have the values that follow from its sizes" in line
    line = refused(
        tmp_path,
        tensors() | {"encoder.layers.0.mapping.parametrizations.weight.original0": torch.ones(16, 1, 1)},
        config(),
    )
    assert "holds the parameter 'encoder.layers.0.mapping.weight_g' twice" in line
    line = refused(tmp_path, tensors() | {"encoder.layers.2.bias": torch.full((LATENT,), torch.nan)}, config())
    assert "'encoder.layers.2.bias' has numbers that are not finite" in line


def test_other_models_are_refused(tmp_path: Path) -> None:
    line = refused(tmp_path, {"encoder.layers.0.weight": torch.ones(1)}, config())
    assert (
        "does not hold SAME, the autoencoder of Stable Audio 3; expected tensors such as encoder.layers.0.transformers.0.self_attn" in line
    )
    with pytest.raises(CheckpointError, match="holds SAME, the autoencoder of Stable Audio 3, not Oobleck. Use `soundomni import same`"):
        import_stable_audio_vae(write(tmp_path / "same", tensors(), config()))
    with pytest.raises(SpecError, match="encoder.type is 'same', as in Stable Audio 3; expected 'oobleck'. Use `soundomni import same`"):
        parse_oobleck(whole_model())
    save_file(tensors(), tmp_path / "alone.safetensors")
    (tmp_path / "model_config.json").unlink()
    with pytest.raises(SpecError, match="no config next to .*; use --config to name the autoencoder's or the model's config"):
        import_same(tmp_path / "alone.safetensors")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model__encoder__type": "oobleck"},
            "model.encoder.type is 'oobleck'; expected 'same'. Use `soundomni import stable-audio-vae`",
        ),
        (
            {"model__decoder__type": "sane"},
            "model.decoder.type is 'sane'; expected one of 'same', 'taae_v2'. Did you mean 'same'?",
        ),
        (
            {"model__encoder__config__dyt": False},
            "model.encoder.config.dyt is False; expected True, the only one that the codec same has",
        ),
        (
            {"model__decoder__config__variable_stride": ...},
            "model.decoder.config.variable_stride is False; expected True",
        ),
        (
            {"model__encoder__config__chunk_midpoint_shift": ...},
            "model.encoder.config.chunk_midpoint_shift is False; expected True",
        ),
        ({"model__decoder__config__layer_scale": True}, "model.decoder.config.layer_scale is True; expected False"),
        ({"model__encoder__config__windows": 3}, "model.encoder.config.windows"),
        (
            {"model__decoder__config__channels": 4},
            "model.decoder.config.channels is 4; expected 8, to agree with the rest of the config",
        ),
        ({"model__decoder__config__chunk_size": 16}, "model.decoder.config.chunk_size is 16; expected 8"),
        (
            {"model__bottleneck__config__noise_augment_dim": 2},
            "model.bottleneck.config.noise_augment_dim is 2; expected 0",
        ),
        ({"model__bottleneck__config__auto_scale": ...}, "model.bottleneck.config.auto_scale is False; expected True"),
        ({"model__bottleneck__type": "vae"}, "model.bottleneck.type is 'vae'; expected 'softnorm'"),
        ({"model__pretransform__config__oversampling": 2}, "model.pretransform.config.oversampling is 2; expected 1"),
        ({"model__pretransform__config__patch_size": 8}, "model.encoder.config.in_channels is 8; expected 16"),
        ({"model__downsampling_ratio": 32}, "model.downsampling_ratio is 32; expected 16"),
        ({"model__latent_dim": 5}, "model.latent_dim is 5; expected 6"),
        ({"model__io_channels": 1}, "model.io_channels is 1; expected 2"),
        ({"audio_channels": 1}, "audio_channels is 1; expected 2"),
        ({"model__decoder__soft_clip": True}, "model.decoder.soft_clip is True; expected False"),
        (
            {"model__decoder__config__sinusoidal_blocks": [0, 0]},
            "model.decoder.config.sinusoidal_blocks is 2; expected 1",
        ),
        ({"model": ...}, "it is not a config of an autoencoder; expected the key 'model', of stable-audio-3"),
    ],
)
def test_configs_that_the_codec_cannot_do(changes: dict, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_config(config(**changes))
    assert told in str(caught.value) and "\n" not in str(caught.value)


DIFFUSERS = {
    "_class_name": "AutoencoderSAME",
    "encoder_strides": [2, 2],
    "encoder_c_mults": [1, 2],
    "encoder_transformer_depths": [1, 2],
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "AutoencoderOobleck"}, "_class_name is 'AutoencoderOobleck'; expected 'AutoencoderSAME'"),
        ({"encoder_sinusoidal_blocks": [2]}, "encoder_sinusoidal_blocks is [2, 2]; expected zeros"),
        ({"decoder_sinusoidal_blocks": [1, 1, 1]}, "decoder_sinusoidal_blocks is [1, 1, 1]; expected 1 or 2 numbers"),
        ({"depth": 3}, "depth"),
    ],
)
def test_configs_of_diffusers(changes: dict, told: str) -> None:
    assert parse_config(DIFFUSERS | {"decoder_sinusoidal_blocks": [2]}).init_args["transformer"]["sine_layers"] == [
        1,
        1,
    ]
    with pytest.raises(SpecError) as caught:
        parse_config(DIFFUSERS | changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_go_out(tmp_path: Path) -> None:
    imported = import_same(write(tmp_path / "source", tensors(), config()))
    codec, arguments = imported.codec(), imported.config.init_args
    with pytest.raises(SpecError, match="codec.transformer.window is null, but diffusers' autoencoder only has windows"):
        export_same(codec, arguments, tmp_path, "diffusers-same")
    windowed = {**arguments, "transformer": {**arguments["transformer"], "window": [1, 2]}}
    with pytest.raises(SpecError, match=r"window is \[1, 2\], but diffusers' autoencoder only has windows as long on either side"):
        export_same(codec, windowed, tmp_path, "diffusers-same")
    with pytest.raises(SpecError, match="codec.decoder_kernel is 3, but diffusers' autoencoder only has 1; write it as same"):
        export_same(
            codec,
            {**arguments, "transformer": {**arguments["transformer"], "window": [1, 1]}},
            tmp_path,
            "diffusers-same",
        )
    with pytest.raises(SpecError, match="only the codec same can be written as same, not OobleckCodec. Choose another --format"):
        export_same(OobleckCodec(base_channels=2, channel_multiples=(1,), strides=(2,), latent_dim=1), {}, tmp_path, "same")
    with pytest.raises(CheckpointError, match="unknown layout 'sane'; expected same or diffusers-same"):
        to_layout(codec.state_dict(), arguments, "sane")
    with pytest.raises(CheckpointError, match="'encoder.weight' is not a parameter of a SameCodec"):
        to_layout({"encoder.weight": torch.ones(1)}, arguments, "same")
