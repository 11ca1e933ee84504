"""The own-parser example: each command of its README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "own-parser"
COMMANDS = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("python ")]


@pytest.mark.parametrize(
    ("command", "expected"),
    list(
        zip(
            COMMANDS,
            [
                r"MDCTCodec: latents \[1, 256, 33\], SI-SDR 1\d\d\.\d dB",
                r"ShapeGainCodec: latents \[1, 65, 33\]",
                r"ShapeGainCodec: latents \[1, 33, 64\]",
                "--codec.companding COMPANDING",
            ],
            strict=True,
        )
    ),
)
def test_a_command_of_the_example_runs(command: str, expected: str) -> None:
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=FOLDER, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and re.search(expected, done.stdout), done.stdout + done.stderr
