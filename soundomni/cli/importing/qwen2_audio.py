"""`soundomni import qwen2-audio`: a Qwen2-Audio model as a model directory."""

from __future__ import annotations

import argparse

from soundomni.cli.importing.common import add_options, write

HELP = "import a Hugging Face Qwen2-Audio model: it hears as the original does, and can learn to make audio"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    free = "the generating parts: codec, connector, objective, sampler, width of the generation expert"
    add_options(parser, source="directory with config.json, tokenizer.json and weights", free=free)


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.experts.checkpoints.qwen2_audio_import import import_qwen2_audio

    return write(args, lambda: import_qwen2_audio(args.source, layers=args.config, overrides=overrides))
