"""metrics.jsonl: one JSON object per logged step, appended."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to `run_dir/metrics.jsonl`.

    Args:
        run_dir: exists.
        resumed_step: lines of later steps, written after the checkpoint that the run goes on from, are removed; so is a line
            that was cut short.
    """

    def __init__(self, run_dir: Path, *, resumed_step: int) -> None:
        self._path = run_dir / FILE_NAME
        if self._path.exists():
            kept = [json.dumps(entry) + "\n" for entry in read_metrics(self._path) if entry["step"] <= resumed_step]
            part = self._path.with_suffix(".part")
            part.write_text("".join(kept), encoding="utf-8")
            part.replace(self._path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. JSON has no word for what is not finite: it becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics.jsonl; a last line that was cut short is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
