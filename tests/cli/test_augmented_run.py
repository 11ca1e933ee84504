"""Runs and commands with augmentations and filters, from a spec on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main

SPEC = """
model:
  backbone: {class_path: mot, init_args: {hidden_dim: 16, num_layers: 1, num_heads: 2}}
  router: modality
  tokenizer: {vocab_size: 261}
  codec: {class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}
  encoder: {class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 64, hop_length: 32, num_mels: 8, feature_dim: 8}}
  connectors: {latent: linear, features: linear}
  objective: flow-matching
sampler: euler
data:
  datasets:
    sounds:
      source: {class_path: audio-folder, init_args: {path: FOLDER}}
      filters:
        long: {class_path: length, init_args: {least: 0.05}}
        silence: silence
      augmentations:
        flip: phase-flip
        level: gain
        speed: speed
        hide: {class_path: spec-augment, init_args: {longest: 0.5}}
  tokens_per_batch: 160
  lookahead: 4
  workers: 1
train:
  run_dir: RUN
  steps: 4
  optimizer: {lr: 1.0e-3, eps: 1.0e-8}
  log_every: 1
  save_every: 2
  threads: 1
  validation: null
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """A spec of a folder with clips, of which one is silent and one is too short."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for i in range(8):
        clip = 0.2 * np.sin(0.1 * (i + 1) * np.arange(800 + 90 * i))
        soundfile.write(folder / f"{i}.wav", clip * (i != 3) if i != 5 else clip[:100], 8000)
        (folder / f"{i}.txt").write_text(f"tone {i}")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("FOLDER", str(folder)).replace("RUN", str(tmp_path / "run")))
    return str(tmp_path / "spec.yaml")


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "rejected", "unreadable", "samples")
    return [{key: row[key] for key in kept} for row in rows if "loss" in row]


def test_a_run_that_resumes_has_the_losses_of_one_that_does_not(spec: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "--config", spec]) == 0
    assert "data 'sounds': 7 of 8 clips are used; left out: 1 left out by filter 'long'" in capsys.readouterr().err
    rest = ["--config", spec, f"--train.run_dir={tmp_path / 'again'}"]
    assert main(["train", *rest, "--train.steps=2"]) == 0
    assert main(["train", *rest]) == 0
    whole, parts = metrics(tmp_path / "run"), {row["step"]: row for row in metrics(tmp_path / "again")}
    assert [parts[row["step"]] for row in whole] == whole and len(whole) == 4
    assert whole[-1]["rejected"] > 0 and whole[-1]["unreadable"] == 0
    plain = ["--config", spec, "--data.datasets.sounds.augmentations.level=null", f"--train.run_dir={tmp_path / 'plain'}"]
    assert main(["train", *plain]) == 0
    assert [row["loss"] for row in metrics(tmp_path / "plain")] != [row["loss"] for row in whole]


def test_a_run_does_not_resume_with_other_augmentations_unless_asked(spec: str, capsys: Any) -> None:
    assert main(["train", "--config", spec, "--train.steps=2"]) == 0
    changed = ["train", "--config", spec, "--data.datasets.sounds.augmentations.level.decibels=[-3, 0]"]
    assert main(changed) == 2
    assert "data.datasets.sounds.augmentations.level" in capsys.readouterr().err
    assert main([*changed, "--allow-change", "data.datasets.sounds.augmentations"]) == 0


def test_encoding_leaves_out_what_filters_leave_out_and_is_not_a_failure(spec: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["--json", "encode", "--config", spec, "--out", str(tmp_path / "encoded")]) == 0
    captured = capsys.readouterr()
    (found,) = json.loads(captured.out)["datasets"].values()
    assert (found["clips"], found["rejected"], found["failures"]) == (6, 1, [])
    assert "left out: 3.wav: filter 'silence' leaves it out: it is silent" in captured.err
    source = f"--data.datasets.sounds.source={{class_path: encoded, init_args: {{path: '{tmp_path / 'encoded' / 'sounds'}'}}}}"
    assert main(["spec", "validate", spec, source]) == 2
    assert "data.datasets.sounds.augmentations has flip, level, speed, hide; expected none" in capsys.readouterr().err
    without = [source, *(f"--data.datasets.sounds.augmentations.{name}=null" for name in ("flip", "level", "speed", "hide"))]
    assert main(["spec", "validate", spec, *without]) == 2
    assert "filter 'silence' hears clips, but its dataset is encoded" in capsys.readouterr().err
    assert main(["spec", "validate", spec, *without, "--data.datasets.sounds.filters.silence=null"]) == 0
    assert "data 'sounds': 6 clips are listed; left out: 1 left out by a filter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "augmentations.flip.probability=2",
            "sounds.augmentations.flip: phase-flip: probability is 2; expected a number from 0 to 1",
        ),
        ("augmentations.flip=phaseflip", "unknown augmentation 'phaseflip'. Did you mean 'phase-flip'?"),
        ("filters.silence.treshold=-3", "filter 'silence' has no argument 'treshold'. Did you mean 'threshold'?"),
        ("augmentation.flip=phase-flip", "Did you mean 'augmentations'?"),
    ],
)
def test_bad_input_is_one_line(spec: str, capsys: Any, override: str, line: str) -> None:
    assert main(["spec", "validate", spec, f"--data.datasets.sounds.{override}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert line in error
