"""What the README shows works, and every shipped spec trains."""

import re
from pathlib import Path

import pytest

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec, shipped_specs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
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
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("soundomni ")]
    assert len(commands) >= 10
    import shlex

    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments += SMALL
        if arguments[0] == "evaluate":
            arguments += ["--limit", "4"]
        assert main(arguments) == 0, command


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_valid(name: str) -> None:
    load_spec([name], [], base={})
    assert main(["spec", "validate", name]) == 0
