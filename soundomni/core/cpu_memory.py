"""Memory of tensors on the CPU: let a process use it again instead of returning it to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import MutableMapping

KEPT_BYTES = 2**28
"""Free memory at the end of the heap that stays with the process."""
LARGEST_IN_HEAP = 2**24
"""Size in bytes up to which memory comes from the heap; with more, fragments raise the peak."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's variable: with 1, it asks for huge pages for blocks of at least 2 MB."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_USERS_SETTINGS = re.compile(r"MALLOC_.+|GLIBC_TUNABLES")


def reuse_cpu_memory(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let this process use freed memory again, and large blocks have huge pages; return whether glibc has taken it.

    Otherwise, each large tensor that a computation makes and drops comes from the system, which clears it page by
    page: up to half of the time in which Oobleck decodes long clips on a CPU. The peak of memory grows by a few percent.

    Commands that compute do this first. In Python, call it once before the first tensor is made; it holds for the whole
    process, and huge pages also for the processes that it starts. It never raises, and does nothing anywhere but on
    Linux with glibc. Settings of the user stay: any variable `MALLOC_*` or `GLIBC_TUNABLES` turns it off, and
    `THP_MEM_ALLOC_ENABLE=0` turns off huge pages.

    Args:
        environment: environment variables; the one for huge pages is added.
    """
    if platform.system() != "Linux" or any(map(_USERS_SETTINGS.fullmatch, environment)):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl does not have it
        set_option = libc.mallopt
    except (OSError, AttributeError):
        return False
    environment.setdefault(HUGE_PAGES, "1")
    return bool(set_option(_TRIM_THRESHOLD, KEPT_BYTES)) and bool(set_option(_MMAP_THRESHOLD, LARGEST_IN_HEAP))
