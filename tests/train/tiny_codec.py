"""A spec that trains the smallest codec with two critics, one of which learns, and a way to run it as a program.

Run as `python tiny_codec.py RUN_DIR [KEY=VALUE ...]`, plain or under torchrun.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.interfaces import Critic, LossTerms
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import Spec
from soundomni.train.run import run_training

TEXT = """
codec:
  codec:
    class_path: oobleck
    init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2], strides: [4, 8], latent_dim: 4}
  critics: {l1: l1, waves: tiny_codec.Waves}
data:
  datasets:
    toys: {source: {class_path: toy-sounds, init_args: {size: 64, seconds: 0.4, events: [1, 1]}}}
  tokens_per_batch: 256
  lookahead: 8
  workers: 1
train:
  steps: 20
  batches_per_step: 2
  optimizer: {lr: 2.0e-3, betas: [0.8, 0.99], eps: 1.0e-8}
  phases: {critics: {optimizer: {lr: 3.0e-3, betas: [0.8, 0.99], eps: 1.0e-8}, starts: 5}}
  loss_weights: {waves.adversarial: 0.1, waves.penalty: 0.1}
  loss_starts: {waves.adversarial: 5, waves.features: 5}
  schedule: {warmup_steps: 2}
  ema_decay: 0.9
  log_every: 1
  save_every: 3
  keep_checkpoints: 9
  threads: 1
"""


class Waves(Critic):
    """The smallest discriminator: hinge, feature matching and a gradient penalty."""

    judged = ("adversarial", "features")
    learned = ("hinge", "penalty")

    def __init__(self, *, sample_rate: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(channels, 4, 5, padding=2), nn.Conv1d(4, 1, 3, padding=1)])

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scores and features."""
        seen = functional.leaky_relu(self.layers[0](waveform), 0.2)
        return self.layers[1](seen), seen

    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        (score, seen), wanted = self(estimate), self(target)[1].detach()
        distance = (seen - wanted).abs()
        return {"adversarial": (-score.sum(), count(score)), "features": (distance.sum(), count(distance))}

    def learn(self, target: Tensor, estimate: Tensor, generators: Sequence[torch.Generator]) -> LossTerms:
        real = target.detach().requires_grad_()
        good, bad = self(real)[0], self(estimate)[0]
        (slope,) = torch.autograd.grad(good.sum(), real, create_graph=True)
        hinge = functional.relu(1 - good) + functional.relu(1 + bad)
        return {"hinge": (hinge.sum(), count(hinge)), "penalty": (slope.square().sum(), count(slope[:, :, 0]))}


def count(values: Tensor) -> Tensor:
    """Returns the number of values."""
    return torch.tensor(float(values.numel()), device=values.device)


def tiny_codec(run_dir: Path, *overrides: str) -> Spec:
    """Returns the spec with dotted overrides."""
    path = run_dir.parent / f"{run_dir.name}-codec.yaml"
    path.write_text(TEXT)
    pairs = [("train.run_dir", str(run_dir)), *(tuple(text.split("=", 1)) for text in overrides)]
    return load_spec([path], pairs, trust_class_paths=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(run_training(tiny_codec(Path(sys.argv[1]), *sys.argv[2:]), trust_class_paths=True).exit_status)
