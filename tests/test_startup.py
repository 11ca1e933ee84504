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


def test_a_clip_is_made_without_what_only_training_and_pictures_need(tmp_path):
    packages = (
        "sympy",
        "matplotlib",
        "scipy",
        "torch.distributed.tensor",
        "torch.nn.attention.varlen",
        "transformers",
    )
    line = ["generate", "--model", "nano", "--prompt", "a rising sine tone", "--steps", "1", "--seconds", "0.1", "--no-pictures"]
    script = "import sys\nfrom soundomni.cli.main import main\nstatus = main(sys.argv[1:])\n"
    script += f"print('loaded', *[name for name in {packages} if name in sys.modules])\nsys.exit(status)"
    arguments = [sys.executable, "-c", script, *line, "--out", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert [file.suffix for file in tmp_path.glob("000*")] == [".wav"]


def test_a_command_called_from_python_leaves_the_garbage_collector_as_it_was():
    script = "import gc, sys\nfrom soundomni.cli.main import main\nfrom soundomni.cli.start_up import importing\n"
    script += "with importing():\n    assert not gc.isenabled()\nassert gc.isenabled() and gc.get_freeze_count() > 1000\n"
    script += "main(['generate', '--model', 'nowhere', '--prompt', 'a'])\n"
    script += "assert gc.isenabled() and gc.get_freeze_count() == 0\n"
    script += "gc.disable()\nwith importing():\n    pass\nassert not gc.isenabled()"
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


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
