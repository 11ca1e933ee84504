"""`soundomni import stable-audio-lora`: turn a LoRA file of Stable Audio 3 into an adapter for `--adapter`."""

from __future__ import annotations

import argparse

from soundomni.cli.parsing import reads_no_spec

HELP = "import a LoRA or DoRA file of Stable Audio 3 as an adapter in peft's format"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument("source", metavar="SRC", help="safetensors file that Stable Audio 3's train_lora.py wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="adapter to write, a new folder")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the adapter, whole or not at all, and print what it is."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import new_directory
    from soundomni.core.pretrained.directory import replacing
    from soundomni.experts.checkpoints.stable_audio_3_lora import read_lora, write_lora

    out = new_directory(args.out)
    lora = read_lora(args.source)
    with replacing(out) as folder:
        write_lora(lora, folder)
    kind = "DoRA" if lora.is_dora else "LoRA"
    result = {"out": str(args.out), "kind": kind.lower(), "rank": lora.rank, "alpha": lora.alpha, "layers": len(lora.names)}
    text = f"{args.out}: {kind} of rank {lora.rank} for {len(lora.names)} layers; pass it to a model with --adapter"
    emit(args, result, text=text)
    return 0
