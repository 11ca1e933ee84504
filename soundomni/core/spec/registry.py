"""Plugins by name: found through entry points, imported when used, built from a spec.

Discovery reads the metadata of installed distributions and imports nothing. The built-in plugins register in the same way as those
of other distributions. If two distributions claim a name, an error asks for `dist:name`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from soundomni.core.errors import ConstructionError, PluginError, SoundOmniError, SpecError, describe, did_you_mean, message_of
from soundomni.core.spec.arguments import Argument, ClauseError, spec_arguments
from soundomni.core.spec.discovery import KINDS as KINDS
from soundomni.core.spec.discovery import OWN, Fault, normalized, provider_of, scan
from soundomni.core.spec.discovery import PluginEntry as PluginEntry
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.slots import slots
from soundomni.core.spec.values import convert, plain

_OVERFLOW = re.compile(r"Storage size calculation overflowed|Overflow when unpacking|int too (big|large) to convert|too large for a float")
"""What torch and Python report if sizes have more numbers than they can count."""
_foreign: dict[type, PluginEntry] = {}
"""The third-party plugins that this process has loaded."""


def entries(kind: str) -> tuple[PluginEntry, ...]:
    """Return the registered plugins of a kind, sorted by name, without importing them.

    Raise PluginError for an unknown kind.
    """
    if kind not in KINDS:
        raise PluginError(f"unknown kind of plugin '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    return scan(tuple(sys.path)).entries[kind]


def faults() -> tuple[Fault, ...]:
    """Return what is wrong with the metadata of installed distributions."""
    return scan(tuple(sys.path)).faults


def loaded() -> Mapping[type, PluginEntry]:
    """Return the classes of the third-party plugins that this process has loaded, in the order of loading."""
    return MappingProxyType(_foreign)


def find(kind: str, name: str) -> PluginEntry:
    """Return the plugin registered as `name` or `dist:name`.

    Raise PluginError if there is none, with what is installed, or if several distributions claim the name.
    """
    distribution, short = split_name(kind, name)
    hits = [e for e in entries(kind) if e.name == short and normalized(distribution) in ("", normalized(e.distribution))]
    if len(hits) == 1:
        return hits[0]
    if hits:
        choices = ", ".join(entry.qualified_name for entry in hits)
        raise PluginError(f"{kind} '{name}' is claimed by several distributions. Write one of: {choices}")
    if distribution and installed_version(distribution) is None:
        raise PluginError(
            f"unknown {kind} '{name}': no plugins of '{distribution}' are installed here. Install it, or choose another {kind}"
        )
    known = [entry.name for entry in entries(kind)]
    near = did_you_mean(name, [*known, *(entry.qualified_name for entry in entries(kind))] if distribution else known)
    raise PluginError(f"unknown {kind} '{name}'.{near} Installed: {', '.join(dict.fromkeys(known)) or 'none'}")


def split_name(kind: str, name: str) -> tuple[str, str]:
    """Return distribution and short name of `dist:name`; the distribution is empty for a name without one."""
    if any(entry.name == name for entry in entries(kind)):  # a short name may have a colon
        return "", name
    distribution, colon, short = name.partition(":")
    return (distribution, short) if colon else ("", name)


def is_registered(kind: str, name: str) -> bool:
    """Return whether `name` or `dist:name` names a registered plugin, even if it is ambiguous."""
    distribution, short = split_name(kind, name)
    return any(e.name == short and normalized(distribution) in ("", normalized(e.distribution)) for e in entries(kind))


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution with plugins; None if none of its plugins are installed."""
    found = (entry for kind in KINDS for entry in entries(kind) if normalized(entry.distribution) == normalized(distribution))
    return next((entry.version for entry in found), None)


def load(kind: str, name: str, *, trust_class_paths: bool = False) -> type:
    """Import a plugin and check that it keeps the contract of its kind.

    Args:
        kind: one of KINDS.
        name: `name`, `dist:name`, or, if trusted, a dotted import path "package.module.Class".
        trust_class_paths: whether a dotted path may be imported, which runs the code that it names.

    Raise PluginError, in one line that names the plugin and its distribution, if it is unknown, ambiguous, not trusted,
    does not import, or breaks a clause of the contract.
    """
    entry = _locate(kind, name, trust_class_paths=trust_class_paths)
    cls = _import(entry)
    from soundomni.core import interfaces

    contract = interfaces.KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise PluginError(f"{entry.label} is not a {contract.__name__}: '{entry.target}' must be a subclass of {_path(contract)}")
    arguments(kind, cls, label=entry.label)
    if entry.distribution != OWN:
        _foreign[cls] = entry
    return cls


def arguments(kind: str, cls: type, *, label: str | None = None) -> tuple[Argument, ...]:
    """Return the arguments of a plugin's constructor that a spec may set.

    Raise PluginError if the constructor breaks a clause of the contract; `label` says whose it is.
    """
    from soundomni.core import interfaces

    try:
        return spec_arguments(cls, interfaces.KINDS[kind], runtime_arguments(kind))
    except ClauseError as error:
        raise PluginError(f"{label or f'{kind} {cls.__name__}'} breaks the contract: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # default factories and signatures run the plugin's own code
        raise PluginError(f"{label or f'{kind} {cls.__name__}'}: its arguments cannot be read: {describe(error)}") from error


def runtime_arguments(kind: str) -> tuple[str, ...]:
    """Return the names of the arguments that the assembly passes to plugins of a kind; a spec may not set them."""
    from soundomni.core import interfaces

    return tuple(interfaces.Runtime.ARGUMENTS.get(kind, ()))


def name_of(kind: str, cls: type) -> str:
    """Return the portable name of a plugin class: short name, `dist:name` if others claim that, or import path."""
    # A class of soundomni keeps its name, even if another distribution registers it again.
    hits = sorted((entry for entry in entries(kind) if _is_target(entry, cls)), key=lambda entry: entry.distribution != OWN)
    if not hits:
        return _path(cls)
    unique = sum(entry.name == hits[0].name for entry in entries(kind)) == 1
    return hits[0].name if unique else hits[0].qualified_name


def portable_name(kind: str, name: str, cls: type) -> str:
    """Return the portable name of a plugin that a spec calls `name`, as `name_of` does; a registered name needs no
    class.
    """
    if not is_registered(kind, name):
        return name_of(kind, cls)
    entry = find(kind, name)
    return entry.name if sum(other.name == entry.name for other in entries(kind)) == 1 else entry.qualified_name


def build(kind: str, slot: Slot, *, trust_class_paths: bool = False, **runtime: Any) -> Any:
    """Build the plugin that a slot describes, an instance of the kind's contract.

    Args:
        kind: one of KINDS.
        slot: name and arguments, as in a spec.
        trust_class_paths: see `load`.
        runtime: what the assembly passes; the names are `interfaces.Runtime.ARGUMENTS[kind]`.

    Raise PluginError as `load` does; SpecError, in one line, if an argument is unknown, missing or of a wrong type, or
    if the constructor refuses a value with ValueError or asks torch for too large tensors; and ConstructionError if it
    fails otherwise.
    """
    assert set(runtime) == set(runtime_arguments(kind)), f"a {kind} takes {runtime_arguments(kind)} at run time, not {tuple(runtime)}"
    cls = load(kind, slot.class_path, trust_class_paths=trust_class_paths)
    given = _convert_arguments(kind, slot, cls)
    try:
        return cls(**given, **runtime)
    except ValueError as error:
        raise SpecError(f"{kind} '{slot.class_path}': {message_of(error)}") from error
    except SpecError as error:
        if slot.class_path in str(error):
            raise
        raise SpecError(f"{kind} '{slot.class_path}': {error}") from error
    except (SoundOmniError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a constructor may fail in any way, and even call sys.exit(); the plugin must be named
        if isinstance(error, (RuntimeError, TypeError, OverflowError)) and _OVERFLOW.search(str(error)):
            raise SpecError(f"{kind} '{slot.class_path}': its sizes ask for tensors that are too large. Use smaller sizes") from error
        entry = _locate(kind, slot.class_path, trust_class_paths=trust_class_paths)
        raise ConstructionError(f"{entry.label} cannot be constructed: {describe(error)}") from error


def validate_init_args(kind: str, slot: Slot, *, trust_class_paths: bool = False) -> dict[str, Any]:
    """Check a slot's arguments without building anything; return all arguments, defaults filled in, as plain data.

    Raise as `build` does before it calls the constructor.
    """
    cls = load(kind, slot.class_path, trust_class_paths=trust_class_paths)
    given = plain(_convert_arguments(kind, slot, cls))
    return {argument.name: given.get(argument.name, argument.default) for argument in arguments(kind, cls)}


def lock(spec: Spec) -> list[dict[str, str]]:
    """Return {distribution, version} for the origin of a spec's plugins, see `distributions`."""
    return distributions((kind, slot) for _, kind, slot in slots(spec))


def distributions(used_slots: Iterable[tuple[str, Slot]]) -> list[dict[str, str]]:
    """Return {distribution, version} for the origin of the plugins in (kind, slot) pairs, sorted; import nothing.

    A class named by its import path is looked up by its top-level package; its version is "unknown" if that is not
    installed.
    """
    used: dict[str, str] = {}
    for kind, slot in used_slots:
        entry = _locate(kind, slot.class_path, trust_class_paths=True)
        distribution, version = entry.distribution, entry.version
        if not distribution:
            package = entry.target.split(":")[0].split(".")[0]
            distribution, version = provider_of(package)
        used[distribution or package] = version
    return [{"distribution": name, "version": used[name]} for name in sorted(used)]


def _locate(kind: str, name: str, *, trust_class_paths: bool) -> PluginEntry:
    registered = any(entry.name == name for entry in entries(kind))
    if registered or "." not in name or ":" in name:
        return find(kind, name)
    if not trust_class_paths:
        raise PluginError(
            f"{kind} '{name}' is an import path, not a plugin name. Use --trust-class-paths to allow import paths in your own specs; "
            "model directories can never use them"
        )
    module, _, cls = name.rpartition(".")
    return PluginEntry(kind, name, "", "", f"{module}:{cls}")


def _import(entry: PluginEntry) -> Any:
    point = importlib.metadata.EntryPoint(entry.name, entry.target, entry.kind)
    try:
        module, path = point.module, point.attr
    except AttributeError as error:
        raise PluginError(f"{entry.label} is registered as '{entry.target}'; expected 'package.module:Class'. Ask its author") from error
    try:
        found: Any = importlib.import_module(module)
        for name in path.split(".") if path else ():
            found = getattr(found, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's module may fail in any way; it must be named, and nothing else may fail with it
        extras = f". Run `pip install '{entry.distribution}[{entry.extras}]'`" if entry.extras and isinstance(error, ImportError) else ""
        raise PluginError(f"{entry.label} cannot be imported from '{entry.target}': {describe(error)}{extras}") from error
    return found


def _convert_arguments(kind: str, slot: Slot, cls: type) -> dict[str, Any]:
    label, runtime = f"{kind} '{slot.class_path}'", runtime_arguments(kind)
    known = {argument.name: argument for argument in arguments(kind, cls)}
    for name in slot.init_args:
        if name in runtime:
            raise SpecError(f"{label}: '{name}' is set by the assembly, not by a spec. Remove it")
        if name not in known:
            takes = f"It takes: {', '.join(known)}" if known else "It takes no arguments"
            raise SpecError(f"{label} has no argument '{name}'.{did_you_mean(name, known)} {takes}")
    missing = [name for name, argument in known.items() if argument.required and name not in slot.init_args]
    if missing:
        raise SpecError(f"{label}: missing {_list('argument', missing)}. Add {'it' if len(missing) == 1 else 'them'} to the spec")
    return {name: convert(value, known[name].annotation, f"{label}: {name}") for name, value in slot.init_args.items()}


def _is_target(entry: PluginEntry, cls: type) -> bool:
    module, _, path = entry.target.partition(":")
    if (module, path) == (cls.__module__, cls.__qualname__):
        return True
    # Registered under a module that re-exports it. The module is not used: its __getattr__ may fail in any way.
    return getattr(sys.modules.get(module), "__dict__", {}).get(path) is cls


def _list(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
