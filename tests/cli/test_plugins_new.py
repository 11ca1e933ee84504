"""`soundomni plugins new`: what it writes is a package whose plugin registers, works and passes its suite."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from soundomni.cli.main import main
from soundomni.cli.plugins_new import KINDS, LONGEST_NAME
from soundomni.core.spec import registry


def write(kind: str, name: str, out: Path) -> Path:
    """Writes a package and adds the metadata that an installer would, read from its pyproject.toml; returns its source folder."""
    assert main(["plugins", "new", kind, name, "--out", str(out)]) == 0
    project = tomllib.loads((out / "pyproject.toml").read_text())["project"]
    info = out / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = ((group, name, target) for group, names in project["entry-points"].items() for name, target in names.items())
    (info / "entry_points.txt").write_text("\n".join(f"[{group}]\n{name} = {target}\n" for group, name, target in points))
    return out / "src"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of every kind: kind → its folder."""
    folder = tmp_path_factory.mktemp("new")
    for kind in KINDS:
        write(kind, f"acme-{kind}-7", folder / kind)
    return {kind: folder / kind for kind in KINDS}


def python(folder: Path, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"OMP_NUM_THREADS": "1"} | settings
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, env=given, capture_output=True, text=True, check=False)


def test_every_kind_but_the_backbone_has_a_template() -> None:
    assert set(registry.KINDS) - set(KINDS) == {"backbone"}


def test_what_is_written_is_linted_and_formatted(written: dict[str, Path], tmp_path: Path) -> None:
    longest = tmp_path / "long"
    for kind in KINDS:
        write(kind, "x" * LONGEST_NAME, longest / kind)
    folders = [*written.values(), longest]
    for command in (["check"], ["format", "--check"]):
        ended = python(tmp_path, "-m", "ruff", *command, "--no-cache", *folders)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.long
def test_what_is_written_passes_its_own_suite(written: dict[str, Path]) -> None:
    sources = os.pathsep.join(str(folder / "src") for folder in written.values())
    tests = [folder / "tests" for folder in written.values()]
    ended = python(tests[0].parent, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *tests, PYTHONPATH=sources)
    assert ended.returncode == 0, ended.stdout[-4000:]
    passed = set(re.findall(r"PASSED \S*test_soundomni_acme_(\w+)_7\.py", ended.stdout))
    assert passed == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_takes_it_as_its_readme_says(kind: str, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(written[kind] / "src"))
    name = f"acme-{kind}-7"
    loaded = registry.load(kind, name)
    assert loaded.__name__ == f"Acme{kind.capitalize()}7{kind.capitalize()}" and loaded.__module__ == f"soundomni_acme_{kind}_7.{kind}"
    usage = (written[kind] / "README.md").read_text().rpartition("A spec then takes it as ")[2]
    entry = f"source: {name}" if kind == "dataset" else f"source: toy-sounds, {kind}s: {{mine: {name}}}"
    overrides = re.findall(r"`(--[^`]+)`", usage) or [f"--data.datasets.mine={{{entry}, tasks: {{generate: 1}}}}"]
    assert all(name in override for override in overrides)
    if kind != "critic":  # nano trains a model, which has no critics
        assert main(["spec", "validate", "nano", *overrides]) == 0


def test_without_out_the_folder_is_named_after_the_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said = result("plugins", "new", "sampler", "acme-sampler")
    assert said["folder"] == "soundomni-acme-sampler"
    assert {path.relative_to(tmp_path / said["folder"]).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(said["files"])
    source = (tmp_path / said["folder"] / "src" / "soundomni_acme_sampler" / "sampler.py").read_text()
    assert "class AcmeSampler(Sampler):" in source, "the kind is not said twice"


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("codek", "acme", "Did you mean 'codec'?"),
        ("backbone", "acme", "no template for a backbone"),
        ("codec", "AcmeFold", "Did you mean 'acme-fold'?"),
        ("codec", "acme_fold", "Did you mean 'acme-fold'?"),
        ("codec", "7th", "lowercase words and dashes"),
        ("codec", "a/../b", "Did you mean 'a-b'?"),
        ("codec", "acme-", "Did you mean 'acme'?"),
        ("codec", "acme\n", "Did you mean 'acme'?"),
        ("codec", "x" * (LONGEST_NAME + 1), f"at most {LONGEST_NAME} characters"),
        ("codec", "mdct", "already registered by soundomni"),
        ("encoder", "null", "a spec would not read 'null' as text"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    kind: str, name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in fails("plugins", "new", kind, name)
    assert not list(tmp_path.iterdir())


def test_a_name_whose_package_is_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
    monkeypatch.syspath_prepend(write("codec", "acme", tmp_path / "a"))
    assert "the package soundomni-acme is already installed and has a codec" in fails(
        "plugins", "new", "sampler", "acme", "--out", tmp_path / "b"
    )


def test_what_cannot_be_written_whole_is_not_left_in_half(tmp_path: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        f"from soundomni.cli.main import main; sys.exit(main(['plugins', 'new', 'codec', 'acme', '--out', {str(tmp_path / 'a')!r}]))"
    )
    done = python(tmp_path, "-c", program)
    assert done.returncode == 2 and "File too large" in done.stderr and not (tmp_path / "a").exists()


def test_an_existing_folder_is_refused(tmp_path: Path, fails: Any) -> None:
    (tmp_path / "mine").mkdir()
    assert "already exists" in fails("plugins", "new", "codec", "acme", "--out", tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())
