"""Whatever a tracker, validation or a plugin in it raises, training goes on, with one warning that names it."""

import io
import json
import logging
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_run import VALIDATION, measured
from tiny_spec import tiny_spec

from soundomni.core.errors import PluginError, reason
from soundomni.core.interfaces import Tracker
from soundomni.train.checkpoint import list_checkpoints
from soundomni.train.reporting import Reporter
from soundomni.train.run import run_training

ROUGH = """
import random
from pathlib import Path
import torch
import re
from soundomni.core.interfaces import Tracker
from soundomni.core.spec.registry import load
from soundomni.core.spec.schema import Spec

FAILURES = {"error": ValueError("boom"), "memory": torch.OutOfMemoryError("no memory"), "exit": SystemExit(3)}


class Rough(Tracker):
    def __init__(self, *, run_dir: Path, spec: Spec, where: str = "log", at: int = 3, what: str = "error"):
        self.where, self.at, self.what = where, at, what

    def _fail(self, where, step):
        if where == self.where and step >= self.at:
            raise FAILURES[self.what]

    def begin(self, step):
        self._fail("begin", self.at)

    def log(self, step, metrics):
        metrics.clear()
        self._fail("log", step)

    def log_files(self, step, files):
        files.clear()
        self._fail("log_files", step)

    def close(self):
        self._fail("close", self.at)


class RoughSampler(load("sampler", "euler")):
    calls = 0

    def __init__(self, *, num_steps: int = 2, at: list[int], what: str = "error"):
        super().__init__(num_steps=num_steps)
        self.at, self.what = at, what

    def sample(self, predict, start, *, generators=(), begin=1.0, on_step=None):
        RoughSampler.calls += 1
        made = super().sample(predict, start, generators=generators, begin=begin, on_step=on_step)
        random.random()
        torch.rand(())
        if RoughSampler.calls in self.at:
            raise FAILURES[self.what]
        return made
"""

GROUPS = {"soundomni.trackers": {"rough": "rough:Rough"}, "soundomni.samplers": {"rough": "rough:RoughSampler"}}
OFTEN = ("train.validation.every=1", "train.validation.prompts=[a sine]", "train.validation.seconds=0.3", "train.validation.num_describe=1")


@pytest.fixture
def rough(install: Callable[..., Path]) -> None:
    install("acme-rough", groups=GROUPS, modules={"rough": ROUGH})


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Remembers(Tracker):
    """Keeps what it is given, and fails where it is told to."""

    def __init__(self, failures: dict[str, BaseException] | None = None) -> None:
        self.failures = failures or {}
        self.seen: list[Any] = []

    def log(self, step: int, metrics: Any) -> None:
        self.seen.append((step, dict(metrics)))
        self._fail("log")

    def log_files(self, step: int, files: Any) -> None:
        self.seen.append((step, list(files)))
        self._fail("log_files")

    def close(self) -> None:
        self.seen.append("closed")
        self._fail("close")

    def _fail(self, where: str) -> None:
        if where in self.failures:
            raise self.failures[where]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Panic(BaseException):
    """As what code in Rust raises."""


@pytest.mark.parametrize("where", ["log", "log_files", "close"])
@pytest.mark.parametrize("error", [ValueError("a\nb"), SystemExit(0), MemoryError(), Panic("x"), Unspeakable(), OSError(28, "No space")])
def test_a_tracker_that_fails_is_named_once_closed_and_left_out(
    where: str, error: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fails, works = Remembers({where: error}), Remembers()
    reporter = Reporter(run_dir=tmp_path, total_steps=9, resumed_step=0, trackers={"tracker 'bad'": fails, "tracker 'good'": works})
    for step in range(1, 4):
        reporter.log(step, {"loss": 1.0})
        reporter.files(step, [tmp_path / "a.wav"])
    reporter.close()
    (line,) = warned(caplog)
    assert line.startswith("tracker 'bad' ") and reason(error) in line and "\n" not in line
    assert len(works.seen) == 7 and fails.seen[-1] == "closed" and fails.seen.count("closed") == 1
    assert len(fails.seen) == {"log": 2, "log_files": 3, "close": 7}[where]
    assert [line["step"] for line in measured(tmp_path)] == [1, 2, 3]


def test_a_tracker_that_cannot_even_be_closed_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fails = Remembers({"log": ValueError("first"), "close": ValueError("second")})
    reporter = Reporter(run_dir=tmp_path, total_steps=9, resumed_step=0, trackers={"tracker 'bad'": fails})
    reporter.log(1, {})
    reporter.log(2, {})
    reporter.close()
    (line,) = warned(caplog)
    assert "in log at step 1" in line and "first; closing it failed too: ValueError: second" in line


def test_the_user_ends_a_run_even_within_a_tracker(tmp_path: Path) -> None:
    fails = Remembers({"log": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        Reporter(run_dir=tmp_path, total_steps=9, resumed_step=0, trackers={"tracker 'bad'": fails}).log(1, {})


@pytest.mark.parametrize("output", ["metrics.jsonl", "the progress display"])
def test_a_log_or_a_terminal_that_cannot_be_written_is_named_once_and_tried_again(
    output: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Remembers()
    reporter = Reporter(run_dir=tmp_path, total_steps=2, resumed_step=0, trackers={"tracker 'good'": tracker})
    (tmp_path / "metrics.jsonl").mkdir()
    if output != "metrics.jsonl":
        (tmp_path / "metrics.jsonl").rmdir()

        def gone(text: str) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("soundomni.train.terminal.tell", gone)
    for step in (2, 3):
        reporter.log(step, {"loss": 1.0})
    (line,) = warned(caplog)
    assert re.match(rf"(.*/)?{output}'? cannot be written( at step 2)?; training continues", line)
    assert len(tracker.seen) == 2
    if output == "metrics.jsonl":
        (tmp_path / "metrics.jsonl").rmdir()
        reporter.log(4, {"loss": 1.0})
        assert [line["step"] for line in measured(tmp_path)] == [4]


@pytest.mark.parametrize(("where", "what"), [("log", "exit"), ("log_files", "memory"), ("close", "error")])
def test_a_run_outlives_its_tracker(where: str, what: str, rough: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = f"train.trackers=[tensorboard, {{class_path: rough, init_args: {{where: {where}, what: {what}}}}}]"
    result = run_training(tiny_spec(tmp_path / "run", *VALIDATION, "train.validation.num_describe=0", tracker))
    assert result.finished and result.step == 6
    (line,) = warned(caplog)
    assert line.startswith("tracker 'rough' (train.trackers[1]) ")
    assert [line["step"] for line in measured(tmp_path / "run")] == list(range(1, 7)), "what a tracker does to its metrics is its own"


def test_a_tracker_that_cannot_begin_is_refused_before_the_first_step(rough: None, tmp_path: Path) -> None:
    tracker = "train.trackers=[{class_path: rough, init_args: {where: begin, what: exit}}]"
    with pytest.raises(
        PluginError, match=r"^tracker 'rough' \(train.trackers\[0\]\) cannot start: sys\.exit\(3\) was called. Fix it, or remove it"
    ):
        run_training(tiny_spec(tmp_path / "run", tracker))


def test_a_sampler_that_fails_ends_only_what_it_makes_and_changes_nothing(
    rough: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ("sampler={class_path: rough, init_args: {at: [2, 3, 5], what: memory}}", *OFTEN)
    result = run_training(tiny_spec(tmp_path / "run", *spec))
    (line,) = warned(caplog)
    assert line.startswith(
        "generating from train.validation.prompts at step 2 failed; training continues, and this warning is not repeated: "
    )
    assert line.endswith("sampler 'rough' of acme-rough 1.2.3 failed: OutOfMemoryError: no memory")
    samples = tmp_path / "run" / "samples"
    made = [step for step in range(1, 7) if (samples / f"step-{step:08d}" / "00-a-sine.wav").exists()]
    assert made == [1, 4, 6] and len(list(samples.glob("*/descriptions.jsonl"))) == 6
    run_training(tiny_spec(tmp_path / "plain"))
    assert result.finished and measured(tmp_path / "run") == measured(tmp_path / "plain"), "plugins drew from every generator"


def write_clips(folder: Path, names: list[bytes]) -> str:
    folder.mkdir()
    for name in names:
        path = folder / os.fsdecode(name)
        audio = io.BytesIO()
        soundfile.write(audio, 0.1 * np.random.default_rng(0).standard_normal(2400), 8000, format="WAV")
        path.with_suffix(".wav").write_bytes(audio.getvalue())
        path.with_suffix(".txt").write_text("a sound")
    return f"data.datasets.toys.source={{class_path: audio-folder, init_args: {{path: {folder}}}}}"


@pytest.mark.parametrize("codec", [False, True])
def test_a_file_name_that_is_not_utf_8_is_described_like_any_other(codec: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = write_clips(tmp_path / "sounds", [b"\xff\xfe", b"caf\xe9"])
    run_training(tiny_spec(tmp_path / "run", clips, "train.validation.every=3", codec=codec))
    assert warned(caplog) == []
    folder = tmp_path / "run" / "samples" / "step-00000003"
    if codec:
        assert len(list(folder.glob("*.wav"))) == 4
    else:
        keys = [json.loads(line)["clip"] for line in (folder / "descriptions.jsonl").read_text(encoding="utf-8").splitlines()]
        assert sorted(map(os.fsencode, keys)) == [b"caf\xe9.wav", b"\xff\xfe.wav"]


def no_picture(path: Path, *arguments: Any, **settings: Any) -> Path:
    raise RuntimeError("cannot be drawn")


def full_disk(path: Path, *arguments: Any) -> float:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "fails", "reasons", "left"),
    [
        ("save_spectrogram", no_picture, "'00-a-sine.png': RuntimeError: cannot be drawn", 3),
        ("write_wav", full_disk, "'00-a-sine.wav': OSError: [Errno 28] No space left on device", 3),
        ("_write_lines", full_disk, "'prompts.jsonl': OSError: [Errno 28] No space left on device, and 1 more", 2),
    ],
)
def test_a_file_that_cannot_be_made_leaves_the_others(
    name: str, fails: Any, reasons: str, left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"soundomni.train.validation.{name}", fails)
    assert run_training(tiny_spec(tmp_path / "run", *VALIDATION)).finished
    assert warned(caplog) == [
        f"what validation made at step 3 could not be written; training continues, and this warning is not repeated: {reasons}"
    ]
    assert len(list((tmp_path / "run" / "samples" / "step-00000006").iterdir())) == left


def test_a_folder_of_samples_that_cannot_be_made_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("in the way")
    assert run_training(tiny_spec(tmp_path / "run", *VALIDATION)).finished
    (line,) = [line for line in warned(caplog) if "could not be written" in line]
    assert "made at step 3" in line and "run/samples" in line
    assert (tmp_path / "run" / "samples").read_text() == "in the way"


def test_a_clip_that_is_not_finite_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = torch.nan_to_num

    def broken(self: Any, representation: Any) -> torch.Tensor:
        return decode(representation.values.sum(1, keepdim=True).repeat_interleave(64, -1)) / 0.0

    monkeypatch.setattr("soundomni.vae.mdct.MDCTCodec.decode", broken)
    assert run_training(tiny_spec(tmp_path / "run", *VALIDATION)).finished
    assert any("'00-a-sine.wav': it has samples that are not finite" in line for line in warned(caplog))


@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_fails_at_whatever_step_a_run_finishes_with_every_checkpoint(
    seed: int, rough: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker, the sampler and the pictures of validation fail at random steps."""
    import soundomni.train.validation as validation

    draws, draw = random.Random(seed), validation.save_spectrogram
    where, what = draws.choice(["log", "log_files", "close"]), draws.choice(["error", "memory", "exit"])
    calls, pictures = iter(range(1, 99)), draws.sample(range(1, 6), 2)

    def rarely(path: Path, *arguments: Any, **settings: Any) -> Path:
        return no_picture(path) if next(calls) in pictures else draw(path, *arguments, **settings)

    monkeypatch.setattr(validation, "save_spectrogram", rarely)
    failing = sorted(draws.sample(range(1, 7), 3))
    spec = tiny_spec(
        tmp_path / "run",
        *OFTEN,
        "train.steps=6",
        "train.save_every=2",
        "train.keep_checkpoints=9",
        f"sampler={{class_path: rough, init_args: {{at: {failing}}}}}",
        f"train.trackers=[{{class_path: rough, init_args: {{where: {where}, at: {draws.randint(1, 6)}, what: {what}}}}}]",
    )
    result = run_training(spec)
    assert (result.finished, result.step, result.exit_status) == (True, 6, 0)
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [f"step-{step:08d}" for step in (6, 4, 2)]
    assert [line["step"] for line in measured(tmp_path / "run")] == list(range(1, 7))
    lines = warned(caplog)
    assert sorted(line.partition(" ")[0] for line in lines) == ["generating", "tracker", "what"], lines
