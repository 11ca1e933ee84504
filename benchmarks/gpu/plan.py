"""Runs the steps of the plan, each in its own process, and writes down what they find: `make gpu [STEPS=0-4]`.

The plan takes about eight minutes on one H200, and its first steps, which decide whether results are correct, a minute and a half.
Each result is a line of `gpu.jsonl` in the folder of results. A step that passed is skipped by the next call at the same commit, so a
call that was interrupted is resumed by the same command.

With `--device cpu`, the steps themselves are tried, with tiny sizes: this measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import STEPS, Step

ROOT = Path(__file__).parents[2]
SOURCES = ("soundomni", "benchmarks/gpu")
RESULTS, TABLE = "gpu.jsonl", "gpu.md"
SECONDS = 480.0
"""Seconds of a call by default."""
LEAST = 10.0
"""A step does not start with fewer seconds left."""
GRACE = 2.0
"""Seconds in which torchrun ends its processes, which are not in the group of the step."""
NO_GPU = 3
"""Exit status of a step that finds no GPU."""


class InputError(Exception):
    """The user asked for something that does not exist."""


@dataclass(frozen=True)
class Result:
    """Result of a step.

    Args:
        step, name: the step.
        passed: whether all of its conditions hold.
        seconds: how long it took, with the start of its process.
        numbers: what it measured, also if it failed.
        commit: the sources that it ran, see `identify_sources`.
        device: "cuda" or "cpu".
        reason: why it failed.
        skipped: whether it passed in an earlier call.
    """

    step: int
    name: str
    passed: bool
    seconds: float
    numbers: dict[str, Any]
    commit: str
    device: str
    reason: str = ""
    skipped: bool = field(default=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the line of the file of results."""
        data = asdict(self)
        del data["skipped"]
        return {("pass" if key == "passed" else key): value for key, value in data.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Return the result of a line. Raise TypeError or KeyError if it is not one."""
        given = {("passed" if key == "pass" else key): value for key, value in data.items()}
        return cls(**given, skipped=True)


def parse_steps(text: str, steps: Sequence[Step] = STEPS) -> list[Step]:
    """Return the steps that a text such as "0-4" or "2,5" names, in their order; an empty text stands for all.

    Raise InputError if it names something else.
    """
    known = {step.number: step for step in steps}
    chosen: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not numbers or not known.keys() >= set(numbers):
            raise InputError(f"STEPS is '{text}'; expected step numbers from {min(known)} to {max(known)}, such as 0-4 or 2,5")
        chosen |= set(numbers)
    return [step for step in steps if step.number in chosen or not chosen]


def identify_sources(root: Path = ROOT) -> str:
    """Return the commit of the sources, or a digest of them if they differ from it or there is no repository."""
    git = ["git", "-C", str(root)]
    try:
        changes = subprocess.run([*git, "status", "--porcelain", "--", *SOURCES], capture_output=True, text=True, check=True).stdout
        if not changes.strip():
            return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    digest = hashlib.sha256()
    files = (path for source in SOURCES for path in (root / source).rglob("*") if path.suffix in (".py", ".yaml"))
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return f"tree-{digest.hexdigest()[:16]}"


def read_results(folder: Path) -> dict[tuple[int, str, str], Result]:
    """Return the last result of each step, commit and device. A line that a crash cut short does not count."""
    found: dict[tuple[int, str, str], Result] = {}
    path = folder / RESULTS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            result = Result.from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError):
            continue
        found[result.step, result.commit, result.device] = result
    return found


def run_step(step: Step, folder: Path, *, device: str, commit: str, limit: float) -> Result | None:
    """Run a step in its own process, for at most `limit` seconds; None if there is no GPU. Its output is a file next to the results."""
    log = folder / f"step-{step.number:02d}.log"
    command = [sys.executable, "-m", "benchmarks.gpu.child", step.function, device, json.dumps(step.sizes(device))]
    kept = folder.resolve() / "compiled"  # what compilers make is used again by the next call
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(kept), **os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    begun = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(GRACE)
        finally:
            _end(process)
    numbers, reason = read_log(log.read_text(encoding="utf-8", errors="replace"))
    if status == NO_GPU:
        for name, value in numbers.items():
            print(f"{name}: {value}")
        return None
    if status is None:
        reason = f"it took longer than {limit:g} s"
    elif status != 0 and not reason:
        reason = f"it ended with status {status}, see {log.name}"
    seconds = round(time.monotonic() - begun, 1)
    return Result(step.number, step.name, status == 0, seconds, numbers, commit, device, reason)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started, which may still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_log(text: str) -> tuple[dict[str, Any], str]:
    """Return the numbers in the output of a step, and the reason why it failed, or an empty text."""
    numbers: dict[str, Any] = {}
    reason = ""
    for line in text.splitlines():
        if line.startswith(('{"number": ', '{"reason": ')):
            try:
                data = json.loads(line)
            except ValueError:  # cut short
                continue
            if "number" in data:
                numbers[data["number"]] = data["value"]
            else:
                reason = data["reason"]
    return numbers, reason


def as_table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| step | name | result | s | numbers |", "|---|---|---|---|---|"]
    for one in results:
        verdict = ("passed" if one.passed else f"failed: {one.reason}") + (" (earlier)" if one.skipped else "")
        numbers = ", ".join(f"{name} {_shown(value)}" for name, value in one.numbers.items())
        cells = [str(one.step), one.name, verdict, f"{one.seconds:g}", numbers]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def run_plan(steps: Sequence[Step], folder: Path, *, device: str, seconds: float) -> int:
    """Run the steps that have not passed, write the results, and return the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    commit, begun = identify_sources(), time.monotonic()
    earlier = read_results(folder)
    results: list[Result] = []
    for step in steps:
        before = earlier.get((step.number, commit, device))
        if before is not None and before.passed:
            results.append(before)
            continue
        left = seconds - (time.monotonic() - begun)
        if left < LEAST:
            results.append(Result(step.number, step.name, False, 0.0, {}, commit, device, "not run: the time is over; call it again"))
            continue
        result = run_step(step, folder, device=device, commit=commit, limit=min(step.limit, left))
        if result is None:
            print("there is no GPU here: nothing on a GPU was run", file=sys.stderr)
            return 2
        results.append(result)
        with (folder / RESULTS).open("a", encoding="utf-8") as out:
            out.write(json.dumps(result.as_json()) + "\n")
        verdict = "passed" if result.passed else f"failed: {result.reason}"
        print(f"step {step.number}, {step.name}: {verdict} ({result.seconds:g} s)", flush=True)
    table = as_table(results)
    (folder / TABLE).write_text(table, encoding="utf-8")
    print(f"\n{table}", end="")
    return 0 if all(result.passed for result in results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="check correctness and speed on one GPU, step by step")
    parser.add_argument("--steps", default="", metavar="STEPS", help="steps to run, such as 0-4 or 2,5 (default: all)")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu is for trying the steps themselves, with tiny sizes; it measures nothing (default: cuda)",
    )
    folder = os.environ.get("OUT") or "gpu-results"
    parser.add_argument("--out", type=Path, default=Path(folder), help="folder of the results (default: $OUT, or gpu-results)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="most seconds of this call (default: %(default)g)")
    given = parser.parse_args(arguments)
    try:
        steps = parse_steps(given.steps)
    except InputError as problem:
        print(problem, file=sys.stderr)
        return 2
    return run_plan(steps, given.out, device=given.device, seconds=given.seconds)
