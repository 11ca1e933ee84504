"""The training loop with your own module and batches: a run that stops half-way, and one that resumes it.

A module is trainable if it has `units` and `count_terms` and returns each loss as (sum, count).
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from soundomni.core.spec.schema import OptimizerSpec, ScheduleSpec, TrainSpec
from soundomni.train import Checkpointer, Hooks, Progress, RunState, build_optimizer, find_latest, fit, open_world, parallelize

TRAIN = TrainSpec(run_dir="unused", steps=200, optimizer=OptimizerSpec(lr=0.05), schedule=ScheduleSpec(kind="cosine", warmup_steps=10))


class Line(torch.nn.Linear):
    units = ()  # no layers to shard, recompute or compile one by one

    def count_terms(self, batch):  # known before the model runs, so that steps weight every element equally
        return {"squared": len(batch)}

    def forward(self, batch):  # [N, 2] of (x, y)
        error = super().forward(batch[:, :1]) - batch[:, 1:]
        return {"squared": (error.square().sum(), torch.tensor(len(batch)))}


def step(number):  # its batches, where the data goes on after it, and what is added up over the run
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(number))
    return SimpleNamespace(batches=[torch.cat([x, 3 * x + 1], dim=1)], state={"next": number + 1}, counts={"samples": len(x)})


def run(folder, world, *, stop_at):
    parallelize(model := Line(1, 1), world, TRAIN)
    state = RunState(model, build_optimizer(model, TRAIN.optimizer), ema=None, progress=(progress := Progress()))
    checkpointer = Checkpointer(folder, world, keep=1)
    if latest := find_latest(folder):
        state.load(latest, world)
    steps = map(step, range(first := progress.step, TRAIN.steps))
    hooks = Hooks(save=lambda _: state.save(checkpointer, world, identity={}), should_stop=lambda: progress.step == stop_at)
    fit(model, steps, train=TRAIN, optimizer=state.optimizer, ema=None, world=world, progress=progress, hooks=hooks)
    checkpointer.wait()
    print(f"steps {first} to {progress.step}: y = {model.weight.item():.3f} x + {model.bias.item():.3f}")


with tempfile.TemporaryDirectory() as folder, open_world(TRAIN.parallel) as world:
    run(Path(folder), world, stop_at=60)
    run(Path(folder), world, stop_at=TRAIN.steps)
