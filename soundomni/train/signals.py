"""Stopping on request: a signal ends the step, saves, and leaves with a status that means "run me again".

SIGTERM and SIGINT ask for an end; whoever sends one twice does not want to wait. The others announce one: schedulers send SIGUSR1 or
SIGUSR2 some time before they kill (SLURM's --signal, SGE's -notify), the kernel SIGXCPU, and a terminal that closes SIGHUP. They may
come any number of times, and a SIGTERM after them is the first one.

Under torchrun a signal may come twice, from the terminal or the scheduler and once more from torchrun, which passes on its own. There
every signal asks for the same; torchrun itself kills what has not ended 30 seconds later.
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
"""Exit status of a run that saved and stopped on request (EX_TEMPFAIL); the same command resumes it."""

_REQUESTS = (signal.SIGTERM, signal.SIGINT)
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP") if hasattr(signal, name))
"""Windows has none of these."""


class StopRequest:
    """Within this context, the first SIGTERM or SIGINT only sets a flag; the next one does what it always did.

    A signal that announces an end (see above) sets the flag each time. One that is ignored, as SIGHUP is under nohup, or is handled
    outside Python, as faulthandler does, stays so.
    Outside the main thread, where Python allows no handlers, signals are left alone.

    Args:
        environment: says whether torchrun started this process; if so, every signal only sets the flag.
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
        """Returns whether any rank was asked to stop. Every rank must call this at the same step."""
        return bool(world.sum(torch.tensor(int(self.requested))).item())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._launched and number in _REQUESTS:
            self._restore(_REQUESTS)

    def _restore(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))
