"""The options of every command that runs a model, and how it is loaded from them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundomni.cli.arguments import Overrides
    from soundomni.core.hub import SoundOmni


def add_model(parser: argparse.ArgumentParser, *, note: str = "") -> None:
    """Adds `--model`; `note` ends its help."""
    help_ = f"a model directory, a shipped model (nano), or OWNER/NAME[@REVISION] of the Hugging Face Hub{note}"
    parser.add_argument("--model", required=True, metavar="MODEL", help=help_)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """Adds `--adapter`."""
    parser.add_argument("--adapter", metavar="DIR", help="LoRA adapters in peft's format to merge into the model")


def load_model(args: argparse.Namespace, overrides: Overrides) -> SoundOmni:
    """Returns the model of `--model` on `--device`, with the adapters of `--adapter` merged."""
    from soundomni.core.hub import SoundOmni

    model = SoundOmni.from_pretrained(args.model, overrides=dict(overrides), device=args.device)
    if args.adapter is not None:
        model.load_adapter(args.adapter)
    return model
