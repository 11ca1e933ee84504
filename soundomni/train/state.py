"""The state of a run between two steps, as named tensors and plain data: what a checkpoint stores and restores."""

from __future__ import annotations

import base64
import dataclasses
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, reason
from soundomni.core.pretrained.weights import check_finite
from soundomni.core.spec.values import convert, field_types
from soundomni.train.checkpoint import Checkpointer, read_state
from soundomni.train.ema import EMA
from soundomni.train.loop import Progress
from soundomni.train.parallel import World, reshard
from soundomni.train.shards import ShardReader, expect_same_names, local_slice

MODEL, AVERAGE, OPTIMIZER = "model/", "ema/", "optimizer/"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunState:
    """The objects that hold the state of a run. The learning-rate schedule is a function of `progress.step`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    progress: Progress

    def save(self, checkpointer: Checkpointer, world: World, *, identity: Mapping[str, Any]) -> None:
        """Start writing the checkpoint of the current step; `identity` says which run it belongs to.

        Raise CheckpointError on failure.
        """
        reshard(self.model)
        progress = dataclasses.asdict(self.progress)
        updates = self.ema.updates if self.ema is not None else 0
        checkpointer.save(
            self.progress.step,
            dict(self._tensors()),
            rank_state={"rng": rng_state(world.device)},
            state={"progress": progress, "ema_updates": updates, **identity},
            best=self.progress.best.step,
        )

    def load(self, path: Path, world: World) -> None:
        """Restore everything from a checkpoint, on any number of ranks.

        If the number of ranks is the same, the random state of each is restored. Otherwise it is seeded with the step.

        Raises:
            CheckpointError: the checkpoint belongs to another model or optimizer.
        """
        reshard(self.model)
        state = read_state(path)
        reader = ShardReader(path, state["num_ranks"])
        reader.check()
        self._make_optimizer_state(reader)
        tensors = dict(self._tensors())
        expect_same_names(tensors, reader.names, path)
        for name, tensor in tensors.items():
            reader.read_into(name, tensor)
        types = field_types(Progress)
        for name, value in state["progress"].items():
            if name in types:  # a later version may have stored more, and an earlier one less, which keeps its default
                setattr(self.progress, name, convert(value, types[name], f"progress.{name}"))
        if self.ema is not None:
            self.ema.updates = state["ema_updates"]
        if state["num_ranks"] == world.size:
            try:
                set_rng_state(reader.extra(world.rank)["rng"], world.device)
            except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise CheckpointError(f"the random state of rank {world.rank} in '{path}' cannot be read: {reason(error)}") from error
        else:
            logger.info(
                "saved by %d ranks, resumed on %d: the random state is seeded with the step",
                state["num_ranks"],
                world.size,
            )
            torch.manual_seed(self.progress.step)
            random.seed(self.progress.step)
            np.random.seed(self.progress.step)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield MODEL + name, tensor
        if self.ema is not None:
            for name, tensor in self.ema.averages.items():
                yield AVERAGE + name, tensor
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{OPTIMIZER}{name}/{key}", value

    def _make_optimizer_state(self, reader: ShardReader) -> None:
        """Create the optimizer entries of the checkpoint, to be filled: tensors like the parameter, 0-dim counters."""
        parameters = dict(self.model.named_parameters())
        fused = {p for group in self.optimizer.param_groups if group.get("fused") for p in group["params"]}
        for full_name in reader.names:
            if not full_name.startswith(OPTIMIZER):
                continue
            name, _, key = full_name.removeprefix(OPTIMIZER).rpartition("/")
            if name not in parameters:
                raise CheckpointError(f"'{reader.directory}' belongs to another model: it has an optimizer state for '{name}'")
            parameter, shape, dtype = parameters[name], reader.shape(full_name), reader.dtype(full_name)
            if shape == tuple(parameter.shape) and key != "step":
                value = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            else:
                device = parameter.device if shape or parameter in fused else "cpu"
                value = torch.zeros(shape, dtype=dtype, device=device)
            self.optimizer.state[parameter][key] = value


@torch.no_grad()
def load_trained_weights(model: nn.Module, path: Path, *, average: bool = True, prefix: str = "") -> None:
    """Load the weights of a checkpoint into a model: the averaged ones, if it has them.

    Args:
        model: built from the same spec, whole or sharded.
        path: directory of the checkpoint.
        average: whether to take the averaged weights.
        prefix: prefix of the names of `model` in the checkpoint, such as "codec." for a codec trained on its own.

    Raises:
        CheckpointError: the checkpoint belongs to another model.
    """
    reader = ShardReader(path, read_state(path)["num_ranks"])
    tensors = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    saved = {name.removeprefix(MODEL) for name in reader.names if name.startswith(MODEL + prefix)}
    expect_same_names(tensors, saved, path)
    averaged = {name.removeprefix(AVERAGE) for name in reader.names if average and name.startswith(AVERAGE)}
    for name, tensor in tensors.items():
        reader.read_into((AVERAGE if name in averaged else MODEL) + name, tensor)
        check_finite(name, local_slice(tensor, rank=0).values, path)


def trained_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the model's tensors in the files of a checkpoint. Raise CheckpointError on failure."""
    reader = ShardReader(path, read_state(path)["num_ranks"])
    reader.check()
    return {name.removeprefix(MODEL): reader.shape(name) for name in reader.names if name.startswith(MODEL)}


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators of torch, numpy and Python as plain JSON data."""
    version, internal, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": _encode(torch.get_rng_state()),
        "python": [version, list(internal), gauss],
        "numpy": [name, [int(key) for key in keys], place, has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return state


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned. A run that moved between CPU and GPU keeps the GPU's generator as it is."""
    torch.set_rng_state(_decode(state["torch"]))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), place, has_gauss, cached))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]), device)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Restore the generators of torch, numpy and Python at the end: plugins may draw from any of them."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
