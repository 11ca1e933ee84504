"""Steps 6 and 7: a whole run that is stopped and resumed, also under torchrun, and how often the host waits for the GPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import soundomni
from benchmarks.gpu.findings import Findings, Number, prepare
from benchmarks.gpu.models import Built, built, pack, spec_of
from benchmarks.gpu.outcomes import Failed
from soundomni import Audio
from soundomni.core.spec.schema import TrainSpec
from soundomni.train.parallel import World, parallelize
from soundomni.train.phases import build_optimizers, phases_of
from soundomni.train.signals import STOPPED_STATUS
from soundomni.train.step import train_step

PACKAGE = Path(soundomni.__file__).parent


# Runs


def runs(
    kind: str, *, steps: int, stop: int, sharded_steps: int, compared: bool, precision: str, changes: Sequence[str]
) -> dict[str, Number]:
    """Train the spec `demo`, stop it with SIGTERM, resume it, and resume a copy of it under torchrun.

    Args:
        kind: "cuda" or "cpu".
        steps: steps of the run.
        stop: SIGTERM comes after this step.
        sharded_steps: steps of the copy, which FSDP2 shards over one process.
        compared: whether another run, in fp32 on the CPU, says which loss is expected in the end.
        precision: "fp32" or "bf16".
        changes: changes of the spec.
    """
    device = prepare(kind)
    found = Findings()
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = ["--config", "demo", "--train.log_every=1", "--train.save_every=0", "--train.validation=null", *changes]
        environment = dict(os.environ) if device.type == "cuda" else _without_gpu()
        expected = None
        if compared:
            expected = _start([*command, f"--train.steps={steps}", f"--train.run_dir={folder / 'cpu'}"], _without_gpu(), folder / "cpu.log")
        try:
            own = [*command, f"--train.precision={precision}", f"--train.steps={steps}", f"--train.run_dir={folder / 'run'}"]
            status = _stopped(own, environment, folder, stop)
            found["status after SIGTERM"] = status
            found.require(status == STOPPED_STATUS, f"the run ended with {status} after SIGTERM; expected {STOPPED_STATUS}")
            shutil.copytree(folder / "run", folder / "sharded")
            stopped = max(_losses(folder / "run"))
            found["stopped after step"] = stopped
            _finish(_start(own, environment, folder / "resumed.log"), folder / "resumed.log")
            losses = _losses(folder / "run")
            end = _smooth(losses, steps)
            found["loss at the end"] = end
            found.require(sorted(losses) == list(range(1, steps + 1)), "the log of the run does not have every step once")
            last = min(steps, stopped + sharded_steps)
            sharded = [*own, f"--train.steps={last}", f"--train.run_dir={folder / 'sharded'}"]
            _finish(_start(sharded, environment, folder / "sharded.log", torchrun=True), folder / "sharded.log")
            others = _losses(folder / "sharded")
            first = stopped + 1
            found.below("error of the first loss under FSDP", abs(others[first] / losses[first] - 1), 2e-2)
            found["error of the last loss under FSDP"] = abs(others[last] / losses[last] - 1)
            if expected is not None:
                _finish(expected, folder / "cpu.log")
                other = _smooth(_losses(folder / "cpu"), steps)
                found["loss at the end on the CPU"] = other
                found.below("difference from the loss on the CPU", abs(end / other - 1), 0.03)
        finally:
            if expected is not None:
                expected.kill()
    return found.numbers()


def _without_gpu() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def _start(arguments: Sequence[str], environment: dict[str, str], log: Path, *, torchrun: bool = False) -> subprocess.Popen[bytes]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"] if torchrun else []
    command = [sys.executable, "-m", *launcher, "soundomni", "train", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)


def _finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a run. Raise Failed if it fails."""
    status = process.wait()
    if status != 0:
        raise Failed(f"{log.stem}: the run ended with {status}: {_tail(log)}")


def _stopped(arguments: Sequence[str], environment: dict[str, str], folder: Path, stop: int) -> int:
    """Start a run, send SIGTERM after a step, and return its status. Raise Failed if it ends before."""
    log = folder / "run.log"
    process = _start(arguments, environment, log)
    try:
        while max(_losses(folder / "run"), default=0) < stop:
            if process.poll() is not None:
                raise Failed(f"the run ended with {process.returncode} before step {stop}: {_tail(log)}")
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        return process.wait()
    finally:
        process.kill()


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-400:]


def _losses(run_dir: Path) -> dict[int, float]:
    """Return the loss of each step in the log of a run."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    found = (json.loads(line) for line in lines)
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def _smooth(losses: dict[int, float], last: int) -> float:
    """Return the mean loss of the last steps, because that of one step depends on its batch."""
    chosen = [losses[step] for step in range(max(1, last - 19), last + 1)]
    return sum(chosen) / len(chosen)


# Waits


class Waits:
    """Places in the package at which the host waited for the GPU, each with the number of times.

    Attributes:
        all: every place.
        in_layers: those inside a layer.
    """

    def __init__(self) -> None:
        self.all: Counter[str] = Counter()
        self.in_layers: Counter[str] = Counter()
        self._inside = False

    def watch(self, layers: Sequence[nn.Module]) -> list[Any]:
        """Note from now on whether one of these layers runs; return the handles of the hooks."""
        return [
            handle
            for layer in layers
            for handle in (layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave, always_call=True))
        ]

    def _enter(self, *_: object) -> None:
        self._inside = True

    def _leave(self, *_: object) -> None:
        self._inside = False

    def note(self, message: object, *_: object, **__: object) -> None:
        """Count a warning of torch about a wait, in place of `warnings.showwarning`."""
        if "synchronizing CUDA operation" in str(message):
            where = _place()
            self.all[where] += 1
            self.in_layers[where] += self._inside

    def sites(self) -> list[str]:
        """Return the places, most waits first."""
        return [f"{count} x {where}" for where, count in self.all.most_common()]


def _place() -> str:
    """Return the innermost line of the package that is running, or of whatever called torch."""
    frame, outside = sys._getframe(1), "?"
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(PACKAGE)):
            return f"{Path(path).relative_to(PACKAGE).as_posix()}:{frame.f_lineno}"
        if outside == "?" and "/torch/" not in path and path not in (__file__, warnings.__file__):
            outside = f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside


@contextmanager
def watched(device: torch.device, layers: Sequence[nn.Module]) -> Iterator[Waits]:
    """Count waits for the GPU within this context."""
    waits = Waits()
    handles = waits.watch(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = waits.note
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            for handle in handles:
                handle.remove()


def waits(kind: str, *, hidden_dim: int, num_steps: int, num_tokens: int) -> dict[str, Number]:
    """List where the host waits for the GPU in a training step, in sampling and in writing a text, with one expert and a mixture each."""
    device = prepare(kind)
    found = Findings()
    size = f"model.backbone={{class_path: mot, init_args: {{hidden_dim: {hidden_dim}, num_layers: 3, num_heads: 4, qk_norm: all}}}}"
    small = (size, "data.tokens_per_batch=640", "data.max_tokens_per_sample=256", "model.tokenizer.vocab_size=300", "train.precision=bf16")
    top_k = "model.router={class_path: top-k, init_args: {num_experts: 4}}"
    for name, changes in (("experts", small), ("mixtures", (*small, top_k))):
        made = built(spec_of("demo", *changes))
        batch = pack(made)[0]
        assert made.spec.train is not None
        with _trained_on(made, device, made.spec.train) as step:
            step(batch)  # makes and compiles what lasts
            with watched(device, list(made.model.units)) as training:
                step(batch)
        user, clip = made.user, Audio(batch.of("latent").waveform[0].numpy(), 8000)
        asked: dict[str, Any] = {"seconds": 0.5, "num_steps": num_steps, "guidance_scale": 2.0}
        with torch.autocast(device.type, dtype=torch.bfloat16):
            user.generate(["a sine tone"], **asked)
            with watched(device, list(made.model.units)) as sampling:
                user.generate(["a sine tone"], **asked)
            user.describe([clip], max_new_tokens=num_tokens)
            with watched(device, list(made.model.units)) as writing:
                user.describe([clip], max_new_tokens=num_tokens)
        for what, seen in (("a training step", training), (f"{num_steps} steps of sampling", sampling), (f"{num_tokens} tokens", writing)):
            found[f"{name}, {what}: waits"] = sum(seen.all.values())
            found[f"{name}, {what}: sites"] = seen.sites()
            others = [where for where, count in seen.in_layers.items() if count and not where.startswith("experts/top_k.py")]
            found.require(not others, f"{name}, {what}: layers wait at {', '.join(others)}")
    return found.numbers()


@contextmanager
def _trained_on(made: Built, device: torch.device, train: TrainSpec) -> Iterator[Any]:
    """Yield a function that trains a model on the device with a batch."""
    world = World(rank=0, size=1, device=device)
    parallelize(made.model, world, train)
    phases = phases_of(made.model, train)
    optimizer = build_optimizers(made.model, phases)

    def step(batch: Any) -> None:
        train_step(made.model, [batch], train=train, optimizer=optimizer, world=world, phases=phases)

    yield step
