"""Commands that take long show how far they are: on stderr only, a line that changes on a terminal and lines now and then elsewhere."""

import io
import threading

import pytest

from soundomni.cli import progress
from soundomni.cli.output import note
from soundomni.cli.progress import Progress, above_progress, tracked


class Stream(io.StringIO):
    """What is written, and an event for the first of it."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self.written = threading.Event()
        self.enough = threading.Event()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        if self.getvalue().count("making") >= 3:
            self.enough.set()
        return count


class Clock:
    """Seconds that pass when they are told to, or by `step` at each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.001)


def test_what_is_soon_done_shows_nothing() -> None:
    for terminal in (False, True):
        stream = Stream(terminal=terminal)
        with Progress("making clips", total=2, stream=stream) as shown:
            shown.advance(2)
        assert stream.getvalue() == ""


def test_lines_are_plain_and_far_between(at_once: None) -> None:
    stream, clock = Stream(terminal=False), Clock(step=0.01)
    with Progress("making clips", total=4, stream=stream, clock=clock) as shown:
        stream.written.wait(10)
        shown.advance(2)
        shown.detail("step 3")
        clock.now = 600.0
        assert stream.enough.wait(10)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("making clips: 0 of 4 (") and "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert lines[1].startswith("making clips: 2 of 4, step 3 (10 min 0 s, about 10 min 0 s left)")
    assert len(lines) <= 2 + (clock.now - 600) / progress.LINE_SECONDS  # the clock ran on by some looks at it


def test_a_terminal_has_one_line_that_goes_away(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Stream(terminal=True)
    with Progress("making clips " + "of many words " * 9, stream=stream):
        assert stream.enough.wait(10)
    text = stream.getvalue()
    assert "\n" not in text and text.endswith("\r\x1b[K")
    assert max(map(len, text.split("\r\x1b[K"))) <= 39


def test_notes_are_written_above_the_line(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("making clips", total=1):
        assert stream.written.wait(10)
        note("a.wav: saved 6.0 dB quieter")
        with above_progress():
            text = stream.getvalue()
    assert "\r\x1b[Ka.wav: saved 6.0 dB quieter\n" in text


def test_what_is_shown_cannot_end_the_work_or_steer_a_terminal(at_once: None) -> None:
    closed = Stream(terminal=False)
    closed.close()
    with Progress("making clips", stream=closed):
        pass
    assert "\x1b" not in Progress("loading \x1b[2J\n", stream=Stream(terminal=True)).line()


def test_an_error_within_goes_on_and_leaves_no_line(at_once: None) -> None:
    stream = Stream(terminal=True)
    with pytest.raises(ValueError, match="mine"), Progress("making clips", stream=stream):
        stream.written.wait(10)
        raise ValueError("mine")
    assert stream.getvalue().endswith("\r\x1b[K") and threading.active_count() >= 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("progress of")]


def test_items_are_counted_as_they_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(iter("abc"), "reading", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
