"""Reports an evaluation on stderr: progress like that of every command, and notes as lines."""

from __future__ import annotations

from soundomni.cli.console import note
from soundomni.cli.progress import Progress


class StderrObserver:
    """An observer of `soundomni.evaluation` that writes to stderr."""

    def begin(self, what: str, *, total: int) -> Progress:
        """Return a progress display to enter as a context."""
        return Progress(what, total=total)

    def note(self, text: str) -> None:
        """Write a line."""
        note(text)
