"""What the kinds of `soundomni import` share, especially those that make model directories."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from soundomni.experts.checkpoints.language_import import ImportedModel

T = TypeVar("T")
Taken = TypeVar("Taken", contravariant=True)


class Writer(Protocol[Taken]):
    """Writes what was imported into an empty folder and returns its report."""

    def __call__(self, imported: Taken, folder: Path, /, *, license: str | None) -> dict[str, Any]:
        """Write a model directory for weights under a license; None if the license is unknown."""


def add_options(parser: argparse.ArgumentParser, *, source: str, free: str) -> None:
    """Add the options; `source` says what is imported, `free` which parts a layer of a spec may set."""
    parser.add_argument("source", metavar="SRC", help=source)
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="SPEC",
        help=f"spec layer for {free}; may be repeated. Set single keys with --model.codec=NAME",
    )
    parser.add_argument("--license", metavar="NAME", help="license of the weights, for the model card (default: unknown)")


def add_llm(parser: argparse.ArgumentParser) -> None:
    """Add the option for the directory of the language model's files."""
    parser.add_argument(
        "--llm",
        metavar="DIR",
        help="directory with the language model's config.json or llm_config.json, and its tokenizer.json (default: next to the weights)",
    )


def write(args: argparse.Namespace, make: Callable[[], ImportedModel]) -> int:
    """Write what `make` imports, a model around a language model; see `write_with`."""
    from soundomni.experts.checkpoints.language_import import write_imported

    return write_with(args, make, write_imported)


def write_with(args: argparse.Namespace, make: Callable[[], T], write_imported: Writer[T]) -> int:
    """Write what `make` imports, whole or not at all, and print what was used and what was not."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import new_directory
    from soundomni.core.files.names import REPORT_FILE
    from soundomni.core.pretrained.directory import replacing

    out = new_directory(args.out)
    imported = make()
    with replacing(out) as folder:
        report = write_imported(imported, folder, license=args.license)
    counts = {name: len(report["keys"][name]) for name in ("used", "unused")}
    result = {name: report[name] for name in ("kind", "layout", "parameters", "notes")} | {"out": str(args.out), "keys": counts}
    lines = [f"{args.out}: {report['parameters']:,} parameters from the layout of {report['layout']}", *report["notes"]]
    lines.append(f"used {counts['used']} tensors; {Path(args.out) / REPORT_FILE} explains the {counts['unused']} unused entries")
    emit(args, result, text="\n".join(lines))
    return 0


def told(read: Callable[[], T], file: Path) -> T:
    """Return what `read` returns; name the file in an error about its config."""
    from soundomni.core.errors import SpecError

    try:
        return read()
    except SpecError as error:
        raise SpecError(f"'{file}': {error}") from error
