"""How an evaluation reports what it is doing: an observer may show it, log it or ignore it.

The library itself prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Counts how much of a piece of work is done."""

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""

    def detail(self, text: str) -> None:
        """Say what is going on between two counts, such as "step 3"."""


class Observer(Protocol):
    """Receives reports of what an evaluation is doing.

    Implement both methods, or subclass `Silent` and override one.
    """

    def begin(self, what: str, *, total: int) -> AbstractContextManager[Progress]:
        """Begin a piece of work, such as "describing clips", of `total` counts; it is over when the context ends."""

    def note(self, text: str) -> None:
        """Report something that people should know, such as which clip was left out and why; `text` is one line."""


class Silent:
    """An observer that ignores everything, and the progress that it counts with."""

    def begin(self, what: str, *, total: int) -> AbstractContextManager[Progress]:
        return nullcontext(self)

    def note(self, text: str) -> None:
        pass

    def advance(self, count: int = 1) -> None:
        pass

    def detail(self, text: str) -> None:
        pass


SILENT: Observer = Silent()


def counted(items: Iterable[T], what: str, *, total: int, observer: Observer) -> Iterator[T]:
    """Yield the items, and tell the observer how many of them are done."""
    with observer.begin(what, total=total) as progress:
        for item in items:
            yield item
            progress.advance()
