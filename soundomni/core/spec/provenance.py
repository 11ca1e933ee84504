"""The meaning of plugin names in a spec that was written elsewhere, or before something else was installed.

In a user's own spec a short name means the only plugin of that name; if there are several, an error asks for
`dist:name`. A shipped spec means soundomni's own plugins. A run and a model directory record the distribution of each
plugin, which determines what is meant; older ones without that record mean soundomni's own plugin if there is one of
the name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import PluginError, describe
from soundomni.core.files.names import CONFIG_FILE, LOCK_FILE, REPORT_FILE, SPEC_FILE
from soundomni.core.files.small_files import read_json
from soundomni.core.spec import registry
from soundomni.core.spec.discovery import OWN, normalized
from soundomni.core.spec.schema import Spec
from soundomni.core.spec.slots import map_names, slots

RECORD_KEY = "distributions"
"""Key of the record in config.json of a model directory; lock.json of a run is itself the record."""

_MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The distribution that a plugin came from when a spec was written."""

    distribution: str
    version: str


Record = Mapping[str, Source]
"""Dotted key of a slot → where its plugin came from."""


def record(spec: Spec) -> list[dict[str, Any]]:
    """Return {distribution, version, slots} for each distribution that a spec uses, sorted; `slots` are the keys of its
    plugins."""
    entries: list[dict[str, Any]] = [{**entry, "slots": []} for entry in registry.lock(spec)]
    for key, kind, slot in slots(spec):
        if registry.is_registered(kind, slot.class_path):
            distribution = registry.find(kind, slot.class_path).distribution
            next(entry for entry in entries if entry["distribution"] == distribution)["slots"].append(key)
    return entries


def record_beside(spec_file: Path) -> Record | None:
    """Return the record of the run, model directory or imported codec to which a spec file belongs; None for any other
    file."""
    if spec_file.name == "codec.yaml" and spec_file.with_name(REPORT_FILE).is_file():
        return {}
    if spec_file.name != SPEC_FILE:
        return None
    if (spec_file.with_name(LOCK_FILE)).is_file():
        return read_record(spec_file.with_name(LOCK_FILE))
    return read_record(spec_file.with_name(CONFIG_FILE)) if spec_file.with_name(CONFIG_FILE).is_file() else None


def read_record(file: Path) -> Record:
    """Return the record in lock.json or config.json; an empty one if it has none or, with a warning, if it is
    damaged."""
    try:
        tree = read_json(file, most_bytes=_MOST_BYTES)
        entries = tree.get(RECORD_KEY, []) if isinstance(tree, dict) else tree
        return {key: _source(entry) for entry in entries for key in entry.get("slots", ())}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        logger.warning("'%s' does not say which distributions its plugins come from: %s", file, describe(error))
        return {}


def settle_names(tree: Mapping[str, Any], known: Record) -> dict[str, Any]:
    """Return plain data of a written spec with each plugin's current name here, by its record or else by
    `settled_name`."""

    def settle(key: str, kind: str, name: str) -> str:
        return settled_name(kind, name, known[key].distribution if key in known else None)

    return map_names(tree, settle)


def own_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of a shipped spec, or a part of one, with each name meaning soundomni's own plugin."""
    return map_names(tree, lambda key, kind, name: settled_name(kind, name, OWN))


def lasting_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of a spec with third-party plugins as `dist:name`, which `settle_names` can read whatever is
    installed then."""

    return map_names(tree, lambda key, kind, name: lasting_name(kind, name))


def lasting_name(kind: str, name: str) -> str:
    """Return the short name of one of soundomni's plugins, `dist:name` of a third-party plugin, and an import path
    unchanged."""
    if not registry.is_registered(kind, name):
        return name
    entry = registry.find(kind, name)
    return entry.name if entry.distribution == OWN else entry.qualified_name


def settled_name(kind: str, name: str, distribution: str | None) -> str:
    """Return the name that a plugin of a written spec has here: the short name if it is unique, otherwise `dist:name`.

    Args:
        kind: one of KINDS.
        name: name as it was written.
        distribution: distribution that it came from; None if that is not known.
    """
    given, short = registry.split_name(kind, name)
    wanted = given or distribution
    hits = [entry for entry in registry.entries(kind) if entry.name == short]
    if wanted is None:
        wanted = OWN if len(hits) > 1 and any(entry.distribution == OWN for entry in hits) else None
    if wanted is None:
        return name
    found = next((entry for entry in hits if normalized(entry.distribution) == normalized(wanted)), None)
    if found is None:
        return name if given else f"{wanted}:{short}"
    return short if len(hits) == 1 else found.qualified_name


def check_installed(kind: str, name: str, source: Source | None) -> None:
    """Raise PluginError, which says how to install it, if a plugin of a model or a run is missing here."""
    given, short = registry.split_name(kind, name)
    if source is None or normalized(given) != normalized(source.distribution) or registry.is_registered(kind, name):
        return
    here = registry.installed_version(source.distribution)
    wanted = source.distribution if here is None else f"{source.distribution}=={source.version}"
    lacks = "is not installed here" if here is None else f"is not in {source.distribution} {here}, which is installed here"
    made = f"this model was made with {source.distribution} {source.version}"
    raise PluginError(f"{kind} '{short}' {lacks}; {made}: pip install {wanted}")


def _source(entry: Mapping[str, Any]) -> Source:
    source = Source(entry["distribution"], entry["version"])
    # Errors say what to install, in words that a user may paste into a shell.
    if not _NAME.fullmatch(source.distribution) or not _VERSION.fullmatch(source.version):
        raise ValueError(f"'{source.distribution} {source.version}' is not a valid name and version of a distribution")
    return source
