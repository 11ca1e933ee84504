"""`soundomni import stable-audio-vae`: a Stable Audio autoencoder as a codec."""

from __future__ import annotations

import argparse

from soundomni.cli.importing.codecs import add_options, write

HELP = "import Stable Audio's autoencoder, from stable-audio-tools or diffusers, as the codec oobleck"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, source="checkpoint (safetensors, ckpt, pt, pth, bin), index of shards, or directory")
    parser.add_argument(
        "--config", metavar="JSON", help="config of the checkpoint (default: the one next to it, or the sizes of the tensors)"
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.vae.checkpoints.stable_audio import import_stable_audio_vae

    return write(args, lambda: import_stable_audio_vae(args.source, config=args.config))
