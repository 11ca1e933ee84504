"""A plugin distribution on disk, as an installer leaves it: modules beside a *.dist-info with real entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jsonargparse import _typehints

from soundomni.core.spec import registry

WriteDistribution = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets commands say nothing of their progress: how long they take must not decide what a test finds on stderr."""
    monkeypatch.setattr("soundomni.cli.progress.FIRST_SECONDS", 3600.0)


@pytest.fixture(autouse=True)
def jsonargparse_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `extend_jsonargparse`, which changes the whole process: pages and snippets that run in this one call it."""
    monkeypatch.setattr(_typehints, "resolve_class_path_by_name", _typehints.resolve_class_path_by_name)


@pytest.fixture
def write_distribution(tmp_path: Path) -> WriteDistribution:
    """Returns a function that writes a distribution into a folder of its own and returns the folder, which is not on sys.path yet."""

    def write(name: str, *, groups: dict[str, dict[str, str]], modules: dict[str, str], version: str = "1.2.3", folder: str = "") -> Path:
        root = tmp_path / (folder or f"site-{name}")
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = [f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in names.items()) for group, names in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(points))
        for module, source in modules.items():
            (root / f"{module}.py").write_text(source)
        return root

    return write


@pytest.fixture
def install(write_distribution: WriteDistribution, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteDistribution]:
    """As `write_distribution`, and puts the folder on sys.path for the test; its modules are forgotten afterwards."""
    names: set[str] = set()

    def put(name: str, *, modules: dict[str, str], **settings: object) -> Path:
        root = write_distribution(name, modules=modules, **settings)
        monkeypatch.syspath_prepend(str(root))
        names.update(modules)
        return root

    yield put
    for cls in [cls for cls, entry in registry.loaded().items() if entry.target.partition(":")[0] in names or cls.__module__ in names]:
        del registry._foreign[cls]
    for name in names:
        sys.modules.pop(name, None)
