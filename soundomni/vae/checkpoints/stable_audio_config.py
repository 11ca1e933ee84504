"""Configs of Stable Audio's autoencoder, read as arguments of the codec `oobleck`.

Three kinds are known: stable-audio-tools' config of an autoencoder (`audio_vae.json`), its config of a whole model,
whose `model.pretransform` is the autoencoder, and diffusers' config.json of an AutoencoderOobleck. A key that a config
omits has the default of the package it belongs to, which is not always the one here. Unknown keys and anything our
codec cannot do are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundomni.core.errors import SpecError, message_of, shown
from soundomni.core.files.small_files import read_json
from soundomni.core.limits import HIGHEST_RATE, MOST_CHANNELS, check_count
from soundomni.core.pretrained.config_sections import Section
from soundomni.core.spec.values import convert, join
from soundomni.vae.sizes import MOST_WIDTH, check_strides, check_widths

NAMES = ("audio_vae.json", "model_config.json", "config.json")
"""Names of configs next to their weights."""

_DIFFUSERS_CLASS = "AutoencoderOobleck"
BY = "the codec oobleck"
SAME_TYPES = ("same", "taae_v2")
"""Types of Stable Audio 3's encoder and decoder, which the codec `same` computes."""


@dataclass(frozen=True)
class CodecConfig:
    """What is known about an autoencoder without its weights.

    Args:
        init_args: arguments of the codec `oobleck` that determine its function.
        unused: keys of the config that do not matter for it.
        notes: what was assumed, or differs from the original; one sentence each.
    """

    init_args: dict[str, Any]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Coder:
    """Settings of the encoder or the decoder, with the defaults of stable-audio-tools."""

    channels: int = 128
    c_mults: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    strides: list[int] = field(default_factory=lambda: [2, 4, 8, 8])
    latent_dim: int = 32
    use_snake: bool = False
    antialias_activation: bool = False


@dataclass(frozen=True, kw_only=True)
class _Encoder(_Coder):
    in_channels: int = 2


@dataclass(frozen=True, kw_only=True)
class _Decoder(_Coder):
    out_channels: int = 2
    use_nearest_upsample: bool = False
    final_tanh: bool = True


@dataclass(frozen=True, kw_only=True)
class _Diffusers:
    """Settings of AutoencoderOobleck, with the defaults of diffusers."""

    encoder_hidden_size: int = 128
    downsampling_ratios: list[int] = field(default_factory=lambda: [2, 4, 4, 8, 8])
    channel_multiples: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    decoder_channels: int = 128
    decoder_input_channels: int = 64
    audio_channels: int = 2
    sampling_rate: int = 44100


def read_config(path: str | Path) -> CodecConfig:
    """Read a config of any of the three kinds.

    Raises:
        SpecError: it cannot be read, is not such a config, has an unknown key or a wrong value, or asks for what the
            codec cannot do.
    """
    return parse_file(path, parse_config)


def parse_file(path: str | Path, parse: Callable[[Any], CodecConfig]) -> CodecConfig:
    """Parse a JSON file with `parse`. Raise SpecError, with the file's name, if it cannot be read or `parse` raises
    SpecError."""
    try:
        tree = read_json(path)
    except (OSError, ValueError) as error:
        raise SpecError(f"'{path}' cannot be read as JSON: {message_of(error)}") from error
    try:
        return parse(tree)
    except SpecError as error:
        raise SpecError(f"'{path}': {error}") from error


def find_config(source: Path) -> Path | None:
    """Return the config next to a weight file, or in a directory of them; None if there is none.

    Raise SpecError for several.
    """
    folder = source if source.is_dir() else source.parent
    found = [name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise SpecError(f"'{folder}' holds several configs ({', '.join(found)}); name one with --config")
    return folder / found[0] if found else None


def parse_config(tree: Any) -> CodecConfig:
    """Read a config as `read_config` does, from parsed JSON."""
    if isinstance(tree, Mapping) and not isinstance(tree.get("model"), Mapping):
        known = {"_class_name", *_Diffusers.__dataclass_fields__}
        if known & tree.keys():
            return _parse_diffusers(Section(tree, ""))
        raise SpecError(
            "it is not a config of an autoencoder; expected the key 'model', of stable-audio-tools, or "
            f"'_class_name': '{_DIFFUSERS_CLASS}', found {', '.join(map(repr, list(tree)[:5])) or 'none'}"
        )
    return _parse_autoencoder(autoencoder_part(tree))


@dataclass(frozen=True)
class AutoencoderPart:
    """The section of a config of Stability's packages that describes the autoencoder, and what the rest says about it.

    Args:
        section: the section, with none of its keys read yet.
        sample_rate: sample rate in Hz.
        audio_channels: audio channels; None if the config does not say it.
        unused: keys outside the section that were not read.
    """

    section: Section
    sample_rate: int
    audio_channels: int | None
    unused: tuple[str, ...]


def autoencoder_part(tree: Mapping[str, Any]) -> AutoencoderPart:
    """Find the autoencoder in its own config or in a whole model's. Raise SpecError if there is none."""
    top = Section(tree, "")
    sample_rate, kind = top.take_whole("sample_rate", most=HIGHEST_RATE), top.take("model_type", str, "")
    audio_channels = top.take("audio_channels", int, None)
    model = top.section("model")
    if "encoder" in model:
        if kind not in ("", "autoencoder"):
            raise SpecError(f"model_type is '{kind}'; expected 'autoencoder'")
        return AutoencoderPart(model, sample_rate, audio_channels, tuple(top.close(unused=("sample_size", "training"))))
    pretransform = model.section("pretransform")
    pretransform.expect("type", "autoencoder", by="Stable Audio")
    autoencoder = pretransform.section("config")
    unused = top.close(others=True) + model.close(others=True)  # keys of the model's other networks
    unused += pretransform.close(unused=("scale", "iterate_batch", "chunked", "model_half", "enable_grad"))
    return AutoencoderPart(autoencoder, sample_rate, audio_channels, tuple(unused))


def _parse_autoencoder(part: AutoencoderPart) -> CodecConfig:
    model, unused = part.section, list(part.unused)
    encoder_section, decoder_section, bottleneck = (model.section(name) for name in ("encoder", "decoder", "bottleneck"))
    kind = encoder_section.take("type", str, "")
    if kind in SAME_TYPES:
        raise SpecError(
            f"{join(model.key, 'encoder.type')} is '{kind}', as in Stable Audio 3; expected 'oobleck'. Use `soundomni import same`"
        )
    if "pretransform" in model:
        raise SpecError(f"{join(model.key, 'pretransform')} is given; expected none, because the codec oobleck takes waveforms")
    model.take("pretransform", Any, None)
    for section, kind in ((encoder_section, "oobleck"), (decoder_section, "oobleck"), (bottleneck, "vae")):
        section.expect("type", kind, by=BY)
    bottleneck.section("config").close()
    soft_clip = decoder_section.take("soft_clip", bool, False)
    encoder: _Encoder = encoder_section.section("config").fields(_Encoder)
    decoder: _Decoder = decoder_section.section("config").fields(_Decoder)
    unused += encoder_section.close(unused=("requires_grad",)) + decoder_section.close(unused=("requires_grad",))
    bottleneck.close()
    _check_sizes(encoder, decoder, model.key)
    _check_coders(encoder, decoder, soft_clip, model.key)
    channels, ratio = encoder.in_channels, math.prod(encoder.strides)
    check_equal(
        {
            "audio_channels": (part.audio_channels, channels),
            join(model.key, "io_channels"): (model.take("io_channels", int), channels),
            join(model.key, "in_channels"): (model.take("in_channels", int, None), channels),
            join(model.key, "out_channels"): (model.take("out_channels", int, None), channels),
            join(model.key, "latent_dim"): (model.take("latent_dim", int), decoder.latent_dim),
            join(model.key, "downsampling_ratio"): (model.take("downsampling_ratio", int), ratio),
        }
    )
    unused += model.close()
    notes = stride_notes(encoder.strides)
    if soft_clip:
        notes += ("decoder.soft_clip is a tanh at the end of the decoder; it became final_tanh",)
    init_args = {
        "sample_rate": part.sample_rate,
        "channels": channels,
        "base_channels": encoder.channels,
        "channel_multiples": encoder.c_mults,
        "strides": encoder.strides,
        "latent_dim": decoder.latent_dim,
        "final_tanh": decoder.final_tanh or soft_clip,
        "use_snake": encoder.use_snake,
    }
    return CodecConfig(init_args, tuple(unused), notes)


def _check_sizes(encoder: _Encoder, decoder: _Decoder, key: str) -> None:
    """Raise SpecError for sizes that the codec cannot have."""
    name = join(key, "encoder.config")
    check_count(f"{name}.in_channels", encoder.in_channels, most=MOST_CHANNELS)
    check_widths(encoder.channels, encoder.c_mults, names=(f"{name}.channels", f"{name}.c_mults"))
    check_strides(encoder.strides, name=f"{name}.strides")
    check_count(f"{join(key, 'decoder.config')}.latent_dim", decoder.latent_dim, most=MOST_WIDTH)


def _check_coders(encoder: _Encoder, decoder: _Decoder, soft_clip: bool, key: str) -> None:
    """Raise SpecError for anything the codec cannot do, and if encoder and decoder do not mirror each other."""
    for coder, config in (("encoder", encoder), ("decoder", decoder)):
        if config.antialias_activation:
            raise SpecError(f"{join(key, coder)}.config.antialias_activation is true; expected false, as in the codec oobleck")
    if decoder.use_nearest_upsample:
        raise SpecError(
            f"{join(key, 'decoder')}.config.use_nearest_upsample is true; expected false, as the codec oobleck uses transposed convolutions"
        )
    if soft_clip and decoder.final_tanh:
        raise SpecError(f"{join(key, 'decoder')} has both soft_clip and config.final_tanh; expected one of them: a tanh is applied once")
    name = join(key, "decoder.config")
    check_equal(
        {
            f"{name}.channels": (decoder.channels, encoder.channels),
            f"{name}.c_mults": (decoder.c_mults, encoder.c_mults),
            f"{name}.strides": (decoder.strides, encoder.strides),
            f"{name}.use_snake": (decoder.use_snake, encoder.use_snake),
            f"{name}.out_channels": (decoder.out_channels, encoder.in_channels),
            f"{join(key, 'encoder.config')}.latent_dim": (encoder.latent_dim, 2 * decoder.latent_dim),
        }
    )


def _parse_diffusers(top: Section) -> CodecConfig:
    if "_class_name" in top:
        top.expect("_class_name", _DIFFUSERS_CLASS, by=BY)
    given = {name: top.take(name, Any) for name in _Diffusers.__dataclass_fields__ if name in top}
    config: _Diffusers = convert(given, _Diffusers, "")
    check_count("sampling_rate", config.sampling_rate, most=HIGHEST_RATE)
    check_count("audio_channels", config.audio_channels, most=MOST_CHANNELS)
    check_widths(config.encoder_hidden_size, config.channel_multiples, names=("encoder_hidden_size", "channel_multiples"))
    check_strides(config.downsampling_ratios, name="downsampling_ratios")
    unused = top.close(unused=("_class_name", "_diffusers_version", "_name_or_path"))
    check_equal(
        {
            "decoder_channels": (config.decoder_channels, config.encoder_hidden_size),
            "encoder_hidden_size": (config.encoder_hidden_size, 2 * config.decoder_input_channels),
        }
    )
    init_args = {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "base_channels": config.encoder_hidden_size,
        "channel_multiples": config.channel_multiples,
        "strides": config.downsampling_ratios,
        "latent_dim": config.decoder_input_channels,
        "final_tanh": False,
        "use_snake": True,
    }
    return CodecConfig(init_args, tuple(unused), stride_notes(config.downsampling_ratios))


def check_equal(values: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise SpecError, which names the key, for a (given, expected) pair of different values; a missing value is
    fine."""
    for key, (given, expected) in values.items():
        if given is not None and given != expected:
            raise SpecError(f"{key} is {shown(given)}; expected {shown(expected)}, to agree with the rest of the config")


def stride_notes(strides: Collection[int]) -> tuple[str, ...]:
    """Return how a codec with odd strides differs from the original; nothing for even strides."""
    if not any(stride % 2 for stride in strides):
        return ()
    return ("with odd strides the original shortens clips; here they keep their length, so the ends of clips sound different",)
