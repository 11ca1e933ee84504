"""Find the installed plugins in the metadata of distributions, without importing any of them.

A distribution whose metadata cannot be read does not affect others: it becomes a fault, which is logged once as a
warning and listed by `soundomni plugins list`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import describe

KINDS = (
    *("backbone", "router", "connector", "codec", "critic", "sampler", "encoder", "objective", "dataset", "filter", "augmentation"),
    *("tracker", "optimizer"),
)
OWN = "soundomni"
"""The distribution of the built-in plugins."""

_GROUPS = {f"soundomni.{kind}s": kind for kind in KINDS}
_POINTS = "entry_points.txt"

_every_distribution = importlib.metadata.distributions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginEntry:
    """A registered plugin, known from metadata only.

    Args:
        kind: one of KINDS; the entry-point group is `soundomni.<kind>s`.
        name: the short name.
        distribution: the installed distribution that registers it; empty for a class named by its import path.
        version: version of that distribution.
        target: "package.module:Class"; text in any other form is kept, and refused when the plugin is used.
        extras: comma-separated names of the optional dependencies that the plugin needs.
    """

    kind: str
    name: str
    distribution: str
    version: str
    target: str
    extras: str = ""

    @property
    def qualified_name(self) -> str:
        """Name that stays unique whatever else is installed."""
        return f"{self.distribution}:{self.name}"

    @property
    def label(self) -> str:
        """Kind, name and distribution, as errors name a plugin."""
        origin = f" of {self.distribution} {self.version}" if self.distribution else ""
        return f"{self.kind} '{self.name}'{origin}"


@dataclass(frozen=True)
class Fault:
    """Something wrong with the metadata of a distribution.

    Args:
        distribution: its name and version, as far as they are known.
        reason: what is wrong, and what follows from it.
    """

    distribution: str
    reason: str


@dataclass(frozen=True)
class Installed:
    """What a scan finds.

    Args:
        entries: kind → plugins, sorted by name.
        faults: problems with distributions that could not be read in full.
    """

    entries: Mapping[str, tuple[PluginEntry, ...]]
    faults: tuple[Fault, ...]


@functools.lru_cache(maxsize=4)
def scan(path: tuple[str, ...]) -> Installed:
    """Read the entry points of every distribution, once per state of `sys.path`, and warn about each fault."""
    found: dict[str, list[PluginEntry]] = {kind: [] for kind in KINDS}
    faults: list[Fault] = []
    seen: set[str] = set()
    for distribution in _every_distribution():
        try:
            points = _points(distribution)
        except Exception as error:  # broken metadata of one distribution must not affect plugins of others
            name, version, _ = _identity(distribution)
            reason = f"{_reason(distribution, error)}, so its plugins are left out; reinstall it, or correct '{_folder(distribution)}'"
            faults.append(Fault(f"{name} {version}", reason))
            continue
        if not points:
            continue
        name, version, wrong = _identity(distribution)
        if normalized(name) in seen:  # the first one on sys.path is the one that imports
            continue
        seen.add(normalized(name))
        faults += [Fault(f"{name} {version}", reason) for reason in (wrong, *_slips(points)) if reason]
        for entry in _entries(points, name, version):
            found[entry.kind].append(entry)
    unique = tuple(dict.fromkeys(faults))  # a folder may be on sys.path under two names
    for fault in unique:
        logger.warning("%s: %s", fault.distribution, fault.reason)
    return Installed({kind: tuple(sorted(of, key=lambda entry: (entry.name, entry.distribution))) for kind, of in found.items()}, unique)


def provider_of(package: str) -> tuple[str, str]:
    """Return name and version of the distribution that a top-level package comes from; "" and "unknown" if there is
    none."""
    for distribution in _every_distribution():
        try:
            names = (distribution.read_text("top_level.txt") or "").split()
            names = names or [file.parts[0].removesuffix(".py") for file in distribution.files or ()]
        except Exception:  # see scan
            continue
        if package in names:
            name, version, _ = _identity(distribution)
            return name, version
    return "", "unknown"


@contextlib.contextmanager
def only_readable() -> Iterator[None]:
    """Hide distributions with unreadable entry points from everybody who asks importlib.metadata within the block,
    except `scan`.

    torch and triton, among others, read the entry points of every distribution when they are imported, and would fail
    because of one that has nothing to do with them.
    """
    before = importlib.metadata.distributions

    def readable(**settings: Any) -> Iterator[importlib.metadata.Distribution]:
        return (distribution for distribution in before(**settings) if _is_readable(distribution))

    importlib.metadata.distributions = readable
    try:
        yield
    finally:
        importlib.metadata.distributions = before


def _is_readable(distribution: importlib.metadata.Distribution) -> bool:
    try:
        list(distribution.entry_points)
        return bool(getattr(distribution, "_normalized_name", "unknown"))  # importlib.metadata recognizes copies by it
    except Exception:  # scan reports it
        return False


def normalized(distribution: str) -> str:
    """Return the name of a distribution as installers compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _points(distribution: importlib.metadata.Distribution) -> list[importlib.metadata.EntryPoint]:
    every = list(distribution.entry_points)
    folder = _folder(distribution)
    if not every and isinstance(folder, Path):
        # importlib.metadata treats an unreadable file as a missing one
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / _POINTS).read_bytes()
    return [point for point in every if point.group in _GROUPS]


def _entries(points: list[importlib.metadata.EntryPoint], distribution: str, version: str) -> Iterator[PluginEntry]:
    named: set[tuple[str, str]] = set()
    for point in points:
        if point.name and (point.group, point.name) not in named:
            named.add((point.group, point.name))
            yield PluginEntry(_GROUPS[point.group], point.name, distribution, version, *_target(point))


def _target(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Return "package.module:Class" and the extras."""
    try:
        module, path = point.module, point.attr
    except AttributeError:  # the value has another form; the error comes when the plugin is used
        return point.value, ""
    extras = re.search(r"\[(.*)\]\s*$", point.value)  # EntryPoint.extras splits names at dashes
    return f"{module}:{path}" if path else module, extras[1].replace(" ", "") if extras else ""


def _slips(points: list[importlib.metadata.EntryPoint]) -> Iterator[str]:
    """Yield a text for each entry point that cannot be used as it is."""
    first: dict[tuple[str, str], str] = {}
    for point in points:
        kind = _GROUPS[point.group]
        plugin = f"{_POINTS} registers {kind} '{point.name}'"
        if not point.name:
            yield f"{_POINTS} registers '{point.value}' as a {kind} without a name, so it is left out; give it a name"
        elif not point.pattern.match(point.value):
            yield f"{plugin} as '{point.value}'; expected 'package.module:Class'; correct it"
        elif (kept := first.setdefault((kind, point.name), point.value)) != point.value:
            yield f"{plugin} twice, as '{kept}' and as '{point.value}'; the first is used; remove one"


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str, str | None]:
    """Return name and version, taken from the folder's name if METADATA lacks them, and what is wrong in that case."""
    folder = _folder(distribution)
    stem = re.sub(r"\.(dist|egg)-info$", "", getattr(folder, "name", ""))
    by_folder = [part or "unknown" for part in [*stem.split("-"), ""]][:2]
    try:
        told = distribution.metadata
        name, version = told["Name"], told["Version"]
        reason = "it has no METADATA with Name and Version"
    except Exception as error:  # see scan
        name, version = None, None
        reason = "its METADATA is not UTF-8" if isinstance(error, UnicodeDecodeError) else "its METADATA cannot be read"
    if name and version:
        return str(name), str(version), None
    known = str(name or by_folder[0]), str(version or by_folder[1])
    return *known, f"{reason}, so it is treated as {known[0]} {known[1]}; reinstall it, or correct '{folder}'"


def _folder(distribution: importlib.metadata.Distribution) -> object:
    """Return where the metadata is; importlib.metadata has no public name for it, and other finders may store it
    elsewhere."""
    return getattr(distribution, "_path", type(distribution).__name__)


def _reason(distribution: importlib.metadata.Distribution, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"its {_POINTS} is not UTF-8"
    if isinstance(error, OSError):
        return f"its {_POINTS} cannot be read: {error.strerror}"
    with contextlib.suppress(Exception):  # only to improve on the parser's message
        _, _, sections = (distribution.read_text(_POINTS) or "").partition("[")
        for line in sections.splitlines()[1:]:
            text = line.strip()
            if text and not text.startswith(("#", "[")) and "=" not in text:
                return f"its {_POINTS} is malformed: '{text}' is not NAME = MODULE:CLASS"
    return f"its {_POINTS} cannot be read: {describe(error)}"
