"""The best step by a measured number, patience, and which checkpoints are kept for it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import TinyRun, alone, settings

from soundomni.core.errors import SpecError
from soundomni.core.spec.ranges import check_train
from soundomni.core.spec.schema import ValidationSpec
from soundomni.core.spec.values import convert
from soundomni.train.best import CLIPS, Best
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.loop import Hooks

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("better", "values", "step", "waited"),
    [
        ("lower", [3, 2, 2, 4], 2, 2),
        ("higher", [3, 2, 5, 4], 3, 1),
        ("lower", [NAN, 2, NAN, 1], 4, 0),
        ("higher", [INF, NAN, 1, INF], 3, 1),
        ("lower", [NAN], None, 1),
    ],
)
def test_the_best_step(better: str, values: list[float], step: int | None, waited: int) -> None:
    best, spec = Best(), ValidationSpec(best="x", better=better)  # type: ignore[arg-type]
    found = [number for number, value in enumerate(values, start=1) if best.judge(number, {"x": value, "y": 0.0}, spec)]
    assert (best.step, best.waited) == (step, waited) and (found[-1] if found else None) == step


def test_step_0_has_no_checkpoint_and_is_not_judged() -> None:
    best, spec = Best(), ValidationSpec(best="x")
    assert not best.judge(0, {"x": -5.0}, spec) and best.judge(2, {"x": 1.0}, spec)


@pytest.mark.parametrize("earlier", [1.0, NAN])
def test_a_number_that_is_missing_once_is_not_judged_and_ends_nothing(earlier: float, caplog: pytest.LogCaptureFixture) -> None:
    best, spec = Best(), ValidationSpec(best="x", patience=2)
    best.judge(2, {"x": earlier, "y": 0.0}, spec)
    before = replace(best)
    assert not best.judge(4, {"y": -1.0}, spec) and best == before
    assert "step 4 is not compared with the best step: x was not measured" in caplog.text


def test_a_number_that_is_never_measured_is_refused() -> None:
    with pytest.raises(SpecError, match="train.validation.best is 'x'; expected one of y"):
        Best().judge(2, {"y": 0.0}, ValidationSpec(best="x"))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([NAN, INF], "x was not a finite number in any of 2 validations"),
        ([3.0, NAN, 4.0], "x has not been lower than 3 since step 1, for 2 validations"),
    ],
)
def test_the_line_at_an_early_end_says_what_was_waited_for(values: list[float], line: str) -> None:
    best, spec = Best(), ValidationSpec(best="x", patience=2)
    for number, value in enumerate(values, start=1):
        best.judge(number, {"x": value}, spec)
    assert best.is_over(spec)
    assert best.describe_end(len(values), spec) == f"stopped early after step {len(values)}: {line} (train.validation.patience)"


@pytest.mark.parametrize("change", [{"best": "y"}, {"better": "higher"}])
def test_another_comparison_starts_over(change: dict[str, str]) -> None:
    best, spec = Best(), ValidationSpec(best="x")
    best.judge(2, {"x": 1.0, "y": 9.0}, spec)
    changed = ValidationSpec(**({"best": "x"} | change))  # type: ignore[arg-type]
    assert best.judge(4, {"x": 0.5, "y": 9.5}, changed) and best.step == 4


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_steps_measured_on_different_clips_are_not_compared(better: str) -> None:
    best, spec = Best(), ValidationSpec(best="x", better=better, patience=1)  # type: ignore[arg-type]
    good = -9.0 if better == "lower" else 9.0
    assert best.judge(1, {"x": 1.0, CLIPS: 8.0}, spec)
    assert not best.judge(2, {"x": good, CLIPS: 7.0}, spec) and best.has_fewer_clips({CLIPS: 7.0})
    assert (best.step, best.waited) == (1, 0), "it is not a validation that patience counts either"
    assert best.judge(3, {"x": -good, CLIPS: 9.0}, spec) and best.step == 3
    assert not best.judge(4, {"x": NAN, CLIPS: 10.0}, spec)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_run_without_a_finite_number_says_so_when_patience_ends(value: float) -> None:
    best, spec = Best(), ValidationSpec(best="x", patience=2)
    for step in (1, 2):
        best.judge(step, {"x": value}, spec)
    assert best.is_over(spec)
    assert best.describe_end(2, spec).startswith("stopped early after step 2: x was not a finite number in any of 2 validations")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [({"value": NAN, "step": 2}, "finite"), ({"step": -1}, "at least 1"), ({"waited": -5}, "at least 0"), ({"clips": NAN}, "at least 1")],
)
def test_a_best_step_that_cannot_be_is_refused(entry: dict[str, float], problem: str) -> None:
    with pytest.raises(SpecError, match=f"of the best step is .*; expected .*{problem}"):
        convert(entry, Best, "progress.best")


def test_patience_needs_a_number_to_compare() -> None:
    with pytest.raises(SpecError, match="train.validation.patience is set, but train.validation.best is not"):
        check_train(settings(validation=ValidationSpec(patience=3)))


SCRIPT = {0: 9.0, 2: 5.0, 4: 4.0, 6: 4.5, 8: 4.5, 10: 4.1, 12: 1.0}
"""What is measured at each step: with a patience of 3 it ends at step 10, and 4 is the best."""


def train(
    run: TinyRun, checkpointer: Checkpointer, log: list[Mapping[str, float]], *, stop_at: int = 99, stop_in: int | None = None
) -> bool:
    """Train until a request to stop, which comes after step `stop_at` or while step `stop_in` is measured."""
    progress = run.state.progress
    asked: list[int] = []

    def measure(step: int) -> dict[str, float]:
        if step == stop_in:
            asked.append(step)
        return {} if asked else {"validation/loss": SCRIPT[step]}

    hooks = Hooks(
        measure=measure,
        log=lambda step, metrics: log.append({"step": step, **metrics}),
        save=lambda progress: run.state.save(checkpointer, run.world, identity={"name": "tiny"}),
        should_stop=lambda: progress.step == stop_at or bool(asked),
    )
    finished = run.run(0, hooks=hooks)
    checkpointer.wait()
    return finished


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*"))


PATIENT = settings(steps=30, validation=ValidationSpec(every=2, best="validation/loss", patience=3), log_every=5, keep_every=7)


def test_a_run_ends_when_patience_does_and_keeps_the_best_and_every_seventh(tmp_path: Path) -> None:
    log: list[Mapping[str, float]] = []
    run = TinyRun(alone(), PATIENT)
    assert train(run, Checkpointer(tmp_path, alone(), keep=1, keep_every=7), log)
    assert run.state.progress.step == 10 and steps(tmp_path) == [4, 7, 10]
    assert [line["step"] for line in log] == [0, 2, 4, 5, 6, 8, 10]
    assert [line["step"] for line in log if "validation/loss" in line] == [0, 2, 4, 6, 8, 10]
    assert log[-1]["stopped_early"] == 1 and not any("stopped_early" in line for line in log[:-1])
    again = TinyRun(alone(), PATIENT, resume=find_latest(tmp_path))
    assert train(again, Checkpointer(tmp_path, alone(), keep=1, keep_every=7), log) and again.state.progress.step == 10


@pytest.mark.parametrize("stop", [{"stop_at": 3}, {"stop_at": 4}, {"stop_at": 6}, {"stop_at": 9}, {"stop_in": 4}, {"stop_in": 8}])
def test_a_run_that_stopped_between_ends_at_the_same_step_with_the_same_best(stop: dict[str, int], tmp_path: Path) -> None:
    log: list[Mapping[str, float]] = []
    checkpointer = Checkpointer(tmp_path, alone(), keep=1, keep_every=7)
    assert not train(TinyRun(alone(), PATIENT), checkpointer, log, **stop)
    run = TinyRun(alone(), PATIENT, resume=find_latest(tmp_path))
    assert train(run, checkpointer, log)
    assert run.state.progress.step == 10 and steps(tmp_path) == [4, 7, 10]
    assert run.state.progress.best == Best("lower validation/loss", 4.0, 4, 3)
    assert [line["step"] for line in log if "validation/loss" in line] == [0, 2, 4, 6, 8, 10]
