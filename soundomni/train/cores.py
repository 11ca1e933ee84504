"""How many processor cores are free for training: those that this process may use, minus those that others use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_QUOTAS = Path("/sys/fs/cgroup")
_MARGIN = 0.5  # cores by which the load may be off


def free_cores(*, root: Path = _QUOTAS) -> float:
    """Return the number of cores that this process may use and that nobody else is using now, at least 0.

    Three limits count: the cores that it may be scheduled on, the quota of its container, and the cores that others
        leave
    free. Their load is that of the last minute, or what runs now if that is less: a job that has just ended is not a
    load.

    Args:
        root: directory of the control groups.
    """
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return max(0.0, min(allowed, quota(root), machine - _load_of_others()))


def quota(root: Path = _QUOTAS) -> float:
    """Return the cores that a container may use in total, infinity without a limit; reads control groups v1 and v2."""
    for name, period_name in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            words = (root / name).read_text().split()
            words += (root / period_name).read_text().split() if period_name else []
            if words[0] != "max" and int(words[0]) > 0 and int(words[1]) > 0:
                return int(words[0]) / int(words[1])
    return float("inf")


def busy_warning(threads: int, *, processes: int, free: float) -> str | None:
    """Return one line of advice if `processes` with `threads` threads each want more cores than are free, or None.

    Threads that wait for each other while others hold the cores slow training down several times over.
    """
    wanted = threads * processes
    if wanted <= free + _MARGIN or threads == 1:
        return None
    fewer = max(1, int((free + _MARGIN) / processes))
    each = f"{processes} processes with {threads} threads each" if processes > 1 else f"{threads} threads"
    cure = f"Set train.threads to {fewer}"
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        cure += ", or set OMP_WAIT_POLICY=PASSIVE in the environment, so that waiting threads leave the cores to others"
    return f"training uses {each}, but only about {free:.1f} of {os.cpu_count() or 1} cores are free, so it may be slow. {cure}"


def _load_of_others() -> float:
    try:
        load = os.getloadavg()[0]
    except OSError:
        return 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):  # Linux only
        running = float(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        load = min(load, running - 1)  # without this process
    return max(0.0, load)
