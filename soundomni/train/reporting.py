"""Reports what a run measures and makes to metrics.jsonl, the terminal and the trackers. None of them ever ends a run.

Only rank 0 reports. If a tracker fails, one warning names it, and it is closed until the run is resumed: metrics.jsonl
has its numbers in any case. metrics.jsonl and the terminal are tried again at every step, since a disk may only be full
for a while; one warning names each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from soundomni.core.errors import PluginError, reason, shown
from soundomni.core.interfaces import Tracker
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot, Spec, TrainSpec
from soundomni.train.metrics_log import FILE_NAME as METRICS_FILE
from soundomni.train.metrics_log import MetricsLog
from soundomni.train.terminal import open_display

logger = logging.getLogger(__name__)


class Reporter:
    """Sends everything to metrics.jsonl, the terminal and the trackers.

    Args:
        run_dir: directory of the run; it must exist.
        total_steps: steps of the run.
        resumed_step: number of steps that were finished before.
        trackers: name of a tracker in warnings → the tracker, which has begun and is closed with this reporter.
        run: id of the run.
    """

    def __init__(
        self, *, run_dir: Path, total_steps: int, resumed_step: int, trackers: Mapping[str, Tracker], run: str | None = None
    ) -> None:
        self.last: dict[str, float] = {}
        self._step = resumed_step
        self._metrics = MetricsLog(run_dir, resumed_step=resumed_step, run=run)
        self._display = open_display(total=total_steps, initial=resumed_step)
        self._trackers = dict(trackers)
        self._told: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self.last, self._step = dict(metrics), step
        self._attempt(METRICS_FILE, lambda: self._metrics.log(step, metrics))
        self._attempt("the progress display", lambda: self._display.show(step, metrics))
        self._ask_trackers("log", lambda tracker: tracker.log(step, dict(metrics)))

    def files(self, step: int, files: Sequence[Path]) -> None:
        """Record files that were written at a step."""
        self._step = step
        self._ask_trackers("log_files", lambda tracker: tracker.log_files(step, list(files)))

    def close(self) -> None:
        """End the display and the trackers."""
        self._attempt("the progress display", self._display.close)
        close_trackers(self._trackers)
        self._trackers = {}

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        failure = _failure(action)
        if failure is not None and name not in self._told:
            self._told.add(name)
            logger.warning(
                "%s cannot be written at step %d; training continues, and later steps try again: %s",
                name,
                self._step,
                failure,
            )

    def _ask_trackers(self, method: str, ask: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            failure = _failure(lambda tracker=tracker: ask(tracker))  # type: ignore[misc]
            if failure is None:
                continue
            del self._trackers[name]
            unclosed = _failure(tracker.close)
            logger.warning(
                "%s failed in %s at step %d; training continues without it until the run is resumed: %s%s",
                name,
                method,
                self._step,
                failure,
                f"; closing it failed too: {unclosed}" if unclosed is not None else "",
            )


def begin_tracker(name: str, tracker: Tracker, step: int) -> None:
    """Tell a new tracker how many steps are finished. If it fails, raise PluginError: nothing is lost yet."""
    failure = _failure(lambda: tracker.begin(step))
    if failure is not None:
        raise PluginError(f"{name} cannot start: {failure.rstrip('.')}. Fix it, or remove it from train.trackers")


def close_trackers(trackers: Mapping[str, Tracker]) -> None:
    """Close trackers, given by their names in warnings; a warning names each that fails."""
    for name, tracker in trackers.items():
        failure = _failure(tracker.close)
        if failure is not None:
            logger.warning("%s could not be closed, so what it recorded may be incomplete: %s", name, failure)


def tracker_files(run_dir: Path, slots: Iterable[Slot], *, trust_class_paths: bool = False) -> list[Path]:
    """Return the files that trackers say they wrote into a run directory; a warning names trackers that cannot say."""
    found: list[Path] = []
    for slot in slots:
        try:
            tracker = cast(type[Tracker], registry.load("tracker", slot.class_path, trust_class_paths=trust_class_paths))
            found += [path for pattern in _patterns(tracker.files) for path in sorted(run_dir.glob(pattern)) if path.is_file()]
        except (PluginError, ValueError) as error:
            logger.warning("the files of tracker '%s' stay in '%s': %s", slot.class_path, run_dir, error)
    return list(dict.fromkeys(found))


def _patterns(files: object) -> list[str]:
    """Return the patterns of a tracker.

    Raise ValueError for a single text, or one that matches any file, such as `*`.
    """
    if not isinstance(files, tuple | list) or not all(isinstance(pattern, str) for pattern in files):
        raise ValueError(f"its `files` is {shown(files)}; expected a tuple of patterns, such as ('log-*.csv',)")
    for pattern in files:
        parts = Path(pattern).parts
        if Path(pattern).is_absolute() or ".." in parts or not "".join(parts[:1]).strip("*?"):
            raise ValueError(f"its `files` has {shown(pattern)}; expected a pattern within the run directory that begins with a name")
    return list(files)


def _failure(action: Callable[[], None]) -> str | None:
    """Run `action`; return what it raised, or None. A plugin that exits has failed: only the user ends a run."""
    computes_gradients = torch.is_grad_enabled()  # a plugin may switch them off for everything after it
    try:
        action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return reason(error)
    finally:
        torch.set_grad_enabled(computes_gradients)
    return None


def open_reporter(spec: Spec, train: TrainSpec, resumed_step: int, *, run: str, trust_class_paths: bool) -> Reporter:
    """Return the reporter of a run, with its trackers begun.

    A tracker that fails here raises an error; from the first step on, it only causes a warning.

    Raises:
        PluginError: a tracker cannot be built or cannot begin.
    """
    run_dir = Path(train.run_dir)
    trackers: dict[str, Tracker] = {}
    for i, slot in enumerate(train.trackers):
        name = f"tracker '{slot.class_path}' (train.trackers[{i}])"
        try:
            tracker = registry.build("tracker", slot, trust_class_paths=trust_class_paths, run_dir=run_dir, spec=spec)
            begin_tracker(name, tracker, resumed_step)
        except BaseException:
            close_trackers(trackers)  # those that began may already be recording
            raise
        trackers[name] = tracker
    return Reporter(run_dir=run_dir, total_steps=train.steps, resumed_step=resumed_step, trackers=trackers, run=run)
