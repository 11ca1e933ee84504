"""Configs of three kinds become arguments of our codec; what they leave out has their own defaults, and what we cannot do is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_audio_files import (
    SIZES,
    assert_same,
    audio_vae,
    diffusers_config,
    flat,
    tiny_codec,
    whole_model,
    write_json,
    write_layout,
)

from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.pretrained.foreign_weights import read_weights
from soundomni.vae.checkpoints.stable_audio import import_stable_audio_vae
from soundomni.vae.checkpoints.stable_audio_config import find_config, parse_config, read_config
from soundomni.vae.checkpoints.stable_audio_layouts import find_autoencoder, shapes_of
from soundomni.vae.checkpoints.stable_audio_sizes import infer_config


@pytest.mark.parametrize("tree", [audio_vae(), whole_model(), diffusers_config()])
def test_three_kinds_say_the_same(tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    assert config.init_args == SIZES and config.notes == ()


def test_what_has_no_meaning_for_the_codec_is_listed() -> None:
    assert parse_config(audio_vae(model__encoder__requires_grad=False)).unused == (
        "sample_size",
        "training",
        "model.encoder.requires_grad",
    )
    assert set(parse_config(whole_model()).unused) == {
        "sample_size",
        "training",
        "model.diffusion",
        "model.io_channels",
        "model.pretransform.iterate_batch",
        "model.pretransform.scale",
    }
    assert parse_config(diffusers_config()).unused == ("_diffusers_version",)


def test_the_published_one_is_the_default_of_our_codec() -> None:
    coder = {"channels": 128, "c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8], "use_snake": True}
    tree = audio_vae(
        sample_rate=44100,
        model__encoder__config={**coder, "in_channels": 2, "latent_dim": 128},
        model__decoder__config={**coder, "out_channels": 2, "latent_dim": 64, "final_tanh": False},
        model__latent_dim=64,
        model__downsampling_ratio=2048,
    )
    from soundomni.core.spec.registry import validate_init_args
    from soundomni.core.spec.schema import Slot

    defaults = validate_init_args("codec", Slot("oobleck"))
    expected = {name: defaults[name] for name in parse_config(tree).init_args}
    assert parse_config(tree).init_args == expected
    assert parse_config({"_class_name": "AutoencoderOobleck"}).init_args == expected


def test_defaults_are_those_of_the_package_that_wrote_the_config() -> None:
    tree = audio_vae(
        audio_channels=...,
        model__encoder__config={"latent_dim": 64},
        model__decoder__config={},
        model__latent_dim=32,
        model__downsampling_ratio=512,
    )
    assert parse_config(tree).init_args == {
        "sample_rate": 8000,
        "channels": 2,
        "base_channels": 128,
        "channel_multiples": [1, 2, 4, 8],
        "strides": [2, 4, 8, 8],
        "latent_dim": 32,
        "final_tanh": True,
        "use_snake": False,
    }


def test_soft_clip_is_a_final_tanh() -> None:
    config = parse_config(audio_vae(model__decoder__soft_clip=True))
    assert config.init_args["final_tanh"] is True and "soft_clip" in config.notes[0]
    with pytest.raises(SpecError, match=r"model\.decoder has both soft_clip and config\.final_tanh"):
        parse_config(audio_vae(model__decoder__soft_clip=True, model__decoder__config__final_tanh=True))


def test_odd_strides_are_told() -> None:
    odd = {"model__encoder__config__strides": [3, 4], "model__decoder__config__strides": [3, 4], "model__downsampling_ratio": 12}
    assert "with odd strides" in parse_config(audio_vae(**odd)).notes[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__encoder__type": "dac"}, "model.encoder.type is 'dac'; expected 'oobleck'"),
        ({"model__decoder__type": "taae"}, "model.decoder.type is 'taae'; expected 'oobleck'"),
        ({"model__bottleneck__type": "rvq"}, "model.bottleneck.type is 'rvq'; expected 'vae'"),
        ({"model__bottleneck": ...}, "model.bottleneck.type: missing"),
        ({"model__bottleneck__config": {"dim": 2}}, "unknown key 'model.bottleneck.config.dim'"),
        ({"model__pretransform": {"type": "wavelet"}}, "model.pretransform is given; expected none"),
        ({"model__decoder__config__use_nearest_upsample": True}, "model.decoder.config.use_nearest_upsample is true; expected false"),
        ({"model__encoder__config__antialias_activation": True}, "model.encoder.config.antialias_activation is true; expected false"),
        ({"model__decoder__config__antialias_activation": True}, "model.decoder.config.antialias_activation is true; expected false"),
        ({"model__encoder__config__latent_dim": 2}, "model.encoder.config.latent_dim is 2; expected 4"),
        ({"model__decoder__config__channels": 8}, "model.decoder.config.channels is 8; expected 4"),
        ({"model__decoder__config__c_mults": [1, 3]}, "model.decoder.config.c_mults is [1, 3]; expected [1, 2]"),
        ({"model__decoder__config__strides": [4, 2]}, "model.decoder.config.strides is [4, 2]; expected [2, 4]"),
        ({"model__decoder__config__use_snake": False}, "model.decoder.config.use_snake is False; expected True"),
        ({"model__decoder__config__out_channels": 1}, "model.decoder.config.out_channels is 1; expected 2"),
        ({"audio_channels": 1}, "audio_channels is 1; expected 2"),
        ({"model__io_channels": 1}, "model.io_channels is 1; expected 2"),
        ({"model__out_channels": 1}, "model.out_channels is 1; expected 2"),
        ({"model__latent_dim": 3}, "model.latent_dim is 3; expected 2"),
        ({"model__downsampling_ratio": 2048}, "model.downsampling_ratio is 2048; expected 8"),
        ({"sample_rate": ...}, "sample_rate: missing"),
        ({"model__latent_dim": None}, "model.latent_dim: missing"),
        ({"sample_rate": "44100"}, "sample_rate is '44100'; expected a whole number"),
        ({"model__encoder__config__channels": True}, "model.encoder.config.channels is True; expected a whole number"),
        ({"model__encoder__config__strides": 2}, "model.encoder.config.strides is 2; expected a list of whole numbers"),
        ({"model__encoder__config__chanels": 2}, "unknown key 'model.encoder.config.chanels'. Did you mean 'channels'?"),
        ({"model__encoder": [1]}, "model.encoder is [1]; expected"),
        ({"model__encodr": {}}, "unknown key 'model.encodr'. Did you mean 'encoder'?"),
        ({"sampl_size": 3}, "unknown key 'sampl_size'. Did you mean 'sample_size'?"),
        ({"model_type": "diffusion_cond"}, "model_type is 'diffusion_cond'; expected 'autoencoder'"),
    ],
)
def test_what_the_codec_cannot_be(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = write_json(audio_vae(**changes), tmp_path / "audio_vae.json")
    with pytest.raises(SpecError) as caught:
        read_config(path)
    assert f"'{path}': {told}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (diffusers_config(encoder_hidden_size=8), "decoder_channels is 4; expected 8"),
        (diffusers_config(encoder_hidden_size=8, decoder_channels=8), "encoder_hidden_size is 8; expected 4"),
        (diffusers_config(_class_name="AutoencoderKL"), "_class_name is 'AutoencoderKL'; expected 'AutoencoderOobleck'"),
        (diffusers_config(final_tanh=True), "unknown key 'final_tanh'"),
        (diffusers_config(sampling_rate=8000.5), "sampling_rate is 8000.5; expected a whole number"),
        (
            whole_model(model__pretransform__type="dac_pretrained"),
            "model.pretransform.type is 'dac_pretrained'; expected 'autoencoder'",
        ),
        (whole_model(model__pretransform=...), "model.pretransform.type: missing"),
        (whole_model(model__pretransform__overlap=3), "unknown key 'model.pretransform.overlap'"),
        (whole_model(model__pretransform__config__latent_dim=9), "model.pretransform.config.latent_dim is 9; expected 2"),
        ({"architectures": ["Qwen2AudioForConditionalGeneration"]}, "not a config of an autoencoder; expected the key 'model'"),
        ({}, "found none"),
        ([], "expected"),
    ],
)
def test_other_configs(tmp_path: Path, tree: Any, told: str) -> None:
    path = write_json(tree, tmp_path / "config.json")
    with pytest.raises(SpecError) as caught:
        read_config(path)
    assert told in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b"{", b"\xff\xfe", b"[" * 100000):
        path.write_bytes(content)
        with pytest.raises(SpecError, match="cannot be read as JSON"):
            read_config(path)
    with pytest.raises(SpecError, match="cannot be read as JSON"):
        read_config(tmp_path / "absent.json")


@pytest.mark.parametrize("layout", ["stable-audio-vae", "diffusers-oobleck"])
@pytest.mark.parametrize("changes", [{}, {"channels": 1, "strides": [4, 2, 3], "channel_multiples": [1, 3, 4], "latent_dim": 5}])
def test_sizes_follow_from_tensors(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    weights = read_weights(write_layout(layout, tiny_codec(**changes), tmp_path))
    found = find_autoencoder(weights)
    config = infer_config(shapes_of(weights, found), found.layout)
    assert config.init_args == {**SIZES, **changes, "sample_rate": 44100}
    assert "the sample rate is assumed to be 44100 Hz" in config.notes
    assert any("tanh" in note for note in config.notes) == (layout == "stable-audio-vae")


def test_sizes_that_do_not_follow(tmp_path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_codec().state_dict().items()}
    odd = {**shapes, "encoder.layers.1.layers.4.parametrizations.weight.original1": (6, 4, 5)}
    with pytest.raises(CheckpointError, match="encoder block 1 has 6 channels and a kernel of 5: expected a multiple of 4"):
        infer_config(odd, "stable-audio-vae")
    flat_shape = {**shapes, "decoder.layers.0.parametrizations.weight.original1": (8,)}
    with pytest.raises(
        CheckpointError, match=r"'decoder\.layers\.0' is not a convolution with weight norm, so the sizes are unknown; give --config"
    ):
        infer_config(flat_shape, "stable-audio-vae")


def test_a_config_beside_the_weights_is_taken_and_told(tmp_path: Path) -> None:
    source = tiny_codec(final_tanh=True)
    path = write_layout("stable-audio-vae", source, tmp_path)
    config = write_json(audio_vae(model__decoder__config__final_tanh=True), tmp_path / "audio_vae.json")
    assert find_config(path) == find_config(tmp_path) == config
    imported = import_stable_audio_vae(path)
    assert_same(source, imported.codec())
    assert "the config is audio_vae.json, found next to the weights" in imported.config.notes
    write_json(audio_vae(model__io_channels=7), config)
    with pytest.raises(SpecError, match=r"this config is next to the weights; name another with --config"):
        import_stable_audio_vae(path)
    write_json(diffusers_config(), tmp_path / "config.json")
    with pytest.raises(SpecError, match=r"several configs \(audio_vae.json, config.json\); name one with --config"):
        import_stable_audio_vae(path)


def test_a_config_of_other_sizes_than_the_weights(tmp_path: Path) -> None:
    torch.save(flat(tiny_codec(base_channels=3)), tmp_path / "x.pth")
    config = write_json(audio_vae(), tmp_path / "audio_vae.json")
    with pytest.raises(CheckpointError, match="of another shape"):
        import_stable_audio_vae(tmp_path / "x.pth", config=config)


def test_what_an_import_reports_is_plain(tmp_path: Path) -> None:
    path = write_layout("training-average", tiny_codec(), tmp_path)
    report = json.loads(json.dumps(import_stable_audio_vae(path).report()))
    assert report["layout"] == "training-average" and report["codec"]["init_args"] == {**SIZES, "sample_rate": 44100}
    assert report["parameters"] == sum(p.numel() for p in tiny_codec().parameters())
