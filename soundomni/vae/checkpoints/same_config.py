"""Reads configs of SAME, the autoencoder of Stable Audio 3, as arguments of the codec `same`.

Three kinds are known: the config of an autoencoder of Stability's package stable-audio-3, its config of a whole model,
whose `model.pretransform` is the autoencoder, and diffusers' config.json of an AutoencoderSAME. A key that a config
omits has the default of the package it belongs to, which is not always the one here. Unknown keys and anything our
codec cannot do are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundomni.core.errors import SpecError, did_you_mean, shown
from soundomni.core.limits import check_count
from soundomni.core.pretrained.config_sections import Section
from soundomni.core.spec.values import convert, join
from soundomni.vae.checkpoints.stable_audio_config import (
    SAME_TYPES,
    CodecConfig,
    autoencoder_part,
    check_equal,
    parse_file,
)
from soundomni.vae.sizes import MOST_WIDTH, check_strides, check_widths

BY = "the codec same"
NOISE = "the original adds noise when it decodes ({}); here it is left out, so that decoding is not random"

_DIFFUSERS_CLASS = "AutoencoderSAME"
_SAME_ON_BOTH_SIDES = (
    "channels",
    "c_mults",
    "strides",
    "transformer_depths",
    "latent_dim",
    "dim_heads",
    "ff_mult",
    "differential",
)


@dataclass(frozen=True, kw_only=True)
class _Coder:
    """Settings of the encoder or the decoder, with the defaults of stable-audio-3.

    Settings in the second group only have one possible value here. The last ones do not change what is computed; the
    original accepts any name.
    """

    channels: int = 128
    c_mults: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    strides: list[int] = field(default_factory=lambda: [2, 4, 8, 8])
    transformer_depths: list[int] = field(default_factory=lambda: [3, 3, 3, 3])
    latent_dim: int = 32
    dim_heads: int = 128
    ff_mult: int = 3
    differential: bool = True
    sliding_window: tuple[int, int] | None = None
    chunk_size: int = 128
    conv_mapping: bool = False
    mask_noise: float = 0.0

    dyt: bool = True
    mapping_bias: bool = True
    conformer: bool = False
    layer_scale: bool = False
    feat_scale: bool = False
    cross_attn: bool = False
    chunk_midpoint_shift: bool = False
    variable_stride: bool = False

    checkpointing: bool = False
    freeze_backbone: bool = False
    causal: bool = False
    conv_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class _Encoder(_Coder):
    in_channels: int = 2


@dataclass(frozen=True, kw_only=True)
class _Decoder(_Coder):
    out_channels: int = 2
    sinusoidal_blocks: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


@dataclass(frozen=True, kw_only=True)
class _Patches:
    """Settings of the layer that cuts a waveform into patches."""

    channels: int
    patch_size: int
    oversampling: int = 1
    postfilter_channels: int = 0


@dataclass(frozen=True, kw_only=True)
class _Bottleneck:
    """Settings of the bottleneck, with the defaults of stable-audio-3."""

    dim: int = 32
    noise_augment_dim: int = 0
    noise_regularize: bool = False
    auto_scale: bool = False
    freeze: bool = False


@dataclass(frozen=True, kw_only=True)
class _Diffusers:
    """Settings of AutoencoderSAME, with the defaults of diffusers."""

    audio_channels: int = 2
    patch_size: int = 256
    encoder_channels: int = 128
    encoder_c_mults: list[int] = field(default_factory=lambda: [6])
    encoder_strides: list[int] = field(default_factory=lambda: [16])
    encoder_transformer_depths: list[int] = field(default_factory=lambda: [6])
    latent_dim: int = 256
    use_differential_attention: bool = True
    dim_heads: int = 64
    ff_mult: int = 3
    sliding_window: int = 1
    encoder_sinusoidal_blocks: list[int] = field(default_factory=lambda: [0])
    decoder_sinusoidal_blocks: list[int] = field(default_factory=lambda: [0])
    sampling_rate: int = 44100


def read_config(path: str | Path) -> CodecConfig:
    """Read a config of any of the three kinds.

    Raises:
        SpecError: it cannot be read, is not such a config, has an unknown key or a wrong value, or asks for something
            that the codec cannot do.
    """
    return parse_file(path, parse_config)


def parse_config(tree: Any) -> CodecConfig:
    """Read a config as `read_config` does, from parsed JSON."""
    if isinstance(tree, Mapping) and not isinstance(tree.get("model"), Mapping):
        if "_class_name" in tree or any(name.startswith("encoder_") for name in tree):
            return _parse_diffusers(Section(tree, ""))
        raise SpecError(
            "it is not a config of an autoencoder; expected the key 'model', of stable-audio-3, or "
            f"'_class_name': '{_DIFFUSERS_CLASS}', found {', '.join(map(repr, list(tree)[:5])) or 'none'}"
        )
    part = autoencoder_part(tree)
    model, unused = part.section, list(part.unused)
    encoder_section, decoder_section = model.section("encoder"), model.section("decoder")
    for section in (encoder_section, decoder_section):
        _check_type(section)
    decoder_section.expect("soft_clip", False, by=BY, default=False)
    encoder: _Encoder = encoder_section.section("config").fields(_Encoder)
    decoder: _Decoder = decoder_section.section("config").fields(_Decoder)
    unused += encoder_section.close(unused=("requires_grad",)) + decoder_section.close(unused=("requires_grad",))
    patches: _Patches = _typed(model.section("pretransform"), "patched", _Patches)
    bottleneck: _Bottleneck = _typed(model.section("bottleneck"), "softnorm", _Bottleneck)
    _check_fixed(encoder, decoder, patches, bottleneck, model.key)
    name = join(model.key, "encoder.config")
    check_count(f"{join(model.key, 'pretransform.config')}.patch_size", patches.patch_size, most=MOST_WIDTH)
    check_widths(encoder.channels, encoder.c_mults, names=(f"{name}.channels", f"{name}.c_mults"))
    check_strides(encoder.strides, name=f"{name}.strides", patch_size=patches.patch_size)
    ratio = patches.patch_size * math.prod(encoder.strides)
    given = {
        name: model.take(name, int, None) for name in ("io_channels", "in_channels", "out_channels", "latent_dim", "downsampling_ratio")
    }
    expected = {"latent_dim": encoder.latent_dim, "downsampling_ratio": ratio}
    check_equal({join(model.key, name): (value, expected.get(name, patches.channels)) for name, value in given.items()})
    check_equal({"audio_channels": (part.audio_channels, patches.channels)})
    unused += model.close()
    return CodecConfig(
        _arguments(encoder, decoder, patches, part.sample_rate),
        tuple(unused),
        _noise_notes(encoder, decoder, bottleneck),
    )


def _check_type(coder: Section) -> None:
    """Raise SpecError for an encoder or decoder of another kind. The original ignores its type."""
    kind = coder.take("type", str, SAME_TYPES[0])
    if kind == "oobleck":
        raise SpecError(f"{join(coder.key, 'type')} is 'oobleck'; expected 'same'. Use `soundomni import stable-audio-vae`")
    if kind not in SAME_TYPES:
        known = ", ".join(map(repr, SAME_TYPES))
        raise SpecError(f"{join(coder.key, 'type')} is '{kind}'; expected one of {known}.{did_you_mean(kind, SAME_TYPES)}")


def _typed(section: Section, kind: str, of: type) -> Any:
    """Return the settings of a section of one type."""
    section.expect("type", kind, by=BY, default=kind)
    found = section.section("config").fields(of)
    section.close(unused=("enable_grad",))
    return found


def _check_fixed(encoder: _Encoder, decoder: _Decoder, patches: _Patches, bottleneck: _Bottleneck, key: str) -> None:
    """Raise SpecError for anything the codec cannot do, or if encoder and decoder do not mirror each other."""
    only = {
        "dyt": True,
        "mapping_bias": True,
        "conformer": False,
        "layer_scale": False,
        "feat_scale": False,
        "cross_attn": False,
    }
    fixed: list[tuple[str, Any, dict[str, Any]]] = [
        ("encoder", encoder, only | {"conv_mapping": False}),
        ("decoder", decoder, only | {"variable_stride": True}),
        ("pretransform", patches, {"oversampling": 1, "postfilter_channels": 0}),
        ("bottleneck", bottleneck, {"noise_augment_dim": 0, "auto_scale": True}),
    ]
    if encoder.sliding_window is None:
        fixed += [(name, coder, {"chunk_midpoint_shift": True}) for name, coder in (("encoder", encoder), ("decoder", decoder))]
    for part, settings, values in fixed:
        for name, expected in values.items():
            if getattr(settings, name) != expected:
                found = getattr(settings, name)
                raise SpecError(f"{join(key, part)}.config.{name} is {shown(found)}; expected {expected!r}, the only one that {BY} has")
    name, mirrored = join(key, "decoder.config"), list(_SAME_ON_BOTH_SIDES)
    mirrored += ["sliding_window"] if encoder.sliding_window is not None else ["sliding_window", "chunk_size"]
    check_equal({f"{name}.{one}": (getattr(decoder, one), getattr(encoder, one)) for one in mirrored})
    channels = patches.channels * patches.patch_size
    check_equal(
        {
            f"{join(key, 'encoder.config')}.in_channels": (encoder.in_channels, channels),
            f"{name}.out_channels": (decoder.out_channels, channels),
            f"{join(key, 'bottleneck.config')}.dim": (bottleneck.dim, encoder.latent_dim),
            f"{name}.sinusoidal_blocks": (len(decoder.sinusoidal_blocks), len(encoder.strides)),
        }
    )


def _arguments(encoder: _Encoder, decoder: _Decoder, patches: _Patches, sample_rate: int) -> dict[str, Any]:
    window = encoder.sliding_window
    transformer = {
        "num_layers": encoder.transformer_depths,
        "head_dim": encoder.dim_heads,
        "mlp_multiple": encoder.ff_mult,
        "differential": encoder.differential,
        "sine_layers": sine_layers(decoder.sinusoidal_blocks),
        "window": None if window is None else list(window),
    }
    if window is None:
        transformer["chunk_size"] = encoder.chunk_size
    return {
        "sample_rate": sample_rate,
        "channels": patches.channels,
        "patch_size": patches.patch_size,
        "base_channels": encoder.channels,
        "channel_multiples": encoder.c_mults,
        "strides": encoder.strides,
        "latent_dim": encoder.latent_dim,
        "decoder_kernel": 3 if decoder.conv_mapping else 1,
        "transformer": transformer,
    }


def sine_layers(sinusoidal_blocks: Sequence[int]) -> list[int]:
    """Return how many layers have a sine gate: in both packages, one fewer than `sinusoidal_blocks` says."""
    return [max(0, count - 1) for count in sinusoidal_blocks]


def _noise_notes(encoder: _Encoder, decoder: _Decoder, bottleneck: _Bottleneck) -> tuple[str, ...]:
    given = ["bottleneck.noise_regularize"] if bottleneck.noise_regularize else []
    given += [f"{name}.mask_noise {coder.mask_noise:g}" for name, coder in (("encoder", encoder), ("decoder", decoder)) if coder.mask_noise]
    return (NOISE.format(", ".join(given)),) if given else ()


def _parse_diffusers(top: Section) -> CodecConfig:
    if "_class_name" in top:
        top.expect("_class_name", _DIFFUSERS_CLASS, by=BY)
    given = {name: top.take(name, Any) for name in _Diffusers.__dataclass_fields__ if name in top}
    config: _Diffusers = convert(given, _Diffusers, "")
    check_count("patch_size", config.patch_size, most=MOST_WIDTH)
    check_widths(config.encoder_channels, config.encoder_c_mults, names=("encoder_channels", "encoder_c_mults"))
    check_strides(config.encoder_strides, name="encoder_strides", patch_size=config.patch_size)
    unused = top.close(unused=("_class_name", "_diffusers_version", "_name_or_path"))
    blocks = len(config.encoder_strides)
    sines = {name: getattr(config, f"{name}_sinusoidal_blocks") for name in ("encoder", "decoder")}
    sines = {name: counts * blocks if len(counts) == 1 else counts for name, counts in sines.items()}
    for name, counts in sines.items():
        if len(counts) != blocks:
            raise SpecError(
                f"{name}_sinusoidal_blocks is {shown(counts)}; expected 1 or {blocks} numbers, as there are {blocks} encoder_strides"
            )
    if any(sine_layers(sines["encoder"])):
        raise SpecError(f"encoder_sinusoidal_blocks is {shown(sines['encoder'])}; expected zeros, the only ones that {BY} has")
    init_args = {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "patch_size": config.patch_size,
        "base_channels": config.encoder_channels,
        "channel_multiples": config.encoder_c_mults,
        "strides": config.encoder_strides,
        "latent_dim": config.latent_dim,
        "decoder_kernel": 1,
        "transformer": {
            "num_layers": config.encoder_transformer_depths,
            "head_dim": config.dim_heads,
            "mlp_multiple": config.ff_mult,
            "differential": config.use_differential_attention,
            "sine_layers": sine_layers(sines["decoder"]),
            "window": [config.sliding_window] * 2,
        },
    }
    return CodecConfig(init_args, tuple(unused), ())
