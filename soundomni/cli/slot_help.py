"""`--KEY.help [NAME]`: show the arguments of a plugin as the options that set them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soundomni.cli.parsing import UsageError
from soundomni.core.errors import did_you_mean

if TYPE_CHECKING:
    from soundomni.core.spec.keys import Key


@dataclass(frozen=True)
class SlotHelp:
    """A request for help about a slot.

    Args:
        slot: the slot of the spec.
        name: name of the plugin; None for a list of all of its kind.
    """

    slot: Key
    name: str | None


def find_request(arguments: Sequence[str]) -> SlotHelp | None:
    """Return the request of the first `--KEY.help [NAME]` among the arguments of a command; None if there is none.

    Without NAME, it is the plugin that the same line chooses for the slot, by `--KEY=NAME` or else by the specs after
    `--config`, if any. Raise UsageError for a spec key that does not take a plugin, and SpecError if a spec cannot be
    read.
    """
    given = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for place, token in enumerate(given):
        option, _, name = token.partition("=")
        if not option.startswith("--") or not option.endswith(".help"):
            continue
        slot = _slot(option.removeprefix("--").removesuffix(".help"))
        if slot is not None:
            name = name or _value_after(given, place) or ""
            return SlotHelp(slot, name or _chosen(given, slot) or _chosen_by_specs(given, slot))
    return None


def _slot(key: str) -> Key | None:
    """Return the slot of a key; None for a key below a slot, or one that is not a spec key."""
    from soundomni.core.spec.keys import slot_at, spec_keys

    slots = [of_spec.name for of_spec in spec_keys() if of_spec.kind is not None]
    sections = {name.partition(".")[0] for name in (of_spec.name for of_spec in spec_keys())}
    parts = key.split(".")
    if parts[0] not in sections or any(slot_at(".".join(parts[:length])) for length in range(1, len(parts))):
        return None
    slot = slot_at(key)
    if slot is None:
        near, every = did_you_mean(key, slots), ", ".join([*slots, "data.datasets.NAME.source"])
        raise UsageError(f"--{key}.help: '{key}' does not take a plugin; expected one of {every}.{near}")
    return slot


def show(request: SlotHelp, args: argparse.Namespace, *, prog: str) -> int:
    """Print the help. Raise PluginError if there is no such plugin, or if it is broken."""
    from soundomni.cli.console import emit
    from soundomni.cli.plugins import description
    from soundomni.core.spec import registry

    kind = request.slot.kind
    assert kind is not None, "a slot has a kind of plugin"
    if request.name is None:
        names = list(dict.fromkeys(entry.name for entry in registry.entries(kind)))
        text = f"`--{request.slot.name}.help NAME` shows the arguments of a {kind}. Installed: {', '.join(names)}"
        emit(args, {"kind": kind, "names": names}, text=text)
        return 0
    described = description(kind, registry.load(kind, request.name, trust_class_paths=args.trust_class_paths))
    emit(args, described, text=_text(request, described, prog))
    return 0


def _text(request: SlotHelp, described: dict[str, Any], prog: str) -> str:
    key, name, takes = request.slot.name, described["name"], described["init_args"]
    if request.slot.many:
        usage = f"{prog} ... '--{key}=[{{class_path: {name}{', init_args: {ARGUMENT: VALUE}' if takes else ''}}}]'"
    else:
        usage = f"{prog} ... --{key}={name}{f' [--{key}.ARGUMENT=VALUE ...]' if takes else ''}"
    usage = usage.replace("%", "%%")
    parser = argparse.ArgumentParser(prog=prog, usage=usage, description=described["summary"], add_help=False)
    nothing = None if takes else "It does not have any."
    group = parser.add_argument_group(f"arguments of {described['kind']} '{name}'", nothing)
    for argument in takes:
        default = "required" if argument["required"] else f"default: {argument['default']!r}"
        text = f"{argument['description']} ({argument['type']}; {default})".strip().replace("%", "%%")
        if request.slot.many:
            group.add_argument(argument["name"], help=text)
        else:
            group.add_argument(f"--{key}.{argument['name']}", metavar="VALUE", help=text)
    return parser.format_help()


def _value_after(given: Sequence[str], place: int) -> str | None:
    following = given[place + 1] if place + 1 < len(given) else "--"
    return None if following.startswith("--") else following


def _values(given: Sequence[str], *options: str) -> Iterator[str]:
    """Yield the values that the line gives to these options, in order."""
    for place, token in enumerate(given):
        option, equals, value = token.partition("=")
        if option in options and (value := value if equals else _value_after(given, place) or ""):
            yield value


def _chosen(given: Sequence[str], slot: Key) -> str | None:
    """Return the plugin that the line itself chooses for a slot: the last one, because later overrides win."""
    from soundomni.core.spec.load import parse_slot

    assert slot.kind is not None, "a slot has a kind of plugin"
    values = [] if slot.many else list(_values(given, f"--{slot.name}", f"--{slot.name}.class_path"))
    return parse_slot(slot.kind, values[-1]).class_path if values else None


def _chosen_by_specs(given: Sequence[str], slot: Key) -> str | None:
    """Return the plugin that the specs of the line choose for a slot. Only the files are read, not a starting model."""
    from soundomni.core.spec.load import read_layers

    configs = list(_values(given, "--config"))
    for tree in reversed(read_layers(configs).trees if configs else ()):
        found: Any = tree
        for part in slot.name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        name = found.get("class_path") if isinstance(found, Mapping) else found
        if isinstance(name, str):
            return name
    return None
