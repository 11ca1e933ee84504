"""What a run says, allows and refuses when it goes on, and what neither validation nor broken clips may cost it."""

import errno
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_run import VALIDATION, measured
from tiny_spec import tiny_spec

from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError, DataError
from soundomni.core.spec.load import dump_spec
from soundomni.train import validation
from soundomni.train.checkpoint import find_latest, read_state
from soundomni.train.export import load_run
from soundomni.train.learning_rate import learning_rate
from soundomni.train.run import run_training

COSINE = "train.schedule.kind=cosine"


def test_a_run_says_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(tiny_spec(tmp_path / "run", "train.steps=1"))
    assert "resuming" not in capsys.readouterr().err
    run_training(tiny_spec(tmp_path / "run", "train.steps=2"))
    errors = capsys.readouterr().err
    assert f"resuming from step 1 of checkpoint '{tmp_path / 'run' / 'checkpoints' / 'step-00000001'}'\n" in errors
    assert "step 2 of 2 (100%): loss " in errors


def test_more_steps_of_a_cosine_are_told_with_both_rates_and_fewer_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, COSINE, "train.steps=4"))
    spec = tiny_spec(run_dir, COSINE, "train.steps=8")
    assert spec.train is not None
    before, now = (learning_rate(4, schedule=spec.train.schedule, peak=spec.train.optimizer.lr, total_steps=steps) for steps in (4, 8))
    assert now > 10 * before
    with caplog.at_level(logging.WARNING, "soundomni"):
        run_training(tiny_spec(run_dir, COSINE, "train.steps=8"))
    assert f"train.steps: 4 -> 8 moves the cosine schedule: the learning rate after step 4 is {now:.4g}" in caplog.text
    assert f"instead of the planned {before:.4g}" in caplog.text
    assert run_training(tiny_spec(run_dir, COSINE, "train.steps=5")).step == 8, "a run without steps left is not affected"
    (run_dir / "checkpoints" / "step-00000008" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"train.steps: 8 -> 7 moves the cosine schedule.*; set at least 8 steps"):
        run_training(tiny_spec(run_dir, COSINE, "train.steps=7"))


def test_another_version_of_a_distribution_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "train.steps=1"))
    lock = json.loads((run_dir / "lock.json").read_text())
    version = lock[0]["version"]
    (run_dir / "lock.json").write_text(json.dumps([{**entry, "version": "0.0.7"} for entry in lock]))
    with caplog.at_level(logging.WARNING, "soundomni"):
        run_training(tiny_spec(run_dir, "train.steps=2"))
    assert f"the run used soundomni 0.0.7 so far and continues with {version}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "soundomni"):
        run_training(tiny_spec(run_dir, "train.steps=3"))
    assert "the run used" not in caplog.text


def test_existing_runs_are_refused_or_overwritten_by_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, config = tmp_path / "run", tmp_path / "spec.yaml"
    config.write_text(dump_spec(tiny_spec(run_dir, "train.steps=1")))
    command = ["train", "--config", str(config)]
    assert main(command) == 0
    assert main([*command, "--train.optimizer.lr=0.5", "--train.steps=2"]) == 2
    assert "--existing overwrite" in capsys.readouterr().err
    assert main([*command, "--existing", "refuse"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*command, "--existing", "overwrit"]) == 2
    assert "--existing is 'overwrit'; expected one of resume, refuse, overwrite. Did you mean 'overwrite'?" in capsys.readouterr().err
    assert main([*command, "--existing", "overwrite", "--train.optimizer.lr=0.5"]) == 0
    assert [line["step"] for line in measured(run_dir)] == [1]


def test_an_error_in_validation_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("soundomni.core.pretrained.omni.SoundOmni.generate", broken)
    monkeypatch.setattr("soundomni.core.spec.culprit.loaded", dict)  # other tests of this process may have loaded plugins
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert run_training(tiny_spec(tmp_path / "run", *VALIDATION)).step == 6
    (line,) = [record.getMessage() for record in caplog.records]
    assert "generating from train.validation.prompts at step 3 failed" in line and line.endswith("RuntimeError: broken")


def test_a_full_disk_under_validation_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(validation, "write_made", full)
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert run_training(tiny_spec(tmp_path / "run", *VALIDATION)).finished
    assert "made at step 3 could not be written" in caplog.text and "No space left" in caplog.text


def test_a_model_that_only_describes_is_trained_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    only = "data.datasets.toys.tasks={generate: 0.0, describe: 1.0}"
    result = run_training(tiny_spec(run_dir, only, "train.validation.every=3", "train.validation.num_describe=1"))
    assert result.finished and result.metrics["loss/ce"] > 0 and result.metrics["loss/velocity"] == 0
    assert (run_dir / "samples" / "step-00000003" / "descriptions.jsonl").exists()
    model, _ = load_run(run_dir)
    assert bool(model.model.made().normalizer.fitted) and (model.model.made().normalizer.std == 1).all()
    assert len(model.generate(["a sine"], seconds=0.2)) == 1, "it makes noise, but it does not fail"


def test_latents_that_are_rare_are_looked_for_further_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "data.datasets.toys.tasks={generate: 0.02, describe: 1.0}", "train.steps=1"))
    normalizer = load_run(run_dir)[0].model.made().normalizer
    assert bool(normalizer.fitted) and not (normalizer.std == 1).all()


def broken_folder(path: Path, *, good: int, bad: int) -> str:
    """Files whose headers are right and of which `bad` end too early; returns the override that trains on them."""
    path.mkdir()
    for i in range(good + bad):
        file = path / f"{i:02d}.flac"
        soundfile.write(file, 0.1 * np.random.default_rng(i).standard_normal(3200), 8000)
        file.with_suffix(".txt").write_text("some noise")
        if i >= good:
            file.write_bytes(file.read_bytes()[:1500])
    source = f"{{class_path: audio-folder, init_args: {{path: '{path}'}}}}"
    return f"data.datasets={{toys: null, mine: {{source: {source}, tasks: {{generate: 1}}}}}}"


def test_unreadable_clips_are_counted_across_a_resume_and_stop_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    folder = broken_folder(tmp_path / "sounds", good=6, bad=6)
    allowed, strict = "data.skip_limit=1.0", "data.skip_limit=0.2"
    run_training(tiny_spec(run_dir, folder, allowed, "train.steps=12"))
    latest = find_latest(run_dir / "checkpoints")
    assert latest is not None
    totals = read_state(latest)["progress"]["totals"]
    assert totals["seen"] >= 20 and 0.3 < totals["unreadable"] / totals["seen"] < 0.7
    with pytest.raises(DataError, match=r"clips could not be read, more than data.skip_limit = 0.2 allows: mine:\d\d.flac: ") as caught:
        run_training(tiny_spec(run_dir, folder, strict, "train.steps=40"))
    assert int(str(caught.value).split(" ")[2]) > totals["seen"], "what was seen before the resume counts"
    for file in (tmp_path / "sounds").glob("*.flac"):
        soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(3200), 8000)
    assert run_training(tiny_spec(run_dir, folder, strict, "train.steps=40")).step == 40, "repaired files let the run go on"


@pytest.mark.parametrize("bad", [0, 6])
@pytest.mark.parametrize("normalize", ["none", "channel"])
def test_filters_that_leave_out_every_clip_stop_the_run(normalize: str, bad: int, tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "sounds", good=6, bad=bad)
    strict = "data.datasets.mine.filters={silence: {class_path: silence, init_args: {threshold: -1}}}"
    arguments = (folder, strict, "data.skip_limit=1.0", f"model.normalize={normalize}", "train.steps=40")
    with pytest.raises(DataError) as caught:
        run_training(tiny_spec(tmp_path / "run", *arguments))
    line = str(caught.value)
    if normalize == "none":
        assert re.match(r"the filters leave out all \d+ clips that were read; the first, 'mine:0\d.flac': filter 'silence' leaves it", line)
    else:
        assert line.startswith("the modality 'latent' cannot be measured on the data: ") and "more weight" not in line
        assert ("it is truncated" if bad else "filter 'silence' leaves it out: its level is -") in line
    assert "\n" not in line


def test_a_run_goes_on_if_filters_keep_some_clips(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "sounds", good=6, bad=0)
    for file in sorted((tmp_path / "sounds").glob("*.flac"))[1:]:
        soundfile.write(file, np.zeros(3200), 8000)
    silence = "data.datasets.mine.filters={silence: silence}"
    assert run_training(tiny_spec(tmp_path / "run", folder, silence, "train.steps=14")).step == 14
    latest = find_latest(tmp_path / "run" / "checkpoints")
    assert latest is not None
    totals = read_state(latest)["progress"]["totals"]
    assert totals["seen"] == totals["samples"] + totals["rejected"] > 20 and totals["samples"] > 0
