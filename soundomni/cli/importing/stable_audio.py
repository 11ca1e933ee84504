"""`soundomni import stable-audio`: turn a model of stable-audio-tools or diffusers into a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.folders import expanded
from soundomni.cli.importing.common import told, write_with
from soundomni.cli.parsing import reads_no_spec

if TYPE_CHECKING:
    from soundomni.core.pretrained.foreign_weights import WeightFile
    from soundomni.experts.checkpoints.stable_audio_import import CodecPart, ImportedModel

HELP = "import Stable Audio Open, or another diffusion transformer of stable-audio-tools or diffusers, with its codec"
CONFIG = "model_config.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument(
        "source",
        metavar="SRC",
        help="checkpoint (safetensors, ckpt, pt, pth, bin), index of shards, or directory; or a diffusers pipeline: a "
        "directory with model_index.json and no checkpoint, or that file",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    parser.add_argument("--config", type=expanded, metavar="JSON", help=f"the model's config (default: {CONFIG} next to the weights)")
    parser.add_argument(
        "--text-encoder",
        type=expanded,
        metavar="DIR",
        help="folder with the T5 or T5Gemma that reads prompts (default: text_encoder and tokenizer of a diffusers pipeline in SRC, "
        "otherwise the one that the config names, in your Hub cache)",
    )
    parser.add_argument("--license", metavar="NAME", help="license of the weights, for the model card (default: unknown)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.experts.checkpoints.stable_audio_import import write_imported

    return write_with(args, lambda: _imported(args), write_imported)


def _imported(args: argparse.Namespace) -> ImportedModel:
    from soundomni.experts.checkpoints.stable_audio_diffusers_import import is_pipeline

    source = Path(args.source)
    encoder = None if args.text_encoder is None else str(Path(args.text_encoder).resolve())
    return _pipeline(args, source, encoder) if is_pipeline(source) else _checkpoint(args, source, encoder)


def _checkpoint(args: argparse.Namespace, source: Path, encoder: str | None) -> ImportedModel:
    """Import a checkpoint of stable-audio-tools, with the text encoder of the diffusers pipeline around it, if any."""
    from dataclasses import replace

    from soundomni.core.pretrained.foreign_weights import read_weights
    from soundomni.experts.checkpoints.local_model import holds_pipeline
    from soundomni.experts.checkpoints.stable_audio_3_config import is_third, parse_third
    from soundomni.experts.checkpoints.stable_audio_import import import_stable_audio
    from soundomni.experts.checkpoints.stable_audio_model_config import parse_model_config

    weights = read_weights(source)
    tree, named = _config(args)
    config = told(lambda: (parse_third if is_third(tree) else parse_model_config)(tree), named)
    notes: tuple[str, ...] = ()
    folder = source if source.is_dir() else source.parent
    if encoder is None and holds_pipeline(folder):
        encoder, notes = str(folder.resolve()), (f"the text encoder comes from the diffusers pipeline in '{folder}'",)
    imported = import_stable_audio(weights, config, _codec(weights, tree, named), text_encoder=encoder)
    return replace(imported, notes=(*imported.notes, *notes))


def _pipeline(args: argparse.Namespace, source: Path, encoder: str | None) -> ImportedModel:
    """Import a diffusers pipeline."""
    from soundomni.cli.parsing import UsageError
    from soundomni.core.errors import SpecError
    from soundomni.experts.checkpoints.stable_audio_3_diffusers_config import read_third_pipeline
    from soundomni.experts.checkpoints.stable_audio_diffusers_config import read_pipeline
    from soundomni.experts.checkpoints.stable_audio_diffusers_files import THIRD, find_family, read_file
    from soundomni.experts.checkpoints.stable_audio_diffusers_import import import_pipeline, read_part

    if args.config is not None:
        wrong = f"--config only applies to checkpoints of stable-audio-tools; '{source}' is a diffusers pipeline"
        raise UsageError(f"{wrong}. Leave it out")
    folder = source if source.is_dir() else source.parent
    family = find_family(folder)
    config = Path("vae", "config.json")
    tree, weights = read_file(folder, str(config)), read_part(folder / "vae")
    codec = _codec(weights, tree, folder / config)
    if codec.plugin != family.codec:
        expected = f"{family.class_of('vae')}, the codec of a {family.pipelines[0]}"
        raise SpecError(f"'{folder / 'vae'}' holds the tensors of the codec {codec.plugin}; expected those of {expected}")
    read = read_third_pipeline if family is THIRD else read_pipeline
    return import_pipeline(folder, read(folder, codec.init_args, text_encoder=encoder), codec, weights)


def _config(args: argparse.Namespace) -> tuple[Any, Path]:
    """Return the config of the checkpoint, and its file. Raise SpecError if it cannot be read."""
    from soundomni.core.errors import SpecError, message_of
    from soundomni.core.files.small_files import read_json

    source = Path(args.source)
    file = args.config or (source if source.is_dir() else source.parent) / CONFIG
    if not Path(file).is_file():
        raise SpecError(f"no config at '{file}'; name the model's config with --config, such as {CONFIG} of its repository")
    try:
        return read_json(file), Path(file)
    except (OSError, ValueError) as error:
        raise SpecError(f"'{file}' cannot be read as JSON: {message_of(error)}") from error


def _codec(weights: WeightFile, tree: Any, file: Path) -> CodecPart:
    """Return the codec of a model, checked against its config."""
    from functools import partial

    from soundomni.core.assembly.uninitialized import without_memory
    from soundomni.experts.checkpoints.stable_audio_import import CodecPart
    from soundomni.vae.checkpoints.same_names import MARK
    from soundomni.vae.checkpoints.stable_audio_config import parse_config
    from soundomni.vae.checkpoints.stable_audio_layouts import check_fit, find_autoencoder, read_parameter
    from soundomni.vae.oobleck import OobleckCodec

    if any(name.endswith(MARK) for name in weights):
        return _same(weights, tree, file)
    config = told(lambda: parse_config(tree), file)
    found = find_autoencoder(weights)
    with without_memory():
        expected = {name: tuple(tensor.shape) for name, tensor in OobleckCodec(**config.init_args).state_dict().items()}
    check_fit(weights, found, expected)
    makers = {name: partial(read_parameter, weights, found, name) for name in expected}
    return CodecPart({**config.init_args, "sample_latents": True}, makers, found.used())


def _same(weights: WeightFile, tree: Any, file: Path) -> CodecPart:
    """Return the codec of a Stable Audio 3 model, checked against its config."""
    from functools import partial

    from soundomni.experts.checkpoints.stable_audio_import import CodecPart
    from soundomni.vae.checkpoints.same_config import parse_config
    from soundomni.vae.checkpoints.same_layouts import find_same, read_parameter

    config = told(lambda: parse_config(tree), file)
    found = find_same(weights, config.init_args)
    makers = {name: partial(read_parameter, weights, found, name) for name in found.sources}
    return CodecPart(config.init_args, makers, found.used(), plugin="same", implied=found.implied(), notes=config.notes)
