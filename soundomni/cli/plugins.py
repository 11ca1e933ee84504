"""`soundomni plugins`: list what is installed, show a plugin's arguments, and write a package for a new one."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from soundomni.cli.folders import expanded
from soundomni.cli.parsing import Overrides, reads_no_spec

if TYPE_CHECKING:
    from soundomni.core.spec.registry import PluginEntry

HELP = "list installed plugins, show one, or create a new one"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    reads_no_spec(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|new")
    listing = actions.add_parser("list", help="list all plugins", description="List all plugins without importing any of them.")
    listing.add_argument("kind", nargs="?", metavar="KIND", help="list only this kind, such as codec")
    listing.add_argument(
        "--check",
        action="store_true",
        help="import each plugin and report broken ones; exit status 1 if a plugin is broken or a distribution cannot be read",
    )
    show = actions.add_parser("show", help="show a plugin and its arguments", description="Show a plugin and its arguments.")
    show.add_argument("kind", metavar="KIND", help="kind of plugin, such as codec")
    show.add_argument("name", metavar="NAME", help="name, or distribution:name")
    new = actions.add_parser("new", help="write a package with a working plugin", description="Write a package with a plugin and tests.")
    new.add_argument("kind", metavar="KIND", help="kind of plugin, such as codec")
    new.add_argument("name", metavar="NAME", help="lowercase words and dashes, such as acme-fold")
    new.add_argument("--out", type=expanded, metavar="DIR", help="folder to create (default: soundomni-NAME)")


def run(args: argparse.Namespace, overrides: Overrides) -> int:
    """List, show or write."""
    if args.action == "new":
        from soundomni.cli import plugins_new

        return plugins_new.run(args)
    return _list(args) if args.action == "list" else _show(args)


def _list(args: argparse.Namespace) -> int:
    from soundomni.cli.console import emit, table
    from soundomni.core.spec import registry

    kinds = [args.kind] if args.kind else registry.KINDS
    found = [entry for kind in kinds for entry in registry.entries(kind)]
    rows = [_row(entry) for entry in found]
    if args.check:
        rows = [row | {"error": _error(entry)} for row, entry in zip(rows, found, strict=True)]
    columns = ["kind", "name", "distribution", "target"]
    cells = [[row["kind"], row["name"], f"{row['distribution']} {row['version']}", row["target"]] for row in rows]
    if args.check:
        columns.append("state")
        cells = [[*cell, row["error"] or "ok"] for cell, row in zip(cells, rows, strict=True)]
    faults = registry.faults()
    wrong = table(["distribution", "what is wrong with it"], [[fault.distribution, fault.reason] for fault in faults])
    result = {"plugins": rows, "faults": [asdict(fault) for fault in faults]}
    emit(args, result, text=f"{table(columns, cells)}\n\n{wrong}" if faults else table(columns, cells))
    return 1 if args.check and (faults or any(row["error"] for row in rows)) else 0


def _show(args: argparse.Namespace) -> int:
    from soundomni.cli.console import emit, table
    from soundomni.core.spec import registry

    result = description(args.kind, registry.load(args.kind, args.name, trust_class_paths=args.trust_class_paths))
    takes, runtime = result["init_args"], result["runtime_args"]
    cells = [[a["name"], a["type"], "required" if a["required"] else repr(a["default"]), a["description"]] for a in takes]
    lines = [
        f"{args.kind} {result['name']}: {result['class']}",
        result["summary"],
        "",
        table(["init_args", "type", "default", ""], cells) if cells else "takes no init_args",
        *([f"\npassed by the assembly: {', '.join(runtime)}"] if runtime else []),
    ]
    emit(args, result, text="\n".join(lines))
    return 0


def description(kind: str, cls: type) -> dict[str, Any]:
    """Return what a plugin is and takes, as plain data: name, class, summary, and each argument with its type and default."""
    from soundomni.core.spec import registry
    from soundomni.core.spec.arguments import argument_texts
    from soundomni.core.spec.values import type_name

    texts = argument_texts(cls)
    takes: list[dict[str, Any]] = []
    for argument in registry.arguments(kind, cls):
        entry = {"name": argument.name, "type": type_name(argument.annotation), "required": argument.required}
        default = {} if argument.required else {"default": argument.default}
        text = texts.get(argument.name, "").removesuffix(".")  # as the help of every option
        takes.append(entry | default | {"description": text})
    return {
        "kind": kind,
        "name": registry.name_of(kind, cls),
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "summary": inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "init_args": takes,
        "runtime_args": list(registry.runtime_arguments(kind)),
    }


def _row(entry: PluginEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if value or name != "extras"}


def _error(entry: PluginEntry) -> str | None:
    from soundomni.core.errors import PluginError
    from soundomni.core.spec import registry

    try:
        registry.load(entry.kind, entry.qualified_name)
    except PluginError as error:
        return str(error)
    return None
