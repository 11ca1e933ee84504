"""Commands that take long show how far they are: on stderr only, a line that changes on a terminal and lines now and then elsewhere."""

import io
import threading

import pytest

from soundomni.cli import console, progress
from soundomni.cli.console import note
from soundomni.cli.main import main
from soundomni.cli.progress import Progress, above_progress, tracked


class Stream(io.StringIO):
    """What is written, and an event for the first of it."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self._changed = threading.Condition()
        self._writes = 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        with self._changed:
            count = super().write(text)
            self._writes += 1
            self._changed.notify_all()
        return count

    def await_lines(self, count: int) -> None:
        """Waits until something was shown `count` times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._writes >= count, 60)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looks = 0
        self._looked = threading.Condition()

    def __call__(self) -> float:
        with self._looked:
            self._looks += 1
            self._looked.notify_all()
        return self.now

    def await_looks(self, count: int) -> None:
        """Waits until the time was asked for so many times more."""
        with self._looked:
            enough = self._looks + count
            assert self._looked.wait_for(lambda: self._looks >= enough, 60)


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
    stream, clock = Stream(terminal=False), Clock()
    with Progress("making clips", total=4, stream=stream, clock=clock) as shown:
        stream.await_lines(1)
        shown.advance(2)
        shown.detail("step 3")
        clock.now = progress.LINE_SECONDS - 0.1
        clock.await_looks(5)
        clock.now = 600.0
        stream.await_lines(2)
        clock.now += progress.LONGEST_LINE_SECONDS - 0.1
        clock.await_looks(5)
    assert stream.getvalue().splitlines() == [
        "making clips: 0 of 4 (0 s)",
        "making clips: 2 of 4, step 3 (10 min 0 s, about 10 min 0 s left)",
    ]


def test_a_terminal_has_one_line_that_goes_away(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Stream(terminal=True)
    with Progress("making clips " + "of many words " * 9, stream=stream):
        stream.await_lines(3)
    text = stream.getvalue()
    assert "\n" not in text and text.endswith("\r\x1b[K")
    assert max(map(len, text.split("\r\x1b[K"))) <= 39


def test_notes_are_written_above_the_line(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("making clips", total=1):
        stream.await_lines(1)
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
        stream.await_lines(1)
        raise ValueError("mine")
    assert stream.getvalue().endswith("\r\x1b[K") and threading.active_count() >= 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("progress of")]


def test_only_the_innermost_is_shown(at_once: None) -> None:
    outer, inner = Stream(terminal=False), Stream(terminal=False)
    with Progress("soundomni generate is working", stream=outer):
        outer.await_lines(1)
        with Progress("making clips", stream=inner):
            before = outer.getvalue()
            inner.await_lines(1)
            assert outer.getvalue() == before
    assert "making" not in outer.getvalue()


def test_every_command_that_takes_long_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["plugins", "list"]
    assert main(arguments) == 0
    expected = capsys.readouterr()
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    stream, emit = Stream(terminal=False), console.emit
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "emit", lambda *given, **options: (stream.await_lines(1), emit(*given, **options))[1])
    assert main(arguments) == 0
    assert capsys.readouterr().out == expected.out and "soundomni plugins is working (" in stream.getvalue()


def test_items_are_counted_as_they_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(iter("abc"), "reading", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
