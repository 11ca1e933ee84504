"""The trackers that come with the package: what a resumed run and a new one in the same directory show, and what overwriting removes."""

from pathlib import Path

import pytest

from soundomni.core.spec.schema import Slot
from soundomni.testing.tracker import SPEC
from soundomni.train.reporting import _patterns, tracker_files
from soundomni.train.trackers.tensorboard import TensorBoardTracker
from soundomni.train.trackers.wandb import ID_FILE, WandbTracker


def track(run_dir: Path, *, finished: int, last: int, value: float) -> None:
    """An attempt that logs every step from the one after `finished`."""
    tracker = TensorBoardTracker(run_dir=run_dir, spec=SPEC)
    tracker.begin(finished)
    for step in range(finished + 1, last + 1):
        tracker.log(step, {"loss": value})
    tracker.close()


def drawn(run_dir: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_draws_each_step_once_when_a_run_goes_on_or_begins_anew(tmp_path: Path) -> None:
    track(tmp_path, finished=0, last=6, value=1.0)
    track(tmp_path, finished=3, last=5, value=2.0)
    assert drawn(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    track(tmp_path, finished=4, last=6, value=3.0)
    assert drawn(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 3.0), (6, 3.0)]
    track(tmp_path, finished=0, last=2, value=4.0)
    assert drawn(tmp_path) == [(1, 4.0), (2, 4.0)]


def test_a_run_that_begins_anew_is_another_one_of_wandb(tmp_path: Path) -> None:
    seen = []
    for finished in (0, 3, 0):
        tracker = WandbTracker(run_dir=tmp_path, spec=SPEC, mode="disabled")
        tracker.begin(finished)
        tracker.close()
        seen.append((tmp_path / ID_FILE).read_text())
    assert seen[0] == seen[1] != seen[2]


def test_files_of_trackers_are_theirs_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    track(tmp_path, finished=0, last=1, value=1.0)
    (tmp_path / ID_FILE).write_text("id")
    for name in ("tensorboard/notes.txt", "notes.txt", "wandb/offline-run/data"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    found = tracker_files(tmp_path, [Slot("tensorboard"), Slot("wandb"), Slot("gone")])
    assert [path.name.partition(".")[0] for path in found] == ["events", ID_FILE]
    assert "the files of tracker 'gone' stay in" in caplog.text


@pytest.mark.parametrize("files", ["*.txt", None, ("**/*",), ("*",), ("",), ("../x",), ("/etc/*",), (3,)])
def test_patterns_that_would_take_files_of_others_are_refused(files: object) -> None:
    with pytest.raises(ValueError, match="its `files`"):
        _patterns(files)
