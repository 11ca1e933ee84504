"""Who may import whom: read from the sources with ast, nothing imported."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "": {"core"},
    "__main__": {"cli"},
    "core": {"core"},
    "experts": {"core", "experts"},
    "vae": {"core", "vae"},
    "flow": {"core", "flow"},
    "metrics": {"core", "metrics"},
    "data": {"core", "data", "metrics"},
    "evaluation": {"core", "data", "metrics", "evaluation"},
    "train": {"core", "data", "train"},
    "testing": {"core", "testing"},
    "cli": {"core", "experts", "vae", "flow", "metrics", "data", "train", "evaluation", "testing", "cli"},
}
CORE_ROOMS = ("language", "attention", "spec", "writing", "assembly", "inference", "pretrained")
"""Rooms of core; each may import those before it. The modules at its root, and core.files, are the language."""
LIGHT = {
    "soundomni.data.audio_formats",
    "soundomni.evaluation.settings",
    "soundomni.core.batches",
    "soundomni.core.errors",
    "soundomni.core.lazy_names",
    "soundomni.core.limits",
    "soundomni.core.files.names",
    "soundomni.core.files.paths",
    "soundomni.core.files.small_files",
}
"""Modules outside core.spec that import nothing heavy."""
HEAVY = {"torch", "numpy", "transformers", "jsonargparse", "matplotlib", "scipy", "soundfile", "soxr", "tokenizers", "safetensors"}


def plugin_modules() -> set[str]:
    """Modules of the concrete plugins, from the entry points."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return {target.partition(":")[0] for names in groups.values() for target in names.values()}


def imports(module: str, source: str, *, package: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields (dotted name, whether importing `module` runs it); imports for type checkers alone are not run."""

    def visit(node: ast.AST, runs: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if package else module.split(".")[:-1]
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from ((f"{origin}.{alias.name}", runs) for alias in node.names)
        checking = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, runs and not checking and not inside)

    yield from visit(ast.parse(source), True)


def is_light(name: str) -> bool:
    return any(is_of(name, module) for module in LIGHT | {"soundomni.core.spec"})


def room(name: str) -> int | None:
    """Returns the place of a name's room in CORE_ROOMS, None outside core."""
    parts = name.split(".")
    if parts[:2] != ["soundomni", "core"] or len(parts) < 3:
        return None
    return CORE_ROOMS.index(parts[2]) if parts[2] in CORE_ROOMS else 0


def is_of(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def violations(module: str, source: str, plugins: set[str], *, package: bool = False) -> list[str]:
    """Returns a line for each import that the design forbids."""
    area = module.split(".")[1] if "." in module else ""
    light = is_light(module)
    found = []
    for name, runs in imports(module, source, package=package):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "soundomni" and other in MAY_IMPORT and other not in MAY_IMPORT[area]:
            found.append(f"{module} imports {name}: {area or 'the package'} may import {', '.join(sorted(MAY_IMPORT[area]))}")
        here, there = room(module), room(name)
        if runs and here is not None and there is not None and there > here:
            found.append(f"{module} imports {name}: {CORE_ROOMS[here]} comes before {CORE_ROOMS[there]} in core")
        if area in ("core", "train") and any(is_of(name, plugin) for plugin in plugins):
            found.append(f"{module} imports {name}: a concrete plugin")
        if runs and (light or area == "cli"):
            mine = area == "cli" and other == "cli"
            if top in HEAVY or (top == "soundomni" and other in MAY_IMPORT and not mine and not is_light(name)):
                found.append(f"{module} imports {name} when it is imported: only inside functions")
    return found


def sources() -> dict[str, Path]:
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "soundomni").rglob("*.py"))}


def test_the_library_keeps_its_layers():
    plugins, found = plugin_modules(), []
    for module, path in sources().items():
        package = path.name == "__init__.py"
        found += violations(module.removesuffix(".__init__"), path.read_text(encoding="utf-8"), plugins, package=package)
    assert not found, "\n".join(found)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for name in graph[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        reached[start] = seen
    groups = {frozenset(other for other in seen if name in reached[other]) for name, seen in reached.items() if name in seen}
    return sorted(map(sorted, groups))


def module_of(name: str, known: Mapping[str, object]) -> str | None:
    """Return the module that an imported name is, or lies in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def test_no_modules_import_each_other_not_even_for_type_checkers_or_inside_functions():
    paths = {module.removesuffix(".__init__"): path for module, path in sources().items()}
    graph = {}
    for module, path in paths.items():
        names = imports(module, path.read_text(encoding="utf-8"), package=path.name == "__init__.py")
        graph[module] = {found for name, _ in names if (found := module_of(name, paths)) is not None} - {module}
    assert not circles(graph)


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_the_light_modules_exist_and_every_area_is_known():
    modules = set(sources())
    assert modules >= LIGHT
    assert {name.split(".")[2] for name in modules if name.startswith("soundomni.core.") and name.count(".") > 2} == {
        *CORE_ROOMS[1:],
        "files",
    }
    assert {name.split(".")[1] for name in modules if name.count(".") > 1} == set(MAY_IMPORT) - {"", "__main__"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("soundomni.core.assembly.model", "from soundomni.vae.mdct import MDCTCodec"),
        ("soundomni.core.assembly.model", "def f():\n    import soundomni.flow.euler"),
        ("soundomni.core.assembly.model", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from soundomni import data"),
        ("soundomni.core.assembly.model", "from ...vae import mdct"),
        ("soundomni.core.attention", "from soundomni.cli import console"),
        ("soundomni.experts.mot", "from soundomni.flow.euler import EulerSampler"),
        ("soundomni.vae.mdct", "import soundomni.data.audio as audio"),
        ("soundomni.flow.euler", "from soundomni.experts import mot"),
        ("soundomni.data.packer", "from soundomni.train.loop import train"),
        ("soundomni.metrics.waveform_distances", "from soundomni.data.toys.analysis import analyze"),
        ("soundomni.train.loop", "from soundomni.vae.mdct import MDCTCodec"),
        ("soundomni.train.loop", "def f():\n    from soundomni.data.toys.toy_sounds import ToySounds"),
        ("soundomni.train.loop", "from soundomni.train.trackers.tensorboard import TensorBoardTracker"),
        ("soundomni.testing.codecs", "from soundomni.vae.mdct import MDCTCodec"),
        ("soundomni.cli.train", "from soundomni.train.loop import train"),
        ("soundomni.cli.train", "import torch"),
        ("soundomni.cli.train", "from soundomni.core.pretrained.omni import SoundOmni"),
        ("soundomni.core.spec.registry", "import torch.nn as nn"),
        ("soundomni.core.spec.load", "from soundomni.core.interfaces import KINDS"),
        ("soundomni.core.spec.schema", "if True:\n    import numpy as np"),
        ("soundomni.core.errors", "class A:\n    from transformers import x"),
        ("soundomni", "from soundomni.cli.main import main"),
    ],
)
def test_a_forbidden_import_is_caught(module, source):
    assert violations(module, source, plugin_modules())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("soundomni.core.assembly.model", "import torch\nfrom soundomni.core.interfaces import Codec"),
        ("soundomni.experts.mot", "from soundomni.core.attention.layout import Layout\nfrom soundomni.experts import modality"),
        ("soundomni.train.loop", "from soundomni.data.packer import Packer\nfrom soundomni.core.spec.registry import build"),
        ("soundomni.cli.train", "def run():\n    import torch\n    from soundomni.train.loop import train"),
        (
            "soundomni.cli.train",
            "from soundomni import __version__\nfrom soundomni.core.errors import SpecError\nfrom soundomni.cli import console",
        ),
        ("soundomni.core.spec.registry", "def load():\n    from soundomni.core import interfaces"),
        ("soundomni.core.spec.load", "from soundomni.core.spec import registry"),
        ("soundomni.core.spec.load", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("soundomni", "def __getattr__(name):\n    from soundomni.core.pretrained.omni import SoundOmni"),
    ],
)
def test_an_allowed_import_is_let_through(module, source):
    assert violations(module, source, plugin_modules()) == []
