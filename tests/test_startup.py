"""What starting costs: time of `soundomni --help`, and what is imported before anything is asked for."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "jsonargparse", "transformers", "matplotlib", "soundfile", "scipy")


def loaded(code: str) -> set[str]:
    """Returns the top-level packages that a fresh interpreter has imported after running `code`."""
    script = f"import sys, json, io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n    {code}\n"
    script += "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import soundomni",
        "from soundomni.cli.main import main; main(['--help'])",
        "from soundomni.cli.main import main; main(['plugins', 'list'])",
        "from soundomni.core import errors; from soundomni.core.spec import registry, schema; registry.entries('codec')",
        "from soundomni.core.spec import load; load.shipped_specs()",
        "import soundomni.evaluation",
        "from soundomni.evaluation import TASKS, Observer, Outcome, Settings",
        "from soundomni.evaluation import shipped_lists; shipped_lists()",
    ],
)
def test_nothing_heavy_is_imported(code):
    packages = loaded(code)
    assert "soundomni" in packages
    assert packages.isdisjoint(HEAVY)


def test_help_imports_no_yaml_and_no_command():
    script = "import sys\nfrom soundomni.cli.main import COMMANDS, main\nmain(['--help'])\n"
    script += "sys.exit(any(f'soundomni.cli.{name}'.replace('-', '_') in sys.modules for name in COMMANDS) or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0


def test_help_answers_in_under_300_ms():
    """Median of five, in processor time: the wall clock of an idle machine, whatever else runs on this one."""
    seconds = []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-m", "soundomni.cli.main", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    assert statistics.median(seconds) < 0.3
