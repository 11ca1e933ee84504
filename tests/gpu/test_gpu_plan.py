"""The plan for a GPU: its steps run with tiny sizes on the CPU, and its driver resumes, records failures and keeps to the time."""

from __future__ import annotations

import importlib
import json
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.outcomes import Failed
from benchmarks.gpu.plan import InputError, identify_sources, main, parse_steps, read_log, read_results, run_plan
from benchmarks.gpu.speed import visible_pairs
from benchmarks.gpu.steps import STEPS, Step
from benchmarks.gpu.training import watched
from soundomni.core.attention import dense_mask
from soundomni.core.sequence import SegmentTable

CORRECTNESS = importlib.import_module("benchmarks.gpu.correctness")

STEPS_OF_THE_TEST = """
import time
from pathlib import Path
from benchmarks.gpu.outcomes import Failed

def count(device, *, folder):
    path = Path(folder, "calls")
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    print('{"number": "calls", "value": %d}' % len(path.read_text()))

def fail(device):
    print('{"number": "size", "value": 0.5}')
    raise Failed("the size is 0.5; expected less than 0.1")

def break_down(device):
    raise KeyError("gone")

def sleep(device):
    print('{"number": "before", "value": 1}', flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("step", STEPS, ids=lambda step: str(step.number))
def test_a_step_runs_with_tiny_sizes(step: Step) -> None:
    module, _, name = step.function.partition(":")
    sizes = json.loads(json.dumps(step.sizes("cpu")))
    numbers = getattr(importlib.import_module(module), name)("cpu", **sizes)
    assert numbers and json.loads(json.dumps(numbers)) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", list(range(14))), ("0-4", [0, 1, 2, 3, 4]), ("7", [7]), ("5, 2,11-12", [2, 5, 11, 12]), ("3-3", [3])],
)
def test_steps_are_named_by_their_numbers(text: str, numbers: list[int]) -> None:
    assert [step.number for step in parse_steps(text)] == numbers


@pytest.mark.parametrize("text", ["9-x", "14", "0-14", "4-2", "-1", "all", "1;2"])
def test_other_steps_are_refused(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = f"STEPS is '{text}'; expected step numbers from 0 to 13, such as 0-4 or 2,5"
    with pytest.raises(InputError) as refused:
        parse_steps(text)
    assert str(refused.value) == message
    assert main([f"--steps={text}", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == message + "\n"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Step]:
    """Steps of this test, by the name of their function."""
    (tmp_path / "steps_of_the_test.py").write_text(STEPS_OF_THE_TEST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sizes = {"count": {"folder": str(tmp_path)}}
    names = ("count", "fail", "break_down", "sleep")
    return {
        name: Step(i, name, f"steps_of_the_test:{name}", 2 if name == "sleep" else 60, sizes.get(name, {})) for i, name in enumerate(names)
    }


def test_a_second_call_skips_what_has_passed(steps: dict[str, Step], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen, out = [steps["count"], steps["fail"]], tmp_path / "out"
    for call in (1, 2):
        assert run_plan(chosen, out, device="cpu", seconds=60) == 1
        lines = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
        assert [(line["step"], line["pass"]) for line in lines] == [(0, True), (1, False)] + [(1, False)] * (call - 1)
        assert lines[0].keys() == {"step", "name", "pass", "seconds", "numbers", "commit", "device", "reason"}
        assert (lines[0]["numbers"], lines[0]["commit"]) == ({"calls": 1}, identify_sources())
        assert (lines[-1]["numbers"], lines[-1]["reason"]) == ({"size": 0.5}, "the size is 0.5; expected less than 0.1")
    table = (out / "gpu.md").read_text()
    assert capsys.readouterr().out.endswith(table)
    assert "| 0 | count | passed (earlier) |" in table
    assert "| 1 | fail | failed: the size is 0.5; expected less than 0.1 |" in table
    (out / "gpu.jsonl").write_text((out / "gpu.jsonl").read_text().replace(identify_sources(), "older") + '{"step": 0, "pa')
    assert run_plan(chosen[:1], out, device="cpu", seconds=60) == 0
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_step_that_breaks_or_takes_too_long_does_not_stop_the_others(steps: dict[str, Step], tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run_plan([steps["sleep"], steps["break_down"], steps["count"]], tmp_path / "out", device="cpu", seconds=60) == 1
    assert time.monotonic() - begun < 30
    found = {result.name: result for result in read_results(tmp_path / "out").values()}
    assert {name: (one.passed, one.reason) for name, one in found.items()} == {
        "sleep": (False, "it took longer than 2 s"),
        "break_down": (False, "KeyError: 'gone'"),
        "count": (True, ""),
    }
    assert found["sleep"].numbers == {"before": 1}
    assert "Traceback" in (tmp_path / "out" / "step-02.log").read_text()


def test_no_step_starts_when_the_time_is_over(steps: dict[str, Step], tmp_path: Path) -> None:
    assert run_plan([steps["count"]], tmp_path / "out", device="cpu", seconds=5) == 1
    assert "failed: not run: the time is over; call it again" in (tmp_path / "out" / "gpu.md").read_text()
    assert not (tmp_path / "calls").exists()


def test_results_on_the_cpu_do_not_count_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    line = {"step": 0, "name": "environment", "pass": True, "seconds": 1.0, "numbers": {}, "reason": ""}
    (tmp_path / "gpu.jsonl").write_text(json.dumps({**line, "commit": identify_sources(), "device": "cpu"}) + "\n")
    assert main(["--out", str(tmp_path)]) == 2
    printed = capfd.readouterr()
    assert printed.err == "there is no GPU here: nothing on a GPU was run\n"
    assert f"torch: {torch.__version__.partition('+')[0]}" in printed.out
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 1


def test_a_commit_is_known_without_a_repository_too(tmp_path: Path) -> None:
    (tmp_path / "soundomni").mkdir()
    file = tmp_path / "soundomni" / "x.py"
    names = []
    for text in ("a", "b", "a"):
        file.write_text(text)
        names.append(identify_sources(tmp_path))
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("tree-") for name in names)


def test_numbers_are_printed_at_once_and_problems_are_collected(capsys: pytest.CaptureFixture[str]) -> None:
    found = Findings()
    found.below("a", 0.123456, 1.0)
    found.below("b", 2.0, 1.0)
    found.above("c", 2.0, 3.0)
    numbers, reason = read_log(capsys.readouterr().out + '{"number": "cut')
    assert (numbers, reason) == ({"a": 0.1235, "b": 2.0, "c": 2.0}, "")
    with pytest.raises(Failed, match=r"^b is 2; expected less than 1; c is 2; expected more than 3$"):
        found.numbers()


def test_values_that_are_not_finite_fail() -> None:
    found = Findings()
    found.below("a", float("nan"), 1.0)
    with pytest.raises(Failed):
        found.numbers()


def test_waits_are_counted_by_place_and_layer() -> None:
    class Layer(nn.Module):
        def forward(self) -> None:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    layer = Layer()
    with watched(torch.device("cpu"), [layer]) as waits:
        layer()
        layer()
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert sorted(waits.all.values()) == [1, 2]
    assert all(where.startswith("test_gpu_plan.py:") for where in waits.all)
    assert [count for count in waits.in_layers.values() if count] == [2]
    assert len(waits.sites()) == 2 and waits.sites()[0].startswith("2 x ")


@pytest.mark.parametrize("unit", [8, 10])
def test_visible_pairs_are_those_of_the_mask(unit: int) -> None:
    for documents in CORRECTNESS.layouts(unit).values():
        table = SegmentTable.from_samples(documents)
        assert table.num_tokens == 16 * unit
        assert visible_pairs(table) == int(dense_mask(table).sum())
