"""A model of someone's own, with its batches and its loader: all that the loop asks for, and nothing of the library's assembly.

Shape letters: N elements of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundomni.core.spec.schema import OptimizerSpec, ScheduleSpec, TrainSpec
from soundomni.train.checkpoint import Checkpointer
from soundomni.train.ema import EMA
from soundomni.train.loop import Hooks, Progress, fit
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.parallel import World, batches_per_rank, parallelize
from soundomni.train.state import RunState


@dataclasses.dataclass(frozen=True)
class TinyBatch:
    """Inputs `[N, 3]` and targets `[N, 2]`; N differs from batch to batch."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> TinyBatch:
        return TinyBatch(self.inputs.to(device), self.targets.to(device))


@dataclasses.dataclass(frozen=True)
class TinyStep:
    batches: tuple[TinyBatch, ...]
    state: Mapping[str, Any]
    counts: Mapping[str, float]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)
        self.linear = nn.Linear(5, 5)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + torch.tanh(self.linear(self.norm(hidden)))
        return out


class TinyModel(nn.Module):
    """Three losses: two counted by element, and one that only the forward pass can count."""

    FORWARD_METHODS = ("predict",)

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.codec = nn.Linear(3, 3).requires_grad_(False)
        self.enter = nn.Linear(3, 5)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.layers[0].norm.requires_grad_(False)  # a unit of which only a part is trained
        self.leave = nn.Linear(5, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))

    @property
    def units(self) -> nn.ModuleList:
        return self.layers

    @property
    def replicated_modules(self) -> tuple[nn.Module, ...]:
        return (self.codec,)

    def fit_latents(self, batches: list[TinyBatch]) -> None:
        self.scale.copy_(torch.cat([batch.inputs for batch in batches]).std())

    def count_terms(self, batch: TinyBatch) -> dict[str, float]:
        return {"mse": float(batch.targets.numel()), "positive": float((batch.targets > 0).sum())}

    def predict(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(self.codec(inputs) / self.scale)
        for layer in self.layers:
            hidden = layer(hidden)
        out: Tensor = self.leave(hidden)
        return out

    def forward(self, batch: TinyBatch) -> dict[str, tuple[Tensor, Tensor]]:
        out = self.predict(batch.inputs)
        error = out - self.frozen(batch.targets)
        positive = batch.targets > 0
        return {
            "mse": (error.square().sum(), torch.tensor(float(error.numel()))),
            "positive": ((error.abs() * positive).sum(), positive.sum()),
            "size": (out.square().sum(), torch.tensor(float(len(out)) + 1.0)),
        }


def make_batch(index: int, *, poisoned: bool = False) -> TinyBatch:
    """Batch `index` of an endless order."""
    generator = torch.Generator().manual_seed(1000 + index)
    size = int(torch.randint(0, 6, (), generator=generator))
    inputs, targets = torch.randn(size, 3, generator=generator), torch.randn(size, 2, generator=generator)
    if poisoned:
        inputs = torch.full((1, 3), float("nan"))
        targets = torch.ones(1, 2)
    return TinyBatch(inputs, targets)


@dataclasses.dataclass(frozen=True)
class TinyLoader:
    """Deals batches to ranks in turn; batch indices in `poisoned` are not finite."""

    rank: int = 0
    size: int = 1
    batches_per_step: int = 4
    first_step: int = 0
    poisoned: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[TinyStep]:
        step = self.first_step
        while True:
            indices = range(step * self.batches_per_step, (step + 1) * self.batches_per_step)
            batches = tuple(make_batch(i, poisoned=i in self.poisoned) for i in indices[self.rank :: self.size])
            tokens = float(sum(len(make_batch(i).inputs) for i in indices[self.rank :: self.size]))
            step += 1
            yield TinyStep(batches, {"step": step}, {"tokens": tokens})


def settings(run_dir: Path | str = "unused", **changes: Any) -> TrainSpec:
    """Settings that make the tiny model learn."""
    base = TrainSpec(
        run_dir=str(run_dir),
        steps=20,
        batches_per_step=4,
        optimizer=OptimizerSpec(lr=1e-2, weight_decay=0.1),
        schedule=ScheduleSpec(kind="cosine", warmup_steps=3),
        loss_weights={"positive": 0.5},
        ema_decay=0.9,
        log_every=1,
        save_every=0,
    )
    return dataclasses.replace(base, **changes)


@dataclasses.dataclass
class TinyRun:
    """A run of the tiny model, resumed from a checkpoint when one is named."""

    world: World
    train: TrainSpec
    resume: Path | None = None
    poisoned: tuple[int, ...] = ()
    losses: list[float] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        batches_per_rank(self.train.batches_per_step, self.world.size)
        model = TinyModel(seed=0 if self.resume is None else 99)
        parallelize(model, self.world, self.train)
        ema = EMA(model, decay=self.train.ema_decay) if self.train.ema_decay > 0 else None
        self.state = RunState(model, build_optimizer(model, self.train.optimizer), ema, Progress())
        if self.resume is not None:
            self.state.load(self.resume, self.world)

    def run(self, steps: int, *, checkpointer: Checkpointer | None = None, hooks: Hooks | None = None) -> bool:
        """Trains until `steps` steps are finished of the `train.steps` that the schedule is made for."""
        progress = self.state.progress

        def log(step: int, metrics: Mapping[str, float]) -> None:
            self.losses.append(metrics["loss"])
            self.norms.append(metrics["grad_norm"])

        def save(progress: Progress) -> None:
            if checkpointer is not None:
                self.state.save(checkpointer, self.world, identity={"name": "tiny"})

        loader = TinyLoader(self.world.rank, self.world.size, self.train.batches_per_step, progress.step, self.poisoned)
        default = Hooks(log=log, save=save, should_stop=lambda: progress.step >= steps)
        return fit(
            self.state.model,
            loader,
            train=self.train,
            optimizer=self.state.optimizer,
            ema=self.state.ema,
            world=self.world,
            progress=progress,
            hooks=hooks or default,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the run, whole."""
        return {name: whole(tensor).clone() for name, tensor in self.state._tensors()}


def whole(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor."""
    gathered: Tensor = tensor.detach()
    return gathered.full_tensor() if hasattr(gathered, "full_tensor") else gathered


def alone() -> World:
    """One process, on the CPU."""
    return World(rank=0, size=1, device=torch.device("cpu"))
