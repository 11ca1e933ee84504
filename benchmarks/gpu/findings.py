"""What a step finds, and how errors and times are measured."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from benchmarks.gpu.outcomes import Failed, NoGPU

Number = float | int | str | bool | list[str]


class Findings:
    """The numbers of a step, and the conditions that do not hold.

    Each number is printed as a line of JSON as soon as it is known, so that those of a step that is stopped are not lost.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, Number] = {}
        self._problems: list[str] = []

    def __setitem__(self, name: str, value: Number) -> None:
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        self._numbers[name] = value
        print(json.dumps({"number": name, "value": value}), flush=True)

    def below(self, name: str, value: float, limit: float) -> None:
        """Add a number that has to be below `limit`."""
        self[name] = value
        self.require(value < limit, f"{name} is {value:.3g}; expected less than {limit:g}")

    def above(self, name: str, value: float, limit: float) -> None:
        """Add a number that has to be above `limit`."""
        self[name] = value
        self.require(value > limit, f"{name} is {value:.3g}; expected more than {limit:g}")

    def require(self, holds: bool, problem: str) -> None:
        """Note a problem unless a condition holds."""
        if not holds:
            self._problems.append(problem)

    def numbers(self) -> dict[str, Number]:
        """Return the numbers. Raise Failed if there are problems."""
        if self._problems:
            raise Failed("; ".join(self._problems))
        return self._numbers


def prepare(kind: str) -> torch.device:
    """Return the device of a kind, "cuda" or "cpu", and seed the generators. Raise NoGPU if it is a GPU and there is none."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise NoGPU("no GPU was found")
    torch.manual_seed(0)
    return torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, run: Callable[[], object], *, rounds: int = 3, warm_up: int = 1) -> float:
    """Return the median seconds of a call, with the device idle before and after it."""
    taken = []
    for index in range(warm_up + rounds):
        synchronize(device)
        begun = time.perf_counter()
        run()
        synchronize(device)
        if index >= warm_up:
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def forget_peak(device: torch.device) -> None:
    """Free what nothing needs, such as a model of before, and measure the peak from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Return the most bytes of tensors on the device since `forget_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value; infinity if a value found is not finite."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if found.shape != expected.shape:
        raise Failed(f"a result has shape {list(found.shape)}; expected {list(expected.shape)}")
    if not found.numel():
        return 0.0
    if not found.isfinite().all():
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def cosine(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the cosine of the angle between two lists of tensors, each as one vector."""
    product = own = other = 0.0
    for one, two in zip(found, expected, strict=True):
        a, b = one.detach().double().cpu().flatten(), two.detach().double().cpu().flatten()
        product, own, other = product + float(a @ b), own + float(a @ a), other + float(b @ b)
    return product / max((own * other) ** 0.5, 1e-300)
