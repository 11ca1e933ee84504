"""`soundomni plugins new`: write a package with one working plugin that is registered and passes the suite of its kind.

The package is filled in from soundomni/cli/templates: one file for each kind, and files that all kinds share.
"""

from __future__ import annotations

import argparse
import re
import shutil
from importlib import resources
from pathlib import Path
from string import Template

from soundomni.core.errors import PluginError
from soundomni.core.files.paths import slug
from soundomni.core.spec import registry, yaml_text

KINDS = tuple(kind for kind in registry.KINDS if kind != "backbone")
"""Kinds that have a template."""

LONGEST_NAME = 40

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_USE = {
    "codec": "`--model.codec=$name`",
    "critic": "`--codec.critics.mine=$name`",
    "sampler": "`--sampler=$name`",
    "router": "`--model.router=$name`",
    "connector": "`--model.connectors.latent=$name` and `--model.connectors.features=$name`",
    "encoder": "`--model.encoder=$name`",
    "objective": "`--model.objective=$name`",
    "dataset": "`source: $name` of an entry of `data.datasets`",
    "filter": "`filters: {mine: $name}` of an entry of `data.datasets`",
    "augmentation": "`augmentations: {mine: $name}` of an entry of `data.datasets`",
    "tracker": "`--train.trackers=[$name]`",
    "optimizer": "`--train.optimizer.rule=$name`",
}
"""How a spec, or an override, names a plugin of each kind."""

_TESTS = {"connector": "test_connector", "critic": "test_critic", "tracker": "test_tracker"}
"""Test templates for kinds whose plugins get arguments from the assembly; all others use `test`."""


def run(args: argparse.Namespace) -> int:
    """Write the package and print the next commands."""
    from soundomni.cli.console import emit

    folder = write_package(args.kind, args.name, None if args.out is None else Path(args.out))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    commands = (f"cd {folder}", "pip install -e '.[test]'", "pytest", f"soundomni plugins show {args.kind} {args.name}")
    text = "\n".join([f"wrote {folder}", "", *(f"    {command}" for command in commands)])
    emit(args, {"kind": args.kind, "name": args.name, "folder": str(folder), "files": files}, text=text)
    return 0


def write_package(kind: str, name: str, out: Path | None = None) -> Path:
    """Write a package with a plugin of a kind and return its folder: `out`, or `soundomni-<name>` in the working
    directory.

    Raise PluginError if the kind is unknown or has no template, the name does not consist of lowercase words and dashes
    or is already registered, or the folder exists.
    """
    _check(kind, name)
    distribution = distribution_of(name)
    package = distribution.replace("-", "_")
    folder = out or Path(distribution)
    if folder.exists():
        raise PluginError(f"'{folder}' already exists; give --out a new folder")
    contract = kind.capitalize()
    words = "".join(word.capitalize() for word in name.split("-"))
    values = {
        "kind": kind,
        "name": name,
        "distribution": distribution,
        "package": package,
        "contract": contract,
        "class_name": words if words.endswith(contract) and words != contract else words + contract,
    }
    values["usage"] = Template(_USE[kind]).substitute(values)
    files = {
        "pyproject.toml": "pyproject",
        "README.md": "readme",
        f"src/{package}/__init__.py": "package",
        f"src/{package}/{kind}.py": kind,
        f"tests/test_{package}.py": _TESTS.get(kind, "test"),
    }
    texts = {folder / path: _template(template).substitute(values) for path, template in files.items()}
    try:
        for target, text in texts.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except BaseException:  # half a package would block the next attempt
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def distribution_of(name: str) -> str:
    """Return the name of the package that is written for a plugin."""
    return f"soundomni-{name}"


def _check(kind: str, name: str) -> None:
    known = registry.entries(kind)
    if kind not in KINDS:
        raise PluginError(f"there is no template for a {kind}; start from soundomni.experts.mot, and test with soundomni.testing")
    if not _is_name(name):
        near = slug(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name), longest=2 * len(name), default="")
        hint = f" Did you mean '{near}'?" if _is_name(near) else ""
        raise PluginError(f"the name is '{name}'; expected lowercase words and dashes, at most {LONGEST_NAME} characters.{hint}")
    if not isinstance(yaml_text.parse(name, "a plugin's name"), str):
        raise PluginError(f"a spec would not read '{name}' as text; choose another name")
    taken = next((entry for entry in known if entry.name == name), None)
    if taken is not None:
        raise PluginError(f"{kind} '{name}' is already registered by {taken.distribution}; choose another name")
    for other in registry.KINDS:
        if any(entry.distribution == distribution_of(name) for entry in registry.entries(other)):
            raise PluginError(f"the package {distribution_of(name)} is already installed and has a {other}; choose another name")


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and _NAME.fullmatch(text) is not None


def _template(name: str) -> Template:
    return Template((resources.files("soundomni") / "cli" / "templates" / f"{name}.txt").read_text(encoding="utf-8"))
