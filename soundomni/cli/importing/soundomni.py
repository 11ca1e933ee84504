"""`soundomni import soundomni`: a checkpoint of the original SoundOmni research code as a model directory."""

from __future__ import annotations

import argparse

from soundomni.cli.importing.common import add_llm, add_options, write

HELP = "import a checkpoint of the original SoundOmni research code, with the same outputs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    source = "checkpoint (safetensors, pt, bin), index of shards, or directory"
    add_options(parser, source=source, free="the codec that made its latents, such as codec.yaml from `soundomni import stable-audio-vae`")
    add_llm(parser)


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.experts.checkpoints.original_import import import_soundomni

    return write(args, lambda: import_soundomni(args.source, llm=args.llm, layers=args.config, overrides=overrides))
