"""Progress where stderr is no terminal: a line now and then, and one at the end."""

import pytest

from soundomni.train.best import at_timestep, timestep_of
from soundomni.train.terminal import ProgressLines, open_display


def lines_of(total: int, seconds_per_step: float, capsys: pytest.CaptureFixture[str], *, initial: int = 0) -> list[str]:
    now = [0.0]
    display = ProgressLines(total=total, initial=initial, clock=lambda: now[0])
    for step in range(initial + 1, total + 1):
        now[0] += seconds_per_step
        display.show(step, {"loss": 1.5, "loss/ce": 0.25, "lr": 1.0})
    display.close()
    return capsys.readouterr().err.splitlines()


def test_a_slow_run_has_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(200, 10.0, capsys)
    assert [line.split(" ")[1] for line in lines] == [str(step) for step in range(20, 201, 20)]
    assert lines[0] == "step 20 of 200 (10%): loss 1.5000, ce 0.2500, 0.1 steps/s, 0:30:00 left"
    assert lines[-1].endswith("0:00:00 left")


def test_a_fast_run_has_a_line_per_half_minute_and_a_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split(" ")[1] for line in lines_of(200, 0.5, capsys)] == ["60", "120", "180", "200"]
    assert [line.split(" ")[1] for line in lines_of(200, 0.01, capsys)] == ["200"]


def test_a_resumed_run_counts_from_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(100, 40.0, capsys, initial=85)[0].startswith("step 95 of 100 (95%): loss 1.5000, ce 0.2500, 0.025 steps/s, 0:03:20")


def test_held_out_losses_at_timesteps_have_a_line_whenever_they_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressLines(total=200, initial=0, clock=lambda: 0.0)
    display.show(3, {"validation/loss": 1.0, "validation/loss/velocity": 1.0})
    display.show(4, {"validation/loss/velocity@0.1": 2.0, "validation/loss/velocity@0.9": 0.5, "validation/loss/b.velocity@0.5": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 4: held-out velocity at timestep 0.1: 2.0000, 0.9: 0.5000",
        "step 4: held-out b.velocity at timestep 0.5: 1.0000",
    ]


def test_timesteps_are_told_from_names_with_an_at(capsys: pytest.CaptureFixture[str]) -> None:
    others = ["velocity/a@b", "velocity/a@0.5", "velocity/a@0.5/generate@1", "velocity@soon", "velocity@", "@0.5"]
    names = [f"validation/loss/{name}" for name in others] + ["loss/velocity@0.5", "validation/loss@0.5", "validation/clips"]
    assert [timestep_of(name) for name in names] == [None] * len(names)
    display = ProgressLines(total=200, initial=0, clock=lambda: 0.0)
    display.show(4, dict.fromkeys([*names, at_timestep("velocity", 0.25), at_timestep("a@b", 0.5)], 1.0))
    assert capsys.readouterr().err.splitlines() == [
        "step 4: held-out velocity at timestep 0.25: 1.0000",
        "step 4: held-out a@b at timestep 0.5: 1.0000",
    ]


@pytest.mark.parametrize("timestep", [0.1, 0.7, 1e-7, 0.123456])
def test_a_timestep_and_its_name_belong_together(timestep: float) -> None:
    assert timestep_of(at_timestep("b.velocity", timestep)) == ("b.velocity", timestep)


def test_without_a_terminal_lines_are_chosen() -> None:
    assert isinstance(open_display(total=2, initial=0), ProgressLines)
