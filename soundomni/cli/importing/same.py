"""`soundomni import same`: the autoencoder of Stable Audio 3 as a codec."""

from __future__ import annotations

import argparse

from soundomni.cli.importing.codecs import add_options, write

HELP = "import SAME, the autoencoder of Stable Audio 3, from stable-audio-3 or diffusers, as the codec same"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(
        parser,
        source="checkpoint (safetensors, ckpt, pt, pth, bin), index of shards, or directory; a whole model is fine",
    )
    parser.add_argument("--config", metavar="JSON", help="config of the autoencoder or the whole model (default: the one next to SRC)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.vae.checkpoints.same import import_same

    return write(args, lambda: import_same(args.source, config=args.config))
