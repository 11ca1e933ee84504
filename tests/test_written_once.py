"""What has a helper is not written again somewhere else."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "soundomni"
ONCE = {
    r"""["'] ["']\.join\(str\(error\)\.split\(\)\)""": ("core/errors.py",),
    r"torch\.arange\(.*(<|>=).*\[:, None\]": ("core/representation.py",),
    r"cannot be read as safetensors": ("core/files/safe_tensors.py",),
    r"mkstemp|NamedTemporaryFile|\bpart\.write_(text|bytes)\(": (),
    r'^\w*(FILE|LOCK|REPORT|SPEC)\w*(, \w+)* = .*"(spec\.yaml|lock\.json|import-report\.json)"': ("core/files/names.py",),
    r"module '.*' has no attribute": ("core/lazy_names.py",),
    r"\bfirst : first \+ (size|batch\w*)\]": ("core/batches.py", "data/digest.py"),
    r"\[\^a-z0-9\]\+.*\.strip": ("core/files/paths.py",),
}


@pytest.mark.parametrize("pattern", ONCE)
def test_it_is_written_in_one_place(pattern):
    found = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if any(re.search(pattern, line) for line in path.read_text(encoding="utf-8").splitlines())
    }
    assert found == set(ONCE[pattern])
