"""Losses on held-out data: what is measured, what it leaves as it was, and what a run does with the numbers."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_run import measured
from tiny_held_out import HELD_OUT, held_out
from tiny_spec import tiny_spec
from tiny_training import alone
from torch.profiler import profile

from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError, SpecError, UnreadableAudioError
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec.schema import ValidationSpec
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.train.best import Best
from soundomni.train.checkpoint import read_state
from soundomni.train.export import best_step
from soundomni.train.preflight import check_spec
from soundomni.train.run import run_training
from soundomni.train.run_directory.inventory import digest


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The numbers of one process."""
    return held_out(alone(), tmp_path_factory.mktemp("held-out"))(0)


def test_losses_are_measured_as_a_whole_and_by_dataset_and_task(numbers: dict[str, float]) -> None:
    names = {"", "/ce", "/velocity", "/velocity/others", "/velocity/toys/generate", "/velocity/toys", "/ce/toys", "/ce/toys/describe"}
    assert {f"validation/loss{name}" for name in names} | {"validation/clips"} <= numbers.keys()
    assert "validation/loss/ce/others" not in numbers, "nothing in it is predicted as text"
    assert numbers["validation/loss"] == numbers["validation/loss/ce"] + numbers["validation/loss/velocity"]
    parts = sorted(numbers[f"validation/loss/velocity/{name}"] for name in ("toys", "others"))
    assert parts[0] < numbers["validation/loss/velocity"] < parts[1]
    assert numbers["validation/clips"] == 15


def test_the_loss_of_the_clips_together_is_the_mean_over_their_elements(tmp_path: Path) -> None:
    measure = held_out(alone(), tmp_path)
    measured = measure(0)
    totals: dict[str, list[float]] = {}
    assert measure.ema is not None
    with torch.no_grad(), measure.ema.swapped(measure.module):
        for batch in measure.batches:
            (packed,) = measure.read([batch])
            for name, (total, count) in measure.module(packed).items():
                totals.setdefault(name, []).append(float(total))
                totals.setdefault(f"{name} count", []).append(float(count))
    for name in ("ce", "velocity"):
        assert measured[f"validation/loss/{name}"] == pytest.approx(sum(totals[name]) / sum(totals[f"{name} count"]), rel=1e-6)


def test_losses_at_single_timesteps_are_those_of_every_nth_batch_with_the_same_noise(tmp_path: Path) -> None:
    measure = held_out(alone(), tmp_path, "train.validation.timesteps=[0.2, 0.8]")
    measured = measure(0)
    groups = {batch.group: [one for one in measure.batches if one.group == batch.group] for batch in measure.batches}
    chosen = [batch for group, own in groups.items() if group.task == "generate" for batch in own[::2]]
    assert len(chosen) >= 2 and len(chosen) < len(measure.batches)
    assert measure.ema is not None
    for timestep in (0.2, 0.8):
        with torch.no_grad(), measure.ema.swapped(measure.module):
            terms = [measure.module(batch.at_timestep(timestep))["velocity"] for batch in measure.read(chosen)]
            query = measure.module.made().corrupt(next(measure.read(chosen[:1])).at_timestep(timestep).of("latent"))  # type: ignore[union-attr]
        assert query.timesteps[query.loss_mask].unique().tolist() == pytest.approx([timestep])
        expected = float(sum(total for total, _ in terms) / sum(count for _, count in terms))
        assert measured[f"validation/loss/velocity@{timestep}"] == pytest.approx(expected, rel=1e-6)
    assert [name for name in measured if "@" in name] == ["validation/loss/velocity@0.2", "validation/loss/velocity@0.8"]


def test_no_timesteps_and_objectives_without_any_change_nothing(tmp_path: Path, numbers: dict[str, float]) -> None:
    plain = held_out(alone(), tmp_path, "train.validation.timesteps=[]")(0)
    assert plain == {name: value for name, value in numbers.items() if "@" not in name}
    assert [name for name in numbers if "@" in name] == [f"validation/loss/velocity@{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    harmonic = "{class_path: harmonic-codes, init_args: {sample_rate: 8000, frame_size: 128, num_codebooks: 2, codebook_size: 8}}"
    codes = (f"model.codec={harmonic}", "model.connectors.latent=codes", "model.objective=masked", "sampler=maskgit")
    run_training(
        tiny_spec(tmp_path / "codes", *HELD_OUT, *codes, "train.steps=1", "train.validation.every=1", "train.validation.num_describe=0")
    )
    found = measured(tmp_path / "codes")[0]
    assert "validation/loss/masked" in found and not [name for name in found if "@" in name]


def test_measuring_changes_nothing_and_gives_the_same_again(tmp_path: Path, numbers: dict[str, float]) -> None:
    measure = held_out(alone(), tmp_path)
    measure.module.made().connector.eval()  # type: ignore[union-attr]
    before = {name: p.detach().clone() for name, p in measure.module.named_parameters()}
    state = torch.get_rng_state()
    assert measure(0) == measure(1) == numbers
    assert all(torch.equal(p, before[name]) for name, p in measure.module.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert measure.module.training and measure.module.backbone.training and not measure.module.made().connector.training  # type: ignore[union-attr]


def test_a_failure_is_told_once_and_gives_no_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    measure = held_out(alone(), tmp_path)

    def fail(*_: object) -> None:
        assert not measure.module.training
        raise MemoryError

    measure.module.register_forward_pre_hook(fail)
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert measure(5) == measure(7) == {}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the held-out losses could not be measured at step 5; training continues") and line.endswith("MemoryError")


def test_a_failure_at_single_timesteps_is_told_as_such_and_leaves_the_other_losses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, numbers: dict[str, float]
) -> None:
    measure = held_out(alone(), tmp_path)

    def fail(module: torch.nn.Module, given: tuple[PackedBatch, ...]) -> None:
        if everywhere or any(clips.timestep is not None for clips in given[0].clips.values()):
            raise MemoryError

    measure.module.register_forward_pre_hook(fail)
    everywhere = False
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert measure(5) == measure(7) == {name: value for name, value in numbers.items() if "@" not in name}
        everywhere = True
        assert measure(9) == {}
    told = "training continues, and this warning is not repeated: MemoryError"
    assert [record.getMessage() for record in caplog.records] == [
        f"the held-out losses at single timesteps could not be measured at step 5; {told}",
        f"the held-out losses could not be measured at step 9; {told}",
    ]


def test_clips_of_which_none_can_be_read_give_no_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, numbers: dict[str, float]
) -> None:
    measure = held_out(alone(), tmp_path)

    def gone(*_: object) -> None:
        raise UnreadableAudioError("the disk is away")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "soundomni.train"):
        patch.setattr(ToySounds, "load", gone)
        assert measure(5) == measure(7) == {}
    assert [record.getMessage() for record in caplog.records if record.name.startswith("soundomni.train")] == [
        "the held-out losses could not be measured at step 5; training continues, and this warning is not repeated: "
        "none of their 15 clips can be read"
    ]
    assert measure(9) == numbers


@pytest.mark.parametrize("rounds", [0, 2, 5])
def test_a_request_to_stop_ends_measuring_between_two_batches(rounds: int, tmp_path: Path, numbers: dict[str, float]) -> None:
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(len(asked) == rounds)
        return asked[-1]

    measure = replace(held_out(alone(), tmp_path), should_stop=should_stop)
    assert measure(5) == {} and len(asked) == rounds + 1
    assert measure(5) == numbers and measure.module.training


@pytest.mark.parametrize("unreadable", ["every clip", "the clips of one task"])
def test_clips_that_cannot_be_read_are_not_a_loss_of_zero(
    unreadable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, load, spec = held_out(alone(), tmp_path), ToySounds.load, ValidationSpec(best="validation/loss")
    lost = {
        sample.draw.index
        for batch in measure.batches
        for sample in batch.samples
        if "every" in unreadable or batch.group.task == "describe"
    }
    best = Best()
    best.judge(1, measure(1), spec)

    def fail(self: ToySounds, index: int) -> object:
        if index in lost:
            raise UnreadableAudioError(f"cannot read {index}")
        return load(self, index)

    monkeypatch.setattr(ToySounds, "load", fail)
    with caplog.at_level(logging.WARNING, "soundomni.train"):
        numbers = measure(2)
    assert not best.judge(2, numbers, spec) and best.step == 1
    if "every" in unreadable:
        assert numbers == {}
        assert "could not be measured at step 2; training continues" in caplog.text and "none of their 15 clips can be read" in caplog.text
    else:
        assert 0 < numbers["validation/clips"] < 15


RUN = (
    *HELD_OUT,
    "train.steps=4",
    "train.validation.every=2",
    "train.validation.num_describe=0",
    "train.validation.num_held_out=4",
    "train.log_every=3",
    "train.save_every=0",
    "train.keep_checkpoints=1",
    "train.validation.best=validation/clips",
    "train.optimizer.lr=0.0",
)
"""The number that is compared stays as it is: the first step is the best one, and the others are not better."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends early, told to wait for one validation, in a folder with the spec of a longer one."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = run_training(tiny_spec(run_dir, *RUN, "train.steps=20", "train.validation.patience=1"))
    assert (result.finished, result.exit_status, result.step) == (True, 0, 4)
    return run_dir


def test_held_out_losses_are_logged_before_the_first_step_and_at_the_end(whole: Path) -> None:
    lines = measured(whole)
    assert [line["step"] for line in lines] == [0, 2, 3, 4]
    assert [line["step"] for line in lines if "validation/loss" in line] == [0, 2, 4]
    assert "loss" not in lines[1] and "loss" in lines[3], "a line of its own, or with the other numbers of the step"
    assert lines[0]["validation/loss/velocity"] > 0 and lines[-1]["stopped_early"] == 1
    assert all(lines[0][f"validation/loss/velocity@{t}"] > 0 for t in (0.1, 0.3, 0.5, 0.7, 0.9))


def test_a_run_that_ended_early_does_not_train_on_and_more_patience_goes_on(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = measured(whole)
    assert run_training(tiny_spec(whole, *RUN, "train.steps=20", "train.validation.patience=1")).step == 4
    assert measured(whole) == before
    assert (
        "stopped early after step 4: validation/clips has not been lower than 8 since step 2, for 1 validation " in capsys.readouterr().err
    )
    assert sorted(path.name for path in (whole / "checkpoints").glob("step-*")) == ["step-00000002", "step-00000004"], "best and newest"
    progress = read_state(whole / "checkpoints" / "step-00000004")["progress"]
    assert progress["best"] == {"judged_by": "lower validation/clips", "value": 8.0, "step": 2, "waited": 1, "clips": 8.0}


def test_the_best_and_any_other_step_are_exported(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, step in ((["--best"], 2), (["--step", "4"], 4), ([], 4)):
        assert main(["export", str(whole), "--out", str(tmp_path / f"model-{len(list(tmp_path.iterdir()))}"), *options]) == 0
        assert f"the weights of step {step}" in capsys.readouterr().out
    assert main(["export", str(whole), "--out", str(tmp_path / "other"), "--step", "3"]) == 2
    assert "has no checkpoint of step 3; expected one of 2, 4" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["missing", "damaged"])
def test_a_best_step_that_is_lost_is_said_and_steps_are_compared_anew(
    loss: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    best = run_dir / "checkpoints" / "step-00000002"
    if loss == "missing":
        shutil.rmtree(best)
    else:
        (best / "rank-00000.json").write_text("{}")
    assert main(["export", str(run_dir), "--out", str(tmp_path / "model"), "--best"]) == 2
    assert f"step 2 is the best of the run '{run_dir}', but its checkpoint cannot be used: " in capsys.readouterr().err
    spec = tiny_spec(run_dir, *RUN, "train.steps=6", "train.validation.patience=5")
    assert run_training(spec).step == 6
    assert "the search for the best step starts again at step 4, because the best one so far is lost: " in caplog.text
    assert best_step(run_dir) == 4


@pytest.mark.parametrize("best", [5, {"step": "x"}, {"zz": 1}, {"step": -1}])
def test_a_checkpoint_that_lies_about_the_best_step_is_named(best: object, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    checkpoint = run_dir / "checkpoints" / "step-00000004"
    state, manifest = (json.loads((checkpoint / name).read_text()) for name in ("state.json", "manifest.json"))
    state["progress"] = {**state["progress"], "best": best}
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest["files"]["state.json"]["sha256"] = digest(checkpoint / "state.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="step-00000004' does not say which step is the best: "):
        best_step(run_dir)


@pytest.mark.parametrize("holds", ["nothing", "a log without checkpoints"])
def test_going_back_in_a_directory_without_checkpoints_changes_nothing(holds: str, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    if holds != "nothing":
        shutil.copytree(whole, run_dir)
        shutil.rmtree(run_dir / "checkpoints")
    before = {path.name: path.read_bytes() for path in run_dir.glob("*.*") if path.is_file()}
    with pytest.raises(CheckpointError, match="has no checkpoint of step 2; it has no checkpoints at all"):
        run_training(tiny_spec(run_dir, *RUN), from_step=2)
    assert {path.name: path.read_bytes() for path in run_dir.glob("*.*") if path.is_file()} == before


def test_a_run_goes_back_to_a_step_and_keeps_the_later_ones_aside(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tiny_spec(whole, *RUN, "train.validation.patience=0", "train.validation.best=null", "train.steps=3")
    with pytest.raises(CheckpointError, match="has no checkpoint of step 1; expected one of 2, 4"):
        run_training(spec, from_step=1)
    with pytest.raises(SpecError, match="can only go back to step 2 if it is resumed"):
        run_training(spec, from_step=2, existing="overwrite")
    assert run_training(spec, from_step=2).step == 3
    assert "resuming from step 2" in capsys.readouterr().err
    assert [path.name for path in (whole / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert [path.name for path in (whole / "checkpoints-1").iterdir()] == ["step-00000004"]
    assert [line["step"] for line in measured(whole)] == [0, 2, 2, 3], "step 2 is measured again, as it is no longer compared"


def test_a_trace_and_a_line_of_sums_are_left_by_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    result = run_training(tiny_spec(run_dir, "train.steps=5"), profile_steps=1)
    told = capsys.readouterr().err
    assert "5 steps in 0:00:" in told and "tokens/s, peak memory " in told and str(run_dir / "trace.json") in told
    assert any(
        event.get("name", "").startswith("Optimizer.step") for event in json.loads((run_dir / "trace.json").read_text())["traceEvents"]
    )
    assert "trace.json" in [json.loads(line)["file"] for line in (run_dir / "inventory.jsonl").read_text().splitlines()]
    assert result.metrics["peak_memory"] > 1e7 and "loss/velocity/toys/generate" in result.metrics
    run_training(tiny_spec(run_dir, "train.steps=1"), existing="overwrite")
    assert not (run_dir / "trace.json").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("Failed to write")])
def test_a_trace_that_fails_leaves_no_part_of_itself(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: profile, path: str) -> None:
        assert not Path(path).exists(), "what a killed run left is gone"
        Path(path).write_text("a part")
        raise error

    monkeypatch.setattr(profile, "export_chrome_trace", fail)
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "train.steps=4"))
    (run_dir / ".trace.json.part").symlink_to(tmp_path / "elsewhere")
    run_training(tiny_spec(run_dir, "train.steps=9"), profile_steps=1)
    assert "the trace could not be written; training continues" in caplog.text
    assert not list(run_dir.glob("*trace*")) and not list(run_dir.glob(".trace*")) and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("steps", "left"), [(1, "1 step"), (3, "3 steps")])
def test_a_trace_that_has_nothing_to_record_is_said(steps: int, left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    for remaining, above in ((left, 3), ("0 steps", steps + 3)):
        run_training(tiny_spec(run_dir, f"train.steps={steps}"), profile_steps=2)
        told = f"--profile records nothing: {remaining} left, and the first 3 are not recorded. Set train.steps above {above}"
        assert told in caplog.text and not (run_dir / "trace.json").exists()


def test_the_loss_at_a_timestep_may_decide_which_step_is_the_best(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path / "run", *RUN, "train.validation.best=validation/loss/velocity@0.5")
    check_spec(spec)
    with pytest.raises(SpecError, match="'validation/loss/velocity@0.5'; expected one of"):
        check_spec(tiny_spec(tmp_path / "run", *RUN, "train.validation={timesteps: [0.4], best: validation/loss/velocity@0.5}"))
    for wrong in ("0.0", "1.0", ".nan"):
        with pytest.raises(SpecError, match=rf"train.validation.timesteps\[1\] is {wrong.lstrip('.')}; expected above 0 and below 1"):
            check_spec(tiny_spec(tmp_path / "run", f"train.validation.timesteps=[0.5, {wrong}]"))
    for again in ("0.5", "0.50000001"):
        line = rf"^train.validation.timesteps\[2\] is {again}; expected .* first six digits, but timesteps\[0\] is 0.5. Remove one of them$"
        with pytest.raises(SpecError, match=line):
            check_spec(tiny_spec(tmp_path / "run", f"train.validation.timesteps=[0.5, 0.50001, {again}]"))


@pytest.mark.parametrize("name", ["validation/los", "loss/ce", "validation/loss/ce/others"])
def test_a_number_that_is_not_measured_is_refused_before_the_first_step(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"train.validation.best is '{name}'; expected one of validation/loss, validation/loss/ce, "):
        run_training(tiny_spec(tmp_path / "run", *RUN, f"train.validation.best={name}"))
