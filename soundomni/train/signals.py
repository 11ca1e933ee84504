"""Stopping on request: SIGTERM or SIGINT ends the step, saves, and leaves with a status that means "run me again"."""

from __future__ import annotations

import signal
import threading
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
    """

    def __init__(self) -> None:
        self.requested = False
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
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
