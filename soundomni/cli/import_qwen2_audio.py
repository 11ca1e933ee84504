"""`soundomni import qwen2-audio`: a Qwen2-Audio model as a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "a Qwen2-Audio model of Hugging Face, as a model that hears as it does and can learn to make audio"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("source", metavar="SRC", help="directory with config.json, tokenizer.json and weights")
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to make")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="SPEC",
        help="layer of a spec for what generates: codec, connector, objective, sampler, width of the generation expert; may be repeated, "
        "and single keys given as --model.codec=NAME",
    )
    parser.add_argument("--license", metavar="NAME", help="licence of the weights, for the card (default: unknown)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Writes the directory, whole or not at all, and prints what was used and what was not."""
    from soundomni.cli.files import new_directory
    from soundomni.cli.output import emit
    from soundomni.core.model_directory import replacing
    from soundomni.experts.qwen2_audio_import import REPORT_FILE, import_qwen2_audio, write_imported

    out = new_directory(args.out)
    imported = import_qwen2_audio(args.source, layers=args.config, overrides=overrides)
    with replacing(out) as folder:
        report = write_imported(imported, folder, licence=args.license)
    counts = {name: len(report["keys"][name]) for name in ("used", "unused")}
    result = {name: report[name] for name in ("kind", "layout", "parameters", "notes")} | {"out": str(args.out), "keys": counts}
    lines = [f"{args.out}: {report['parameters']:,} parameters from the layout of {report['layout']}", *report["notes"]]
    lines.append(f"{counts['used']} tensors used, {counts['unused']} other entries not: {Path(args.out) / REPORT_FILE} says why")
    emit(args, result, text="\n".join(lines))
    return 0
