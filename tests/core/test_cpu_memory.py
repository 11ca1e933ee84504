"""Memory that is used again: what is set, who keeps what they set themselves, and that nothing else changes."""

import os
import platform
import subprocess
import sys

import pytest

from soundomni.core.cpu_memory import HUGE_PAGES, reuse_cpu_memory

GLIBC = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
PROGRAM = """
import resource, sys
from soundomni.core.cpu_memory import reuse_cpu_memory
if sys.argv[1] == "on":
    assert reuse_cpu_memory()
import numpy
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        blocks = [numpy.ones(2**20) for _ in range(2)]  # 8 MB each, the largest at the end of the heap
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "THP_"))}


@pytest.mark.skipif(not GLIBC, reason="needs Linux with glibc")
def test_freed_memory_is_not_fetched_again() -> None:
    """Otherwise most of the 2048 pages of each of 100 blocks are new to the process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, "on"], env=clean(), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2048


@pytest.mark.skipif(not GLIBC, reason="needs Linux with glibc")
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_user_stay(name: str) -> None:
    environment = {name: "1"}
    assert not reuse_cpu_memory(environment)
    assert environment == {name: "1"}


@pytest.mark.skipif(not GLIBC, reason="needs Linux with glibc")
def test_huge_pages_are_asked_for_unless_the_user_says_no() -> None:
    asked: dict[str, str] = {"PATH": "/bin"}
    refused = {HUGE_PAGES: "0"}
    assert reuse_cpu_memory(asked) and reuse_cpu_memory(refused)
    assert asked == {"PATH": "/bin", HUGE_PAGES: "1"}
    assert refused == {HUGE_PAGES: "0"}


@pytest.mark.parametrize("system", ["Darwin", "Windows", "Java", ""])
def test_other_systems_are_left_alone(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    environment: dict[str, str] = {}
    assert not reuse_cpu_memory(environment)
    assert environment == {}


@pytest.mark.skipif(not GLIBC, reason="needs Linux with glibc")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["generate", "--help"], None), (["plugins", "list"], None), (["generate", "--model", "nowhere", "--prompt", "a"], "1")],
)
def test_only_commands_that_compute_set_it(arguments: list[str], expected: str | None) -> None:
    program = "import os, sys\nfrom soundomni.cli.main import main\nmain(sys.argv[2:])\nprint(os.environ.get(sys.argv[1]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, HUGE_PAGES, *arguments], env=clean(), capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == str(expected)
