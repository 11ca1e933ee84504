"""Try to make training runs lose or mix data: two runs in one directory, kills, signals, failing disks.

    python tools/stress_runs.py owners --starts 20
    python tools/stress_runs.py kills --kills 30 --terms 10 --usr1 10
    python tools/stress_runs.py disks
    python tools/stress_runs.py all

Every run is a separate process with the tiny model of tests/train/tiny_spec.py. Delays and moments are drawn from
--seed. Each part prints a line per attempt and a summary; a broken rule ends the program with status 1. It is not part
of the test suite, because each start of torch takes seconds.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "train")]

from tiny_spec import tiny_spec  # noqa: E402

from soundomni.core.spec.load import dump_spec  # noqa: E402
from soundomni.train.checkpoint import find_latest, list_checkpoints, run_of  # noqa: E402
from soundomni.train.metrics_log import read_metrics  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
FINISHED, STOPPED, REFUSED = 0, 75, 2
PATIENCE = 600.0
"""Seconds after which a run that has not ended counts as hung."""


class Broken(Exception):
    """A rule was broken."""


def expect(holds: bool, what: str) -> None:
    """Raise Broken unless `holds`."""
    if not holds:
        raise Broken(what)


class Run:
    """A training process.

    Args:
        config: the spec.
        options: options of `soundomni train`.
        limit: largest size of a file in bytes, as on a full disk; None for no limit.
    """

    def __init__(self, config: Path, options: Sequence[str] = (), *, limit: int | None = None) -> None:
        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it stays open while the process writes to it
        command = [sys.executable, "-m", "soundomni", "train", "--config", str(config), *options]
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=self._errors, preexec_fn=limited)

    def wait(self) -> int:
        """Return the exit status."""
        return self.process.wait(timeout=PATIENCE)

    def errors(self) -> list[str]:
        """Return the lines of stderr that say why it ended."""
        return [line for line in self.output() if line.startswith("soundomni: ")]

    def output(self) -> list[str]:
        """Return all lines of stderr."""
        self._errors.seek(0)
        return self._errors.read().splitlines()

    def expect_one_line(self, status: int) -> str:
        """Wait for the process to end with `status` and one line; return the line."""
        found, lines = self.wait(), self.errors()
        expect(found == status, f"status {found} instead of {status}: {self.output()[-5:]}")
        expect(len(lines) == 1 and "Traceback" not in "\n".join(self.output()), f"expected one line: {self.output()[-9:]}")
        return lines[0]


def config_of(folder: Path, name: str, *overrides: str, label: str = "spec") -> Path:
    """Write the spec of a run in `folder/name`, and return the file."""
    path = folder / f"{name}-{label}.yaml"
    path.write_text(dump_spec(tiny_spec(folder / name, *overrides)))
    return path


def when(logged: Callable[[], int], steps: int, run: Run) -> None:
    """Wait until a run has logged `steps` steps, or has ended."""
    deadline = time.monotonic() + PATIENCE
    while logged() < steps and run.process.poll() is None:
        expect(time.monotonic() < deadline, "no step was logged")
        time.sleep(0.02)


def logged_in(run_dir: Path) -> Callable[[], int]:
    """Return a function that counts the lines of a log."""
    log = run_dir / "metrics.jsonl"
    return lambda: log.read_bytes().count(b"\n") if log.exists() else 0


def check_one_run(run_dir: Path, steps: int) -> str:
    """Check that a finished directory belongs to one run from the first step to the last; return its id."""
    run = str(json.loads((run_dir / "run.json").read_text())["run"])
    entries = list(read_metrics(run_dir / "metrics.jsonl"))
    expect([entry["step"] for entry in entries] == list(range(1, steps + 1)), f"the log is not one of {steps} steps")
    expect({entry["run"] for entry in entries} == {run}, "the log belongs to two runs")
    expect({run_of(path) for path in list_checkpoints(run_dir / "checkpoints")} == {run}, "a checkpoint belongs to another run")
    latest = find_latest(run_dir / "checkpoints", run=run)
    expect(latest is not None and latest.name == f"step-{steps:08d}", f"the newest checkpoint is {latest}")
    expect(not (run_dir / "owner.json").exists(), "owner.json was left")
    return run


def owners(folder: Path, draws: random.Random, *, starts: int) -> None:
    """Start two runs with different learning rates in one directory; every other time, the second overwrites."""
    won = {"first": 0, "second": 0, "both, one after the other": 0}
    for number in range(starts):
        distance, overwrite, steps = draws.uniform(0, 3), number % 2 == 1, draws.choice((4, 40))
        name = f"owners-{number}"
        configs = [config_of(folder, name, f"train.steps={steps}", f"train.optimizer.lr={rate}", label=rate) for rate in ("1e-3", "2e-3")]
        options = ["--existing", "overwrite"] if overwrite else []
        first = Run(configs[0])
        time.sleep(distance)
        second = Run(configs[1], options)
        statuses = [run.wait() for run in (first, second)]
        winners = [run for run, status in zip((first, second), statuses, strict=True) if status == FINISHED]
        for run, status in zip((first, second), statuses, strict=True):
            if status != FINISHED:
                line = run.expect_one_line(REFUSED)
                named = "is in use: process" in line or "was made with a different spec" in line
                expect(named, f"not refused for its owner: {line}")
        expect(len(winners) == 1 or (overwrite and len(winners) == 2), f"{len(winners)} runs finished")
        check_one_run(folder / name, steps)
        rates = {entry["lr"] for entry in read_metrics(folder / name / "metrics.jsonl") if entry["step"] > 2}
        expect(rates == ({2e-3} if winners[-1] is second else {1e-3}), f"the log has the rates {rates}")
        who = "both, one after the other" if len(winners) == 2 else "first" if winners[0] is first else "second"
        won[who] += 1
        print(f"owners {number}: {steps} steps, {distance:.2f} s apart{', overwriting' if overwrite else ''}: {who}", flush=True)
        shutil.rmtree(folder / name)
    print(f"owners: {starts} starts, never a mixed log: {won}")


def kills(folder: Path, draws: random.Random, *, numbers: dict[signal.Signals, int]) -> None:
    """Stop one run repeatedly at random moments, and compare its end with that of an uninterrupted run."""
    total = sum(numbers.values())
    steps = 20 + 12 * total
    settings = (f"train.steps={steps}", "train.save_every=4", "train.validation.every=9", "train.validation.num_describe=1")
    whole = Run(config_of(folder, "whole", *settings))
    expect(whole.wait() == FINISHED, str(whole.output()[-5:]))
    config, run_dir = config_of(folder, "killed", *settings), folder / "killed"
    order = [number for number, count in numbers.items() for _ in range(count)]
    draws.shuffle(order)
    for attempt, number in enumerate(order):
        run = Run(config)
        if draws.random() < 0.25:  # stop it while it starts
            time.sleep(draws.uniform(0.5, 6))
        else:
            before = logged_in(run_dir)()
            when(logged_in(run_dir), before + draws.randint(1, 12), run)
            time.sleep(draws.uniform(0, 0.2))
        run.process.send_signal(number)
        status = run.wait()
        allowed = (-number, STOPPED, FINISHED) if number != signal.SIGKILL else (-number, FINISHED)
        expect(status in allowed, f"status {status} after {number.name}: {run.output()[-5:]}")
        print(f"kills {attempt}: {number.name} after {logged_in(run_dir)()} steps: status {status}", flush=True)
    last = Run(config)
    expect(last.wait() == FINISHED, str(last.output()[-5:]))
    check_one_run(run_dir, steps)
    tensors = [load_file(path / "checkpoints" / f"step-{steps:08d}" / "rank-00000.safetensors") for path in (folder / "whole", run_dir)]
    expect(tensors[0].keys() == tensors[1].keys(), "other tensors")
    differing = [name for name, tensor in tensors[0].items() if not torch.equal(tensor, tensors[1][name])]
    expect(not differing, f"{len(differing)} tensors differ, such as {differing[:1]}")
    counted = ", ".join(f"{count} {number.name}" for number, count in numbers.items())
    print(f"kills: {counted} over {steps} steps: all {len(tensors[0])} tensors are bit for bit those of a run without")


def disks(folder: Path, draws: random.Random) -> None:
    """Make the disk fail in several ways."""
    for name, attempt in {
        "a full disk": full_disk,
        "a log that cannot grow": full_log,
        "a run_dir that is a file": not_a_folder,
        "a deleted run_dir": deleted,
        "a moved run_dir": moved,
        "an unreadable folder": unreadable,
    }.items():
        print(f"disks: {name}: {attempt(folder / name.replace(' ', '-'))}", flush=True)


def full_disk(folder: Path) -> str:
    """Check that on a full disk the run ends, keeps its last checkpoint, and resumes once there is space."""
    folder.mkdir()
    config, run_dir = config_of(folder, "run", "train.steps=12"), folder / "run"
    expect(Run(config, ["--train.steps=3"]).wait() == FINISHED, "three steps")
    line = Run(config, limit=20_000).expect_one_line(REFUSED)
    expect(os.strerror(errno.EFBIG) in line or "could not be written" in line, line)
    latest = find_latest(run_dir / "checkpoints")
    expect(latest is not None and latest.name == "step-00000003", f"the newest checkpoint is {latest}")
    expect(Run(config).wait() == FINISHED, "it resumes")
    check_one_run(run_dir, 12)
    return line


def full_log(folder: Path) -> str:
    """Check that with its log on a full device the run warns once, and takes every step."""
    folder.mkdir()
    config, run_dir = config_of(folder, "run", "train.steps=9"), folder / "run"
    expect(Run(config, ["--train.steps=3"]).wait() == FINISHED, "three steps")
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "metrics.jsonl").symlink_to("/dev/full")
    run = Run(config)
    expect(run.wait() == FINISHED, str(run.output()[-5:]))
    warnings = [line for line in run.output() if "metrics.jsonl' cannot be written" in line]
    expect(len(warnings) == 1, f"{len(warnings)} warnings")
    return warnings[0]


def not_a_folder(folder: Path) -> str:
    """Check that a file in place of the run directory is refused and kept."""
    folder.mkdir()
    config = config_of(folder, "run")
    (folder / "run").write_text("mine")
    line = Run(config).expect_one_line(REFUSED)
    expect((folder / "run").read_text() == "mine", "the file was replaced")
    return line


def deleted(folder: Path) -> str:
    """Check that a run whose directory is deleted ends, saves what it learned, and resumes."""
    folder.mkdir()
    config, run_dir = config_of(folder, "run", "train.steps=400", "train.save_every=50"), folder / "run"
    run = Run(config)
    when(logged_in(run_dir), 20, run)
    shutil.rmtree(run_dir)
    line = run.expect_one_line(REFUSED)
    expect(find_latest(run_dir / "checkpoints") is not None, "nothing was saved")
    expect(Run(config, ["--train.steps=60"]).wait() == FINISHED, "it resumes")
    return line


def moved(folder: Path) -> str:
    """Check that a run whose directory is moved ends, and resumes there bit for bit."""
    folder.mkdir()
    settings = ("train.steps=90", "train.save_every=30")
    expect(Run(config_of(folder, "whole", *settings)).wait() == FINISHED, "the undisturbed run")
    config, run_dir, new = config_of(folder, "run", *settings), folder / "run", folder / "elsewhere"
    run = Run(config)
    when(logged_in(run_dir), 20, run)
    run_dir.rename(new)
    line = run.expect_one_line(REFUSED)
    expect(not run_dir.exists(), "the old place was made again")
    expect(Run(config, [f"--train.run_dir={new}"]).wait() == FINISHED, "it resumes")
    check_one_run(new, 90)
    one, two = (load_file(path / "checkpoints" / "step-00000090" / "rank-00000.safetensors") for path in (folder / "whole", new))
    expect(all(torch.equal(tensor, two[name]) for name, tensor in one.items()), "other weights")
    return line


def unreadable(folder: Path) -> str:
    """Check that overwriting refuses a folder that it cannot read, and keeps everything.

    Permissions do not stop root, for whom the folder has a foreign file instead.
    """
    folder.mkdir()
    config, run_dir = config_of(folder, "run", "train.steps=3"), folder / "run"
    expect(Run(config).wait() == FINISHED, "three steps")
    closed = run_dir / "samples" / "step-00000001"
    closed.mkdir(parents=True)
    (closed / "mine.txt").write_text("mine")
    closed.chmod(0)
    try:
        line = Run(config, ["--existing", "overwrite"]).expect_one_line(REFUSED)
    finally:
        closed.chmod(0o755)
    check_one_run(run_dir, 3)
    expect((closed / "mine.txt").read_text() == "mine", "it was removed")
    return line


def main() -> int:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("owners", "kills", "disks", "all"))
    parser.add_argument("--starts", type=int, default=20, help="pairs of runs in one directory (default: 20)")
    parser.add_argument("--kills", type=int, default=30, help="number of SIGKILLs (default: 30)")
    parser.add_argument("--terms", type=int, default=10, help="number of SIGTERMs (default: 10)")
    parser.add_argument("--usr1", type=int, default=10, help="number of SIGUSR1s (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the delays and moments (default: 0)")
    args = parser.parse_args()
    draws = random.Random(args.seed)
    numbers = {signal.SIGKILL: args.kills, signal.SIGTERM: args.terms, signal.SIGUSR1: args.usr1}
    with tempfile.TemporaryDirectory(prefix="stress-runs-") as folder:
        try:
            if args.part in ("owners", "all"):
                owners(Path(folder), draws, starts=args.starts)
            if args.part in ("kills", "all"):
                kills(Path(folder), draws, numbers=numbers)
            if args.part in ("disks", "all"):
                disks(Path(folder), draws)
        except Broken as broken:
            print(f"broken: {broken}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
