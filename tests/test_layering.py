"""Who may import whom: read from the sources with ast, nothing imported."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
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
    "train": {"core", "data", "train"},
    "testing": {"core", "testing"},
    "cli": {"core", "experts", "vae", "flow", "metrics", "data", "train", "testing", "cli"},
}
LIGHT = {
    f"soundomni.core.{name}"
    for name in (
        *("errors", "schema", "registry", "checks", "limits", "spec", "constructors", "convert", "json_schema", "layers", "paths"),
        "slots",
    )
}
LIGHT |= {f"soundomni.core.{name}" for name in ("culprit", "discovery", "provenance", "small_files", "yaml_text")}
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


def is_of(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def violations(module: str, source: str, plugins: set[str], *, package: bool = False) -> list[str]:
    """Returns a line for each import that the design forbids."""
    area = module.split(".")[1] if "." in module else ""
    light = module in LIGHT
    found = []
    for name, runs in imports(module, source, package=package):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "soundomni" and other in MAY_IMPORT and other not in MAY_IMPORT[area]:
            found.append(f"{module} imports {name}: {area or 'the package'} may import {', '.join(sorted(MAY_IMPORT[area]))}")
        if area in ("core", "train") and any(is_of(name, plugin) for plugin in plugins):
            found.append(f"{module} imports {name}: a concrete plugin")
        if runs and (light or area == "cli"):
            mine = area == "cli" and other == "cli"
            if top in HEAVY or (top == "soundomni" and other in MAY_IMPORT and not mine and not any(is_of(name, m) for m in LIGHT)):
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


def test_the_light_modules_exist_and_every_area_is_known():
    modules = set(sources())
    assert modules >= LIGHT
    assert {name.split(".")[1] for name in modules if name.count(".") > 1} == set(MAY_IMPORT) - {"", "__main__"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("soundomni.core.model", "from soundomni.vae.mdct import MDCTCodec"),
        ("soundomni.core.model", "def f():\n    import soundomni.flow.euler"),
        ("soundomni.core.model", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from soundomni import data"),
        ("soundomni.core.model", "from ..vae import mdct"),
        ("soundomni.core.attention", "from soundomni.cli import output"),
        ("soundomni.experts.mot", "from soundomni.flow.euler import EulerSampler"),
        ("soundomni.vae.mdct", "import soundomni.data.audio as audio"),
        ("soundomni.flow.euler", "from soundomni.experts import mot"),
        ("soundomni.data.packer", "from soundomni.train.loop import train"),
        ("soundomni.metrics.waveform", "from soundomni.data.analysis import analyse"),
        ("soundomni.train.loop", "from soundomni.vae.mdct import MDCTCodec"),
        ("soundomni.train.loop", "def f():\n    from soundomni.data.toy_sounds import ToySounds"),
        ("soundomni.train.loop", "from soundomni.train.tensorboard import TensorBoardTracker"),
        ("soundomni.testing.codecs", "from soundomni.vae.mdct import MDCTCodec"),
        ("soundomni.cli.train", "from soundomni.train.loop import train"),
        ("soundomni.cli.train", "import torch"),
        ("soundomni.cli.train", "from soundomni.core.hub import SoundOmni"),
        ("soundomni.core.registry", "import torch.nn as nn"),
        ("soundomni.core.spec", "from soundomni.core.interfaces import KINDS"),
        ("soundomni.core.schema", "if True:\n    import numpy as np"),
        ("soundomni.core.errors", "class A:\n    from transformers import x"),
        ("soundomni", "from soundomni.cli.main import main"),
    ],
)
def test_a_forbidden_import_is_caught(module, source):
    assert violations(module, source, plugin_modules())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("soundomni.core.model", "import torch\nfrom soundomni.core.interfaces import Codec"),
        ("soundomni.experts.mot", "from soundomni.core.layout import Layout\nfrom soundomni.experts import modality"),
        ("soundomni.train.loop", "from soundomni.data.packer import Packer\nfrom soundomni.core.registry import build"),
        ("soundomni.cli.train", "def run():\n    import torch\n    from soundomni.train.loop import train"),
        (
            "soundomni.cli.train",
            "from soundomni import __version__\nfrom soundomni.core.errors import SpecError\nfrom soundomni.cli import output",
        ),
        ("soundomni.core.registry", "def load():\n    from soundomni.core import interfaces"),
        ("soundomni.core.spec", "from soundomni.core import registry"),
        ("soundomni.core.spec", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("soundomni", "def __getattr__(name):\n    from soundomni.core.hub import SoundOmni"),
    ],
)
def test_an_allowed_import_is_let_through(module, source):
    assert violations(module, source, plugin_modules()) == []
