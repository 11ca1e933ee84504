"""A spec of the smallest model that generates and describes, and a way to run it as a program.

Run as `python tiny_spec.py RUN_DIR [KEY=VALUE ...]`, plain or under torchrun.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import Spec
from soundomni.train.run import run_training

TEXT = """
model:
  backbone: {class_path: mot, init_args: {hidden_dim: 16, num_layers: 2, num_heads: 2}}
  router: modality
  codec: {class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}
  encoder: {class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 200, hop_length: 80, num_mels: 16, feature_dim: 16, num_layers: 3}}
  connectors: {latent: linear, features: linear}
  objective: flow-matching
  tokenizer: {vocab_size: 300}
sampler: {class_path: euler, init_args: {num_steps: 2}}
data:
  datasets:
    toys: {source: {class_path: toy-sounds, init_args: {size: 64, seconds: 0.4, events: [1, 1]}}}
  tokens_per_batch: 192
  lookahead: 8
  workers: 1
train:
  steps: 6
  batches_per_step: 2
  optimizer: {lr: 1.0e-3, eps: 1.0e-8}
  schedule: {warmup_steps: 2}
  ema_decay: 0.9
  log_every: 1
  save_every: 3
  threads: 1
"""

OOBLECK = "{class_path: oobleck, init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2], \
strides: [4, 8], latent_dim: 4}}"
CODEC = f"""
model: null
codec:
  codec: {OOBLECK}
  critics: {{l1: l1}}
train: {{ema_decay: 0.9}}
"""


def tiny_spec(run_dir: Path, *overrides: str, codec: bool = False) -> Spec:
    """Returns the spec with dotted overrides; `codec` trains a small codec instead."""
    layers = []
    for name, text in (("model", TEXT), ("codec", CODEC if codec else "{}")):
        layers.append(run_dir.parent / f"{run_dir.name}-{name}.yaml")
        layers[-1].write_text(text)
    pairs = [("train.run_dir", str(run_dir)), *(tuple(text.split("=", 1)) for text in overrides)]
    return load_spec(layers, pairs)  # type: ignore[arg-type]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(run_training(tiny_spec(Path(sys.argv[1]), *sys.argv[2:])).exit_status)
