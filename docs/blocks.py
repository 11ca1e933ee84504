"""The code blocks of the pages, and how they are run: by the tests, and by the site's build to show what they print.

The blocks of a page run in order in one empty folder.

| block | what happens |
|---|---|
| `python` | runs; names stay for the later blocks of the page |
| `bash` | `soundomni` runs in this process, `pytest` and `torchrun` in their own; `pip install -e` is imitated |
| any, with `title="path"` | is written to that file, not run |

Other lines of `bash` blocks, and blocks of other languages, are only shown.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import _typehints

TRAINING = ("torchrun ", "soundomni train ", "soundomni demo")
"""How commands begin that train."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)(?P<settings>[^\n]*)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: `end` is where it ends in the text, `title` the file it is to be, if any."""

    language: str
    code: str
    end: int
    title: str | None

    @property
    def lines(self) -> list[str]:
        """Commands of a bash block, continued lines joined, without comments."""
        joined = self.code.replace("\\\n", " ")
        return [line.split(" #")[0].strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]

    @property
    def trains(self) -> bool:
        """Whether one of its commands trains."""
        return self.language == "bash" and any(line.startswith(TRAINING) for line in self.lines)


def blocks(markdown: str) -> list[Block]:
    """Returns the fenced blocks of a page in order."""
    found = []
    for match in _FENCE.finditer(markdown):
        title = _TITLE.search(match["settings"])
        found.append(Block(match["language"], textwrap.dedent(match["code"]), match.end(), title[1] if title else None))
    return found


@dataclass
class Workspace:
    """A folder in which the blocks of one page run.

    Args:
        folder: where.
        adapt: changes the arguments of a command before it runs.
    """

    folder: Path
    adapt: Callable[[list[str]], list[str]] = list
    _names: dict[str, object] = field(default_factory=dict)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Works in the folder; afterwards modules that came from it are forgotten, and jsonargparse is as it was."""
        before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
        resolve = _typehints.resolve_class_path_by_name
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path
            _typehints.resolve_class_path_by_name = resolve
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).is_relative_to(self.folder):
                    del sys.modules[name]

    def run(self, block: Block) -> str:
        """Runs a block and returns what it printed on stdout. Raises RuntimeError when a command fails."""
        if block.title is not None:
            target = self.folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, encoding="utf-8")
            return ""
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, "<block>", "exec"), self._names)
            return printed.getvalue()
        return "".join(self._command(line) for line in block.lines) if block.language == "bash" else ""

    def _command(self, line: str) -> str:
        words = shlex.split(line)
        if line.startswith("soundomni "):
            return run_command(self.adapt(words[1:]), line)
        if line.startswith("pip install -e "):
            install(self.folder / words[-1].removesuffix("[test]"), self.folder / ".site")
            return ""
        if words[0] == "cd":
            os.chdir(self.folder / words[1])
            return ""
        if words[0] in ("pytest", "torchrun"):
            return self._process(words, line)
        return ""

    def _process(self, words: list[str], line: str) -> str:
        module = {"pytest": ["pytest", "-p", "no:cacheprovider"], "torchrun": ["torch.distributed.run", "--standalone"]}[words[0]]
        command = [sys.executable, "-m", *module, *(self.adapt(words[1:]) if words[0] == "torchrun" else words[1:])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        if done.returncode:
            raise RuntimeError(f"`{line}` ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout


def run_command(arguments: list[str], line: str) -> str:
    """Runs `soundomni` with arguments and returns its stdout. Raises RuntimeError unless it ends with status 0."""
    from soundomni.cli.main import main

    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        status = main(arguments)
    if status:
        raise RuntimeError(f"`{line}` ended with status {status}: {told.getvalue().strip()}")
    return printed.getvalue()


def install(project: Path, site: Path) -> None:
    """Leaves what an editable install leaves: the sources on sys.path, and the metadata of the distribution with its entry points."""
    with (project / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["project"]
    info = site / f"{settings['name'].replace('-', '_')}-{settings['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {settings['name']}\nVersion: {settings['version']}\n")
    groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in settings["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(groups))
    sources = project / "src"
    sys.path[:0] = [str(sources if sources.is_dir() else project), str(site)]
    importlib.invalidate_caches()
