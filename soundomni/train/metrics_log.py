"""metrics.jsonl: one JSON object per logged step, appended. A log that fails never stops training."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soundomni.core.files.whole_files import write_whole
from soundomni.train.json_lines import append_lines, read_lines, to_lines
from soundomni.train.run_directory.inventory import is_plain_file, set_aside

FILE_NAME = "metrics.jsonl"
RUN = "run"
"""Key of the run id in each line."""

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends to `run_dir/metrics.jsonl`.

    Lines of steps after the one that a run resumes from are removed; so is a line that was cut short. A log with
    other broken lines, or with lines of another run, is first set aside as `metrics-1.jsonl`. If the log cannot be read
    or written, one warning says so.

    Args:
        run_dir: directory of the run; it must exist.
        resumed_step: step of the checkpoint that the run resumes from, or 0.
        run: id of the run; None to leave it out of the lines.
    """

    def __init__(self, run_dir: Path, *, resumed_step: int, run: str | None = None) -> None:
        self._path = run_dir / FILE_NAME
        self._run = run
        self._has_warned = False
        try:
            self._take_up(resumed_step)
        except OSError as error:
            self._warn(error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line. JSON cannot express a number that is not finite: it becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        run = {} if self._run is None else {RUN: self._run}
        try:
            if self._path.exists() and not self._path.is_file():  # to open a pipe would wait for its reader
                raise OSError(None, "it is not a regular file")
            append_lines(self._path, [{"step": step, **run, **finite}])
        except OSError as error:
            self._warn(error)

    def _take_up(self, resumed_step: int) -> None:
        if not self._path.is_file():
            return
        entries, broken = _entries(self._path)
        own = [entry for entry in entries if entry.get(RUN) in (None, self._run)]
        kept = [entry for entry in own if entry["step"] <= resumed_step]
        if broken or len(own) < len(entries) or not is_plain_file(self._path):
            what = f"has {broken} broken lines" if broken else "has lines of other runs"
            logger.warning("'%s' %s: it is kept as '%s'", self._path, what, set_aside(self._path).name)
        write_whole(self._path, to_lines(kept), part=f".{self._path.name}.part")

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            logger.warning("'%s' cannot be written; training continues: %s", self._path, error.strerror or error)
        self._has_warned = True


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics.jsonl without the broken ones. Raise OSError on failure."""
    yield from _entries(path)[0]


def _entries(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines with a step, and the number of broken ones."""
    records, broken = read_lines(path)
    entries = [record for record in records if isinstance(record.get("step"), int)]
    return entries, broken + len(records) - len(entries)
