"""What the README shows works, what documents name exists, and every shipped spec is valid."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from t5_files import tiny_t5

from soundomni.cli.main import main
from soundomni.core.spec import registry
from soundomni.core.spec.load import load_spec, shipped_specs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "soundomni/models/nano/README.md",
            "soundomni/models/nano-codes/README.md",
        )
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SMALL = ["--train.steps=2", "--train.threads=1", "--train.validation.every=2", "--train.save_every=2", "--data.tokens_per_batch=1024"]


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as a whole, on two steps of training."""
    folder = tmp_path_factory.mktemp("readme")
    assert main(["demo", "--out", str(folder / "demo"), "--measure", "4", *SMALL]) == 0
    return folder


@pytest.mark.long
def test_the_demo_leaves_sounds_pictures_and_a_model(demo: Path) -> None:
    made = sorted(path.name for path in (demo / "demo" / "clips" / "generated").iterdir())
    assert sum(name.endswith(".wav") for name in made) == sum(name.endswith(".png") for name in made) == 8
    assert len(list((demo / "demo" / "clips" / "heard").glob("*.wav"))) == 4
    samples = demo / "demo" / "run" / "samples"
    assert list(samples.rglob("*.wav")) and list(samples.rglob("*.png"))


@pytest.mark.long
def test_python_snippets_run(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    snippets = blocks("python")
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.long
def test_commands_of_the_readme_run(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    folder = demo / "my-sounds"
    folder.mkdir()
    import numpy as np
    import soundfile

    for i in range(4):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(8000), 16000)
        (folder / f"{i}.txt").write_text("noise")
    (demo / "mine.yaml").write_text(blocks("yaml")[0])
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("soundomni ")]
    assert len(commands) >= 10
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments += SMALL
        if arguments[0] == "evaluate":
            arguments += ["--limit", "4"]
        assert main(arguments) == 0, command


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_valid(name: str, tmp_path: Path) -> None:
    """Some name a text encoder, which is never downloaded; here it is a small one of its width."""
    spec = load_spec([name], [], base={})
    encoders = [] if spec.model is None else [key for key, one in spec.model.used.items() if one.encoder and one.encoder.class_path == "t5"]
    given = [f"--model.modalities.{key}.encoder.name={tiny_t5(tmp_path / key, width=768)}" for key in encoders]
    assert main(["spec", "validate", name, *given]) == 0


def missing_files(text: str) -> list[str]:
    """Return the paths below this repository's folders that a text names and that do not exist."""
    named = re.findall(r"(?<![\w/.-])(?:soundomni|tests|tools|examples|benchmarks|docs)/[\w./-]*\w", text)
    return [path for path in named if not (ROOT / path).exists()]


def missing_names(text: str) -> list[str]:
    """Return the dotted names below `soundomni` that a text names in backticks and that are no module, attribute or entry-point group."""
    groups = {f"soundomni.{kind}s" for kind in registry.KINDS}
    return [name for name in re.findall(r"`(soundomni(?:\.\w+)+)`", text) if name not in groups and not _exists(name)]


def missing_imports(text: str) -> list[str]:
    """Return the names that code of a text imports from `soundomni` and that do not exist."""
    found = re.findall(r"^ *from (soundomni(?:\.[.\w]+)?) import ([\w, ]+)$", text, re.MULTILINE)
    return [name for module, names in found for part in names.split(",") if not _exists(name := f"{module}.{part.split()[0]}")]


def _exists(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if (ROOT / module.replace(".", "/")).is_dir() or (ROOT / f"{module.replace('.', '/')}.py").is_file():
            found: object = importlib.import_module(module)
            for attribute in parts[length:]:
                found = getattr(found, attribute, None)
            return found is not None
    return False


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_names_of_a_document_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not missing_files(text) and not missing_names(text)
    assert not missing_imports(text)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        assert (path.parent / target).exists() or path.is_relative_to(ROOT / "docs"), target  # the site checks those of docs/


def test_missing_files_and_names_are_found() -> None:
    assert missing_files("see soundomni/core/spec/load.py and `tests/no_such.py`") == ["tests/no_such.py"]
    assert missing_names("`soundomni.core.errors.SpecError`, `soundomni.codecs`, `soundomni.core.hub`, `soundomni.flow.NoSampler`") == [
        "soundomni.core.hub",
        "soundomni.flow.NoSampler",
    ]
    assert missing_imports("    from soundomni.core import registry, errors\nfrom soundomni_acme import X") == ["soundomni.core.registry"]


def test_documents_agree_on_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## \[([\d.]+)\] - ([\d-]+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert (citation["version"], str(citation["date-released"])) == changes[0]
    assert f"version = {{{project['version']}}}" in README and citation["version"] == project["version"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert citation["license"] == project["license"]
