"""`soundomni import stable-audio`: Stable Audio Open, or another model of stable-audio-tools, as a model directory."""

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

HELP = "import Stable Audio Open, or another diffusion transformer of stable-audio-tools, with its codec"
CONFIG = "model_config.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument("source", metavar="SRC", help="checkpoint (safetensors, ckpt, pt, pth, bin), index of shards, or directory")
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    parser.add_argument("--config", type=expanded, metavar="JSON", help=f"the model's config (default: {CONFIG} next to the weights)")
    parser.add_argument(
        "--text-encoder",
        type=expanded,
        metavar="DIR",
        help="folder with the T5 that reads prompts (default: the one that the config names, in your Hub cache)",
    )
    parser.add_argument("--license", metavar="NAME", help="license of the weights, for the model card (default: unknown)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.experts.checkpoints.stable_audio_import import write_imported

    return write_with(args, lambda: _imported(args), write_imported)


def _imported(args: argparse.Namespace) -> ImportedModel:
    from soundomni.core.pretrained.foreign_weights import read_weights
    from soundomni.experts.checkpoints.stable_audio_3_config import is_third, parse_third
    from soundomni.experts.checkpoints.stable_audio_import import import_stable_audio
    from soundomni.experts.checkpoints.stable_audio_model_config import parse_model_config

    encoder = None if args.text_encoder is None else str(Path(args.text_encoder).resolve())
    weights = read_weights(args.source)
    tree, named = _config(args)
    config = told(lambda: (parse_third if is_third(tree) else parse_model_config)(tree), named)
    return import_stable_audio(weights, config, _codec(weights, tree, named), text_encoder=encoder)


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
    """Return the codec of a model of Stable Audio 3, checked against its config."""
    from functools import partial

    from soundomni.experts.checkpoints.stable_audio_import import CodecPart
    from soundomni.vae.checkpoints.same_config import parse_config
    from soundomni.vae.checkpoints.same_layouts import find_same, read_parameter

    config = told(lambda: parse_config(tree), file)
    found = find_same(weights, config.init_args)
    makers = {name: partial(read_parameter, weights, found, name) for name in found.sources}
    return CodecPart(config.init_args, makers, found.used(), plugin="same", implied=found.implied(), notes=config.notes)
