"""Whole runs from a spec, in one process: what they write, how they go on, what they refuse."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_spec import tiny_spec

from soundomni.core.errors import CheckpointError, PluginError, SpecError
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.audio import read_audio
from soundomni.train.metrics_log import MetricsLog, read_metrics
from soundomni.train.run import run_training
from soundomni.train.state import load_trained_weights

VALIDATION = ("train.validation.every=3", "train.validation.prompts=[a Sine!]", "train.validation.seconds=0.3")
TIMES = {"run", "seconds", "tokens_per_second", "steps_per_second", "peak_memory"}


def measured(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run_dir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with validation and TensorBoard."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = run_training(tiny_spec(run_dir, *VALIDATION, "train.trackers=[tensorboard]"))
    assert (result.finished, result.step, result.exit_status) == (True, 6, 0)
    assert result.checkpoint == run_dir / "checkpoints" / "step-00000006"
    assert result.metrics["loss"] > 0
    return run_dir


def test_a_run_writes_its_directory(whole: Path) -> None:
    lock = json.loads((whole / "lock.json").read_text())
    assert "soundomni" in [entry["distribution"] for entry in lock]
    spec = load_spec([whole / "spec.yaml"])
    assert spec == resolve(spec), "the spec that is kept is resolved"
    assert spec.model.backbone.init_args["rope_theta"] == 1e4, "with every default filled in"
    lines = measured(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["samples"] > 6 and lines[-1]["tokens"] > 6 * 192
    assert {"loss", "loss/ce", "loss/velocity", "lr", "grad_norm", "skipped_steps", "unreadable", "refused"} <= set(lines[0])


def test_validation_writes_clips_pictures_and_descriptions(whole: Path) -> None:
    folder = whole / "samples" / "step-00000006"
    assert sorted(p.name for p in folder.iterdir()) == ["00-a-sine.png", "00-a-sine.wav", "descriptions.jsonl", "prompts.jsonl"]
    waveform, rate = read_audio(folder / "00-a-sine.wav")
    assert (waveform.shape, rate) == ((1, 2400), 8000)
    assert json.loads((folder / "prompts.jsonl").read_text()) == {"file": "00-a-sine.wav", "prompt": "a Sine!"}
    described = [json.loads(line) for line in (folder / "descriptions.jsonl").read_text().splitlines()]
    assert [set(line) for line in described] == [{"clip", "captions", "description"}] * 2


def test_tensorboard_events_are_written(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("loss")]
    assert found == pytest.approx([line["loss"] for line in measured(whole)], rel=1e-6)
    assert events.Tags()["audio"] == ["00-a-sine"] and events.Tags()["images"] == ["00-a-sine"]


def test_going_on_is_bit_exact_and_validation_changes_nothing(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "train.steps=3"))
    assert run_training(tiny_spec(run_dir)).step == 6
    assert measured(run_dir) == measured(whole)
    files = [path / "checkpoints" / "step-00000006" / "rank-00000.safetensors" for path in (run_dir, whole)]
    expected, found = load_file(files[1]), load_file(files[0])
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_finished_run_is_left_as_it_is(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    result = run_training(tiny_spec(whole, "train.log_every=2"))
    assert (result.finished, result.step) == (True, 6)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_another_spec_is_refused_with_the_keys(whole: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train.optimizer.lr: 0.001 -> 0.002; undo these changes"):
        run_training(tiny_spec(whole, "train.optimizer.lr=2e-3", "train.steps=7"))
    with pytest.raises(CheckpointError, match="already holds a run"):
        run_training(tiny_spec(whole), existing="refuse")
    with pytest.raises(SpecError, match="Did you mean 'resume'"):
        run_training(tiny_spec(whole), existing="resum")  # type: ignore[arg-type]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "run", "train.steps=1"))
    TextTokenizer.train(["other"], vocab_size=300).save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is not the tokenizer that"):
        run_training(tiny_spec(tmp_path / "run"))


def test_overwriting_starts_afresh(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "train.steps=2", "data.seed=1", "train.trackers=[tensorboard]"))
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    (run_dir / "tensorboard" / "notes.txt").write_text("mine")
    run_training(tiny_spec(run_dir, "train.steps=3"), existing="overwrite")
    assert measured(run_dir) == measured(whole)[:3]
    assert [path.name for path in (run_dir / "tensorboard").iterdir()] == ["notes.txt"]


def test_a_directory_that_is_no_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("mine: true\n")
    with pytest.raises(CheckpointError, match="has spec.yaml, which does not belong to a run"):
        run_training(tiny_spec(tmp_path), existing="overwrite")
    assert (tmp_path / "spec.yaml").read_text() == "mine: true\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        run_training(tiny_spec(tmp_path / "other", f"train.run_dir={tmp_path / 'file' / 'run'}"))


def test_damage_falls_back_and_the_run_goes_on(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir))
    (run_dir / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert run_training(tiny_spec(run_dir)).step == 6
    assert "step-00000006' is damaged (state.json has changed since it was written" in caplog.text
    assert measured(run_dir) == measured(whole)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "train.steps is 0; expected at least 1"),
        ("train.ema_decay=1", "train.ema_decay is 1.0"),
        ("train.loss_weights={velocty: 2.0}", "the losses are ce, velocity. Did you mean 'velocity'"),
        ("train.target=codec", "train.target is 'codec', but no longer exists: a spec with the section codec trains a codec"),
        ("train.parallel.replicate=2", "train.parallel.replicate is 2; expected a divisor"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        run_training(tiny_spec(tmp_path / "run", override))


def test_a_codec_is_trained_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    learning = ("train.steps=24", "train.optimizer.lr=0.01", "data.datasets.toys.source.kinds=[sine]")
    spec = tiny_spec(run_dir, *learning, "train.validation.every=24", "train.validation.num_describe=1", codec=True)
    run_training(spec)
    lines = measured(run_dir)
    assert {"loss/l1", "loss/kl", "latent/power"} <= set(lines[0])
    losses = [line["loss/l1"] for line in lines]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    folder = run_dir / "samples" / "step-00000024"
    stems = ["00-original", "00-reconstructed"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "wav"))
    slot = spec.codec.codec
    codec = build("codec", Slot(slot.class_path, {**slot.init_args, "weights": str(run_dir / "codec.safetensors")}))
    saved = build("codec", slot)
    load_trained_weights(saved, run_dir / "checkpoints" / "step-00000024", prefix="codec.")
    assert all(torch.equal(p, q) for p, q in zip(codec.parameters(), saved.parameters(), strict=True))


def test_wandb_that_is_missing_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PluginError, match=r"pip install soundomni\[wandb\]"):
        run_training(tiny_spec(tmp_path / "run", "train.trackers=[wandb]"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_metrics_after_the_resumed_step_are_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resumed_step=0)
    for step in (2, 4, 6):
        log.log(step, {"loss": float("nan") if step == 4 else 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    MetricsLog(tmp_path, resumed_step=5).log(6, {"loss": 2.0})
    expected = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": None}, {"step": 6, "loss": 2.0}]
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == expected
