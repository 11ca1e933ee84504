"""Stopping on request: SIGTERM or SIGINT ends the step, saves, and leaves with a status that means "run me again".

Under torchrun a signal may come twice, from the terminal or the scheduler and once more from torchrun, which passes on its own. There
every signal asks for the same; torchrun itself kills what has not ended 30 seconds later.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

import torch

from soundomni.train.parallel import World

STOPPED_STATUS = 75
"""Exit status of a run that saved and stopped on request (EX_TEMPFAIL); the same command resumes it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Within this context, the first SIGTERM or SIGINT only sets a flag; the next one does what it always did.

    Outside the main thread, where Python allows no handlers, signals are left alone.

    Args:
        environment: tells whether torchrun started this process; then the next ones, too, only set the flag.
    """

    def __init__(self, *, environment: Mapping[str, str] = os.environ) -> None:
        self.requested = False
        self._launched = "TORCHELASTIC_RUN_ID" in environment
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def agreed(self, world: World) -> bool:
        """Returns whether any rank was asked to stop. Every rank must call this at the same step."""
        return bool(world.sum(torch.tensor(int(self.requested))).item())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._launched:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
