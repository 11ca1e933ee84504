"""The files for containers keep what their page promises, as far as their text says it: nothing is built here."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "containers"
DOCKERFILE, DEFINITION = FOLDER / "Dockerfile", FOLDER / "soundomni.def"
PAGE = (ROOT / "docs" / "tutorials" / "container.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: name and the rest, on one line."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def given(name: str) -> list[str]:
    """What all instructions of a name say."""
    return [rest for instruction, rest in instructions() if instruction == name]


def sections() -> dict[str, list[str]]:
    """The sections of the definition, and its head under ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in DEFINITION.read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def defaults() -> dict[str, dict[str, str]]:
    """File → its build arguments and their defaults."""
    pairs = (argument.split("=") for argument in given("ARG"))
    return {
        "docker": dict(pairs),
        "apptainer": dict(line.split("=") for line in sections()["arguments"]),
    }


def copied() -> dict[str, list[str]]:
    """File → what it copies from the checkout."""
    docker = [source for line in given("COPY") for source in line.split()[:-1]]
    return {"docker": docker, "apptainer": [line.split()[0] for line in sections()["files"]]}


def test_what_they_copy_exists_and_reaches_the_builder() -> None:
    ignore = [line for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for sources in copied().values():
        assert sources == ["pyproject.toml", "README.md", "LICENSE", "soundomni"]
        for source in sources:
            assert (ROOT / source).exists() and f"!{source}" in ignore
    assert ignore[0] == "*" and not any(fnmatch.fnmatch(source, ignore[-1]) for source in copied()["docker"])


def test_the_base_is_a_python_that_the_package_accepts_with_a_tag_of_its_own() -> None:
    (base,) = given("FROM")
    (theirs,) = [line.removeprefix("From:").strip() for line in sections()[""] if line.startswith("From:")]
    for image, arguments in ((base.replace("${PYTHON}", "{{ PYTHON }}"), defaults()["docker"]), (theirs, defaults()["apptainer"])):
        assert re.fullmatch(r"python:\{\{ PYTHON \}\}-slim-\w+", image)
        assert arguments["PYTHON"] in SpecifierSet(PROJECT["requires-python"])
        assert f"Programming Language :: Python :: {arguments['PYTHON']}" in PROJECT["classifiers"]


def test_cpu_is_the_default_and_extras_exist() -> None:
    for arguments in defaults().values():
        assert arguments["TORCH"] == "cpu"
        assert set(arguments["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()


def test_both_install_the_checkout_in_the_same_way() -> None:
    (install,) = [line for line in given("RUN") if "/src" in line]
    steps = [step.strip() for step in install.split("&&")]
    written = [step.replace("${TORCH}", "{{ TORCH }}").replace("${EXTRAS:+[${EXTRAS}]}", "[{{ EXTRAS }}]") for step in steps]
    assert written == sections()["post"]
    assert re.search(r'--torch-backend "\{\{ TORCH \}\}" "/src\[\{\{ EXTRAS \}\}\]"$', written[1])


def test_the_image_runs_the_command_as_a_user_with_volumes_for_caches_and_runs() -> None:
    names = [name for name, _ in instructions()]
    (user,) = given("USER")
    assert user == "soundomni" and any(line.startswith("useradd") and "${UID}" in line for line in given("RUN"))
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN"), "root installs, and nothing after it"
    (entry,), (command,) = given("ENTRYPOINT"), given("CMD")
    assert json.loads(entry) == ["soundomni"] and "soundomni" in PROJECT["scripts"] and json.loads(command) == ["--help"]
    assert sections()["runscript"] == ['exec soundomni "$@"'] and sections()["apprun torchrun"] == ['exec torchrun "$@"']
    (volumes,), (directory,), (variables,) = given("VOLUME"), given("WORKDIR"), given("ENV")
    environment = dict(pair.split("=") for pair in variables.split())
    assert json.loads(volumes) == ["/cache", directory]  # below another mount, a volume would hide it
    assert environment["XDG_CACHE_HOME"] == "/cache" and environment["HF_HOME"].startswith("/cache/")


@pytest.mark.parametrize("file", [DOCKERFILE, DEFINITION], ids=["docker", "apptainer"])
def test_they_name_no_index_fetch_no_model_and_follow_no_moving_tag(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for forbidden in (
        r"https?://",
        r"index-url",
        r":latest",
        r"\bhf download",
        r"\bcurl\b",
        r"\bwget\b",
        r"git clone",
        r"snapshot_download",
    ):
        assert not re.search(forbidden, text), forbidden


def test_the_page_names_build_arguments_volumes_and_files_that_exist() -> None:
    known = defaults()["docker"].keys()
    assert set(re.findall(r"--build-arg (\w+)=", PAGE)) <= known and all(f"`{name}`" in PAGE for name in known)
    for path in re.findall(r"containers/[\w.]+", PAGE):
        assert (ROOT / path).is_file(), path
    assert all(volume in PAGE for volume in json.loads(given("VOLUME")[0]))


@pytest.mark.long
def test_the_package_is_complete_with_what_they_copy(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name in copied()["docker"]:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    built = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("soundomni-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert f"soundomni = {PROJECT['scripts']['soundomni']}" in entry_points
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "soundomni").rglob("*.py")}
    expected |= {path.relative_to(ROOT).as_posix() for folder in ("specs", "models") for path in (ROOT / "soundomni" / folder).rglob("*.*")}
    assert {name for name in expected if "__pycache__" not in name} <= names
