"""`soundomni import hubert-kmeans`: a speech network of transformers with centroids of a layer, as a codec."""

from __future__ import annotations

import argparse

from soundomni.cli.folders import expanded
from soundomni.cli.importing.codecs import add_options, write

HELP = "import HuBERT, WavLM or wav2vec 2.0, from transformers, with centroids, as the codec hubert-kmeans"
SOURCE = "directory with config.json, preprocessor_config.json and model.safetensors, as transformers writes it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, source=SOURCE, decodes=False)
    parser.add_argument(
        "--centroids",
        type=expanded,
        required=True,
        metavar="FILE",
        help="safetensors file with the tensor centroids, as `soundomni fit-kmeans` writes it",
    )
    what = "layer of the network that they belong to, from 1 (default: the one in FILE)"
    parser.add_argument("--layer", type=int, metavar="N", help=what)


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.vae.checkpoints.hubert_import import import_hubert_kmeans

    return write(args, lambda: import_hubert_kmeans(args.source, centroids=args.centroids, layer=args.layer))
