"""`soundomni import mimi`: transformers' MimiModel as a codec."""

from __future__ import annotations

import argparse

from soundomni.cli.importing.codecs import add_options, write

HELP = "import Mimi, from transformers, as the codec mimi"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, source="directory with config.json and model.safetensors, as MimiModel.save_pretrained writes it")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.vae.checkpoints.transformers_codecs import import_codec

    return write(args, lambda: import_codec("mimi", args.source))
