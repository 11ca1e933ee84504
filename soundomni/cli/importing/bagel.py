"""`soundomni import bagel`: BAGEL's language model and generation expert as a model directory."""

from __future__ import annotations

import argparse

from soundomni.cli.importing.common import add_llm, add_options, write

HELP = "import a BAGEL checkpoint: a language model with a generation expert that can learn to make audio"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    source = "directory with ema.safetensors, llm_config.json and tokenizer.json, or the weight file"
    add_options(parser, source=source, free="the audio parts: codec, encoder, connectors, objective, sampler")
    add_llm(parser)


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.experts.checkpoints.bagel_import import import_bagel

    return write(args, lambda: import_bagel(args.source, llm=args.llm, layers=args.config, overrides=overrides))
