"""A tiny model, trained, exported and shared by the tests of the commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main

TINY = """
model:
  backbone: {class_path: mot, init_args: {hidden_dim: 32, num_layers: 2, num_heads: 2}}
  router: modality
  codec: {class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}
  encoder: {class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 128, hop_length: 100, num_mels: 16, feature_dim: 16}}
  connectors: {latent: linear, features: linear}
  objective: flow-matching
  tokenizer: {vocab_size: 300}
  normalize: global
sampler: {class_path: euler, init_args: {num_steps: 2}}
guidance: {scale: 2.0}
data:
  datasets:
    toys:
      source: {class_path: toy-sounds, init_args: {size: 60, sample_rate: 8000, seconds: 0.5, events: [1, 1]}}
      tasks: {generate: 1.0, describe: 1.0, answer: 1.0, continue: 0.5}
  tokens_per_batch: 256
  lookahead: 8
train:
  run_dir: RUN
  steps: 4
  optimizer: {lr: 1.0e-3, eps: 1.0e-8}
  schedule: {kind: cosine, warmup_steps: 1}
  ema_decay: 0.9
  log_every: 1
  save_every: 2
  threads: 1
"""


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec that trains in a few seconds; its run directory is beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("RUN", str(folder / "run")))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_spec: Path) -> Path:
    """A finished run directory."""
    assert main(["train", "--config", str(tiny_spec)]) == 0
    return tiny_spec.parent / "run"


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> Path:
    """A model directory."""
    folder = tiny_run.parent / "model"
    assert main(["export", str(tiny_run), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """A stereo WAV file at a rate of its own."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((3000, 2)), 6000)
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must end with status 2 and one clear line, and returns that line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("soundomni: ")]
        assert status == 2, captured.err
        assert len(errors) == 1 and "Traceback" not in captured.err, captured.err
        return errors[0]

    return run


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command with --json, which must end with `status`, and returns what it printed."""

    def run(*arguments: object, status: int = 0) -> Any:
        capsys.readouterr()
        ended = main(["--json", *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        assert ended == status, captured.err
        return json.loads(captured.out)

    return run
