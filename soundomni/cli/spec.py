"""`soundomni spec`: validate a spec, print it resolved, or write the JSON schema of specs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from soundomni.cli.parsing import Overrides, UsageError, reads_no_spec

if TYPE_CHECKING:
    from soundomni.core.spec.schema import Slot, Spec

HELP = "validate or print a spec, or write the JSON schema of specs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="validate|print|schema")
    texts = {
        "validate": "check that the keys, numbers and plugins of a spec are valid, that its parts fit together, and that its data is there",
        "print": "print a spec as YAML, with all defaults filled in",
    }
    for name, text in texts.items():
        action = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Overrides: --key.of.spec=value.",
        )
        action.add_argument(
            "specs",
            nargs="*",
            metavar="SPEC",
            help="YAML files or names of shipped specs; later ones override earlier ones",
        )
        action.add_argument("--config", action="append", default=[], metavar="SPEC", help="the same as SPEC")
        if name == "validate":
            action.add_argument("--no-data", action="store_true", help="check the spec without opening its datasets")
    schema = actions.add_parser(
        "schema",
        help="write the JSON schema of specs, including installed plugins",
        description="Write the JSON schema of specs.",
    )
    reads_no_spec(schema)


def run(args: argparse.Namespace, overrides: Overrides) -> int:
    """Validate or print a spec, or write the schema."""
    if args.action == "schema":
        return _schema()
    if not args.specs and not args.config:
        raise UsageError(f"`soundomni spec {args.action}` needs a spec. Give a YAML file or the name of a shipped spec")
    names = [*args.specs, *args.config]
    if args.action == "print":
        return print_spec(args, names, overrides)
    return _validate(args, _resolved(args, names, overrides))


def print_spec(args: argparse.Namespace, names: Sequence[str], overrides: Overrides) -> int:
    """Print the spec that files or shipped names and overrides give, with all defaults filled in."""
    from soundomni.cli.console import emit
    from soundomni.core.spec.load import dump_spec, spec_to_dict

    spec = _resolved(args, names, overrides)
    emit(args, spec_to_dict(spec), text=dump_spec(spec))
    return 0


def _resolved(args: argparse.Namespace, names: Sequence[str], overrides: Overrides) -> Spec:
    from soundomni.core.pretrained.spec_with_start import load_spec_with_start
    from soundomni.core.spec.load import resolve

    trust = args.trust_class_paths
    given = load_spec_with_start(names, overrides, trust_class_paths=trust, start="if-here")
    return resolve(given, trust_class_paths=trust)


def _validate(args: argparse.Namespace, spec: Spec) -> int:
    from soundomni.cli.console import emit, note, table
    from soundomni.core.spec.registry import lock
    from soundomni.core.spec.slots import slots
    from soundomni.train.preflight import check_spec

    if spec.stages is not None:
        return _validate_stages(args, spec)
    doubts = check_spec(spec, trust_class_paths=args.trust_class_paths)
    for line in doubts:
        note(f"warning: {line}")
    random = _check_start(args, spec)
    for line in random:
        note(f"warning: {line}")
    data = _open_data(args, spec)
    rows = [{"key": key, "kind": kind, "name": slot.class_path} for key, kind, slot in slots(spec)]
    versions = lock(spec)
    names = ", ".join(f"{entry['distribution']} {entry['version']}" for entry in versions)
    text = table(["key", "kind", "name"], [list(row.values()) for row in rows])
    listed = "".join(f"\n{_listed(one)}" for one in data)
    result = {"ok": True, "warnings": [*doubts, *random], "plugins": rows, "lock": versions, "data": data}
    emit(args, result, text=f"ok\n{text}\nfrom {names}{listed}")
    return 0


def _validate_stages(args: argparse.Namespace, spec: Spec) -> int:
    """Say which stages of a chain are there, next to the last file that was given; they are compared when the chain is loaded."""
    from soundomni.cli.console import emit, note, table
    from soundomni.core.pretrained.stage_paths import placed

    rows = []
    for name, place in placed(spec.used_stages, [*args.specs, *args.config][-1]).items():
        rows.append({"stage": name, "directory": str(place), "found": place.is_dir()})
        if not place.is_dir():
            note(f"stages.{name}: there is no directory '{place}' yet. Train or export it first")
    lines = [[row["stage"], row["directory"], "found" if row["found"] else "missing"] for row in rows]
    emit(args, {"ok": True, "stages": rows}, text=f"ok\n{table(['stage', 'directory', ''], lines)}")
    return 0


def _open_data(args: argparse.Namespace, spec: Spec) -> list[dict[str, Any]]:
    """Open the listings of the datasets without decoding, and return their contents; notes name those not opened.

    A dataset that comes unchanged from a shipped spec may be missing. Raise DataError for any other required dataset
    that cannot be used.
    """
    from soundomni.cli.console import note
    from soundomni.core.errors import DataError
    from soundomni.core.spec import registry
    from soundomni.data.mixture import open_entry
    from soundomni.data.usage import summarize

    if spec.data is None:
        return []
    if args.no_data:
        note("the datasets were not opened (--no-data)")
        return []
    if all(entry is None for entry in spec.data.datasets.values()):
        raise DataError("data.datasets is empty, but `soundomni train` needs a dataset. Add one, or use --no-data")
    shipped, found = _shipped_sources(args), []
    for name, entry in spec.data.datasets.items():
        if entry is None:
            continue
        try:
            build = partial(registry.build, trust_class_paths=args.trust_class_paths)
            dataset, _ = open_entry(name, entry, build, skip_limit=spec.data.skip_limit)
        except DataError as error:
            if entry.source == shipped.get(name) and not entry.filters:
                note(f"data.datasets.{name} was not opened, because its path is an example from the shipped spec: {error}")
            elif entry.is_mandatory:
                raise DataError(f"data.datasets.{name}: {error}") from error
            else:
                note(f"data.datasets.{name} is left out: {error}")
            continue
        found.append({"name": name, "clips": len(dataset), "left_out": summarize(dataset.skipped)})
    return found


def _shipped_sources(args: argparse.Namespace) -> dict[str, Slot]:
    """Return the datasets of the given shipped specs."""
    from pathlib import Path

    from soundomni.core.spec.load import load_spec, resolve, shipped_specs

    names = [name for name in (*args.specs, *args.config) if name in shipped_specs() and not Path(name).is_file()]
    data = resolve(load_spec(names, base={})).data if names else None
    return {name: entry.source for name, entry in data.datasets.items() if entry is not None} if data is not None else {}


def _listed(one: dict[str, Any]) -> str:
    """Return a line about the contents of a dataset."""
    left_out = ", ".join(f"{count:,} {group}" for group, count in one["left_out"].items())
    return f"data '{one['name']}': {one['clips']:,} {'clip is' if one['clips'] == 1 else 'clips are'} listed" + (
        f"; left out: {left_out}" if left_out else ""
    )


def _check_start(args: argparse.Namespace, spec: Spec) -> list[str]:
    """Compare the spec with its starting model, and return a line for each codec without weights; skip both if a run
    resumes.

    Notes say what was not compared.
    """
    from pathlib import Path

    from soundomni.cli.console import note
    from soundomni.core.pretrained.directory import hub_name, is_absent
    from soundomni.train.codec_weights import find_random_codecs
    from soundomni.train.run_directory.opening import goes_on
    from soundomni.train.start_weights import open_start

    if spec.model is None:
        return []
    name = spec.model.start
    if spec.train is not None and goes_on(Path(spec.train.run_dir), "resume"):
        return []
    if name is not None and is_absent(name):
        note(f"model.start: '{name}' is not here, so its weights were not compared")
        return []
    of_hub = name is not None and hub_name(name) is not None
    start = open_start(spec, weights=not of_hub, trust_class_paths=args.trust_class_paths)
    if of_hub:
        note(f"model.start: the weights of '{name}' were not fetched; `soundomni train` compares their shapes before the first step")
    return find_random_codecs(spec, start, trust_class_paths=args.trust_class_paths)


def _schema() -> int:
    import json

    from soundomni.cli.console import write
    from soundomni.core.spec.load import spec_schema

    write(json.dumps(spec_schema(), indent=2) + "\n")
    return 0
