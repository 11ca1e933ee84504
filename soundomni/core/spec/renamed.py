"""Keys of a spec that have been renamed. Specs and overrides with the old names are still read, and written with the new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soundomni.core.errors import SpecError
from soundomni.core.spec.discovery import OWN

_RENAMED = {
    "model.normalise": "normalize",
    "guidance.renormalise": "renormalize",
    "guidance.renormalise_min": "renormalize_min",
    "model.backbone.init_args.copy_initialise": "copy_initialize",
}
"""Old dotted key → new last part."""
_PLUGINS = {"model.backbone": "mot"}
"""The plugin whose arguments have been renamed, by the key of its slot; arguments of other plugins keep their names."""


def current_key(key: str) -> str:
    """Return a dotted key of a spec under its present name."""
    return f"{key.rpartition('.')[0]}.{_RENAMED[key]}" if key in _RENAMED else key


def current_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data of a spec, or of one of its layers, with every key under its present name.

    Raises:
        SpecError: a key is given under both names.
    """
    return _renamed(tree, "")


def _renamed(tree: Mapping[str, Any], above: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{above}.{name}" if above else name
        new = name if "." in str(name) else _RENAMED.get(key, name)  # a dotted key is only a key on the command line
        if new != name and new in tree:
            raise SpecError(f"{key} and {above}.{new} are both given; expected one. Remove {key}, the old name")
        within = isinstance(value, Mapping) and any(old.startswith(f"{key}.") for old in _RENAMED) and _is_meant(key, value)
        result[new] = _renamed(value, key) if within else value
    return result


def _is_meant(key: str, value: Mapping[str, Any]) -> bool:
    plugin = _PLUGINS.get(key)
    return plugin is None or value.get("class_path", plugin) in (plugin, f"{OWN}:{plugin}")
