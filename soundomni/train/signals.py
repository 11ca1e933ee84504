"""Stopping on request: after a signal, the run ends its step, saves, and exits with a status that means "run me again".

SIGTERM and SIGINT ask the run to end; whoever sends one twice does not want to wait. Other signals announce an end:
schedulers send SIGUSR1 or SIGUSR2 some time before they kill (SLURM's --signal, SGE's -notify), the kernel sends
SIGXCPU, and a terminal that closes sends SIGHUP. They may come any number of times; a SIGTERM after them counts as the
first.

Under torchrun, a signal may come twice: from the terminal or scheduler, and from torchrun, which passes on the signal
that it gets. There, every signal only asks the run to end; torchrun itself kills what has not ended 30 seconds later.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Mapping
from types import FrameType, TracebackType
from typing import Any

import torch

from soundomni.train.parallel import World

STOPPED_STATUS = 75
"""Exit status of a run that saved and stopped on request (EX_TEMPFAIL); running the same command resumes it."""

_REQUESTS = (signal.SIGTERM, signal.SIGINT)
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP") if hasattr(signal, name))
"""Signals that announce an end. Windows does not have any of them."""


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets a flag; the next one acts as usual.

    A signal that announces an end (see above) sets the flag each time. A signal that is ignored, as SIGHUP is under
    nohup, or handled outside Python, as faulthandler does, stays as it is. Outside the main thread, Python does not
    allow handlers, and signals are not changed.

    Args:
        environment: environment variables, which show whether torchrun started this process; then every signal only
            sets the flag.
    """

    def __init__(self, *, environment: Mapping[str, str] = os.environ) -> None:
        self.requested = False
        self._launched = "TORCHELASTIC_RUN_ID" in environment
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _WARNINGS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in (*_REQUESTS, *heard)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore(tuple(self._before))

    def agreed(self, world: World) -> bool:
        """Return whether any rank was asked to stop. Every rank must call this at the same step."""
        return bool(world.sum(torch.tensor(int(self.requested))).item())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._launched and number in _REQUESTS:
            self._restore(_REQUESTS)

    def _restore(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))
