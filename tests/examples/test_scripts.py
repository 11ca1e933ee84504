"""Each short script of examples/ runs on its own, as the README says, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from soundomni.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"

TINY = [
    "--model.backbone.hidden_dim=64",
    "--model.backbone.num_layers=1",
    "--model.backbone.num_heads=2",
    "--model.backbone.intermediate_dim=32",
    "--model.normalize=global",
    "--sampler.num_steps=2",
    "--data.tokens_per_batch=512",
    "--data.workers=0",
    "--train.steps=2",
    "--train.validation.every=0",
    "--train.threads=1",
]


def run_script(name: str, *arguments: str | Path, cwd: Path) -> str:
    """Runs a script in an empty folder and returns what it printed; a warning is a failure."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """Every number in `text` where the pattern has `#`."""
    found = re.findall(pattern.replace("#", NUMBER), text)
    return [float(number) for match in found for number in (match if isinstance(match, tuple) else (match,))]


def test_every_script_is_short_and_in_the_readme() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [script.stem for script in scripts] == [
        "codec_alone",
        "own_model_in_the_loop",
        "packed_attention",
        "sampler_alone",
        "use_a_model",
    ]
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 50, script.name
        assert f"examples/{script.name}" in README


def test_codec_alone(tmp_path: Path) -> None:
    exact, untrained, trained = numbers(r"SI-SDR # dB", run_script("codec_alone.py", cwd=tmp_path))
    assert exact > 100
    assert untrained < 0 and trained > 10


def test_sampler_alone(tmp_path: Path) -> None:
    coarse, coarse_deviation, *fine = numbers(r"radius # with deviation #", run_script("sampler_alone.py", cwd=tmp_path))
    assert abs(coarse - 2) > 0.3 and coarse_deviation > 0.3, "two Euler steps cannot follow curved paths"
    assert len(fine) == 4
    for radius, deviation in (fine[:2], fine[2:]):
        assert radius == pytest.approx(2, abs=0.1) and deviation < 0.2


def test_packed_attention(tmp_path: Path) -> None:
    printed = run_script("packed_attention.py", cwd=tmp_path)
    assert "3 documents, 8 segments, 196 tokens" in printed and "executor merged" in printed
    differences = numbers(r"(?:reference|gradients): #", printed)
    assert len(differences) == 2 and max(differences) < 1e-4


def test_own_model_in_the_loop(tmp_path: Path) -> None:
    first, last = run_script("own_model_in_the_loop.py", cwd=tmp_path).splitlines()
    assert first.startswith("steps 0 to 60: ") and last.startswith("steps 60 to 200: ")
    assert numbers(r"y = # x \+ #", last) == pytest.approx([3, 1], abs=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: the shipped nano, made tiny and hardly trained."""
    folder = tmp_path_factory.mktemp("scripts")
    assert main(["train", "--config", "nano", f"--train.run_dir={folder / 'run'}", *TINY]) == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "model")]) == 0
    return folder / "model"


@pytest.mark.long
def test_use_a_model(model: Path, tmp_path: Path) -> None:
    prompts = ["a rising chirp", "two clicks"]
    lines = run_script("use_a_model.py", model, "sounds", *prompts, cwd=tmp_path).splitlines()
    assert len(lines) == 2
    for number, (prompt, line) in enumerate(zip(prompts, lines, strict=True)):
        assert line.startswith(f"sounds/{number}.wav and sounds/{number}.png: asked for '{prompt}', heard ")
        assert soundfile.info(tmp_path / "sounds" / f"{number}.wav").duration == 0.5
        assert (tmp_path / "sounds" / f"{number}.png").read_bytes().startswith(b"\x89PNG")
