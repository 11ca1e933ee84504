"""Progress of a command on stderr: one changing line on a terminal, otherwise a plain line now and then.

Nothing is shown for work that takes less than two seconds. A thread writes, so that work that reports nothing for a
long time, such as loading a model, still shows signs of life.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TextIO, TypeVar

T = TypeVar("T")

FIRST_SECONDS = 2.0
REDRAW_SECONDS = 0.2
LINE_SECONDS = 5.0
"""Seconds between two plain lines, at first; later lines are further apart."""
LONGEST_LINE_SECONDS = 60.0

_CLEAR = "\r\x1b[K"
_lock = threading.RLock()
_active: list[Progress] = []
"""Instances that are entered; only the innermost one shows anything."""
_drawn: list[Progress] = []
"""The instance whose line is on the terminal now, if any."""


class Progress:
    """A display of progress for as long as it is entered.

    Args:
        what: what is being done, such as "making clips".
        total: how many there are to do, or None if nothing is counted.
        stream: where to write; None for stderr.
        clock: returns the time in seconds.

    Example:
        with Progress("making clips", total=3) as progress:
            for clip in clips:
                progress.advance()
    """

    def __init__(
        self, what: str, *, total: int | None = None, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._done, self._detail = 0, ""
        self._begin = self._last = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"progress of {what}", daemon=True)

    def __enter__(self) -> Progress:
        self._begin = self._last = self._clock()
        with _lock:
            _active.append(self)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        with _lock:
            _active.remove(self)
            if self in _drawn:
                _erase()

    def advance(self, count: int = 1) -> None:
        """Count items as done."""
        self._done += count
        self._detail = ""

    def detail(self, text: str) -> None:
        """Set the text that follows the count until the next item is done, such as "step 3"."""
        self._detail = text

    def line(self) -> str:
        """Return the progress in words."""
        counted = "" if self._total is None else f": {self._done} of {self._total}"
        detail = f", {self._detail}" if self._detail else ""
        text = f"{self._what}{counted}{detail} ({_duration(self._clock() - self._begin)}{self._left()})"
        return "".join(letter if letter.isprintable() else "?" for letter in text)  # file names may contain anything

    def _left(self) -> str:
        if self._total is None or not 0 < self._done < self._total:
            return ""
        seconds = self._clock() - self._begin
        return f", about {_duration(seconds * (self._total - self._done) / self._done)} left"

    def _watch(self) -> None:
        if self._ended.wait(FIRST_SECONDS):
            return
        self._show()
        while not self._ended.wait(REDRAW_SECONDS):
            if self._is_terminal or self._clock() - self._last >= self._pause():
                self._show()

    def _pause(self) -> float:
        """Return the seconds between two plain lines: more as time goes by, so that a long command does not fill its
        log."""
        return min(max(LINE_SECONDS, 0.25 * (self._last - self._begin)), LONGEST_LINE_SECONDS)

    def _show(self) -> None:
        import shutil  # here, because every command imports this module

        self._last = self._clock()
        with _lock:
            if _active[-1] is not self:
                return
            if not self._is_terminal:
                self._write(f"{self.line()}\n")
                return
            width = max(shutil.get_terminal_size().columns - 1, 20)
            self._write(f"{_CLEAR}{self.line()[:width]}")
            _drawn[:] = [self]

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed terminal or stream must not end the work
            self._stream.write(text)
            self._stream.flush()


@contextlib.contextmanager
def above_progress() -> Iterator[None]:
    """Let lines be written to the terminal: the progress line is erased first, and reappears by itself."""
    with _lock:
        _erase()
        yield


def _erase() -> None:
    while _drawn:
        _drawn.pop()._write(_CLEAR)


def tracked(items: Iterable[T], what: str, *, total: int) -> Iterator[T]:
    """Yield the items, and show how many of them are done."""
    with Progress(what, total=total) as progress:
        for item in items:
            yield item
            progress.advance()


def _duration(seconds: float) -> str:
    """Return a time as people read it.

    >>> _duration(7.2), _duration(75), _duration(7500)
    ('7 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
