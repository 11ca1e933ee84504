"""What the kinds of `soundomni import` share that make model directories."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundomni.experts.checkpoints.language_import import ImportedModel


def add_options(parser: argparse.ArgumentParser, *, source: str, free: str) -> None:
    """Add the options; `source` says what is imported, `free` what a layer of a spec may say."""
    parser.add_argument("source", metavar="SRC", help=source)
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to make")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="SPEC",
        help=f"layer of a spec for {free}; may be repeated, and single keys given as --model.codec=NAME",
    )
    parser.add_argument("--license", metavar="NAME", help="license of the weights, for the card (default: unknown)")


def add_llm(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the language model's files lie."""
    parser.add_argument(
        "--llm",
        metavar="DIR",
        help="directory with the language model's config.json or llm_config.json, and its tokenizer.json (default: that of the weights)",
    )


def write(args: argparse.Namespace, make: Callable[[], ImportedModel]) -> int:
    """Write what `make` finds, whole or not at all, and print what was used and what was not."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import new_directory
    from soundomni.core.pretrained.directory import replacing
    from soundomni.experts.checkpoints.language_import import REPORT_FILE, write_imported

    out = new_directory(args.out)
    imported = make()
    with replacing(out) as folder:
        report = write_imported(imported, folder, license=args.license)
    counts = {name: len(report["keys"][name]) for name in ("used", "unused")}
    result = {name: report[name] for name in ("kind", "layout", "parameters", "notes")} | {"out": str(args.out), "keys": counts}
    lines = [f"{args.out}: {report['parameters']:,} parameters from the layout of {report['layout']}", *report["notes"]]
    lines.append(f"{counts['used']} tensors used, {counts['unused']} other entries not: {Path(args.out) / REPORT_FILE} says why")
    emit(args, result, text="\n".join(lines))
    return 0
