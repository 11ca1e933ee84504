"""Where rank 0 sends what a run measures and makes: metrics.jsonl, the terminal, the trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from soundomni.core.interfaces import Tracker
from soundomni.train.metrics import MetricsLog
from soundomni.train.terminal import open_display


class Reporter:
    """Fans out.

    Args:
        run_dir: exists.
        total_steps: of the run.
        resumed_step: finished before.
        trackers: closed with this.
        run: id of the run.
    """

    def __init__(self, *, run_dir: Path, total_steps: int, resumed_step: int, trackers: Sequence[Tracker], run: str | None = None) -> None:
        self.last: dict[str, float] = {}
        self._metrics = MetricsLog(run_dir, resumed_step=resumed_step, run=run)
        self._display = open_display(total=total_steps, initial=resumed_step)
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a step."""
        self.last = dict(metrics)
        self._metrics.log(step, metrics)
        self._display.show(step, metrics)
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def files(self, step: int, files: Sequence[Path]) -> None:
        """Records files that were made at a step."""
        for tracker in self._trackers:
            tracker.log_files(step, files)

    def close(self) -> None:
        """Ends the display and the trackers."""
        self._display.close()
        for tracker in self._trackers:
            tracker.close()
