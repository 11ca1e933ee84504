"""Processes and shards: one process without a group, or FSDP2 over a mesh from torchrun's environment.

The same code runs on CPU (gloo) and GPU (nccl). Gradients are averaged over ranks by FSDP2; the loop multiplies its loss by the
number of ranks, because it has divided by global counts already.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState
from torch.utils.checkpoint import checkpoint

from soundomni.core.attention import exempt_executors
from soundomni.core.errors import SoundOmniError, SpecError, reason
from soundomni.core.spec.culprit import named
from soundomni.core.spec.schema import ParallelSpec, TrainSpec
from soundomni.train.launch import Launch, local_rank, read_launch
from soundomni.train.trainable import as_trainable

T = TypeVar("T")

MEETING, LOCKSTEP = timedelta(minutes=5), timedelta(minutes=30)
"""How long a rank that failed, and one that did not, wait for the others. They compute in lockstep: those that can come are soon there."""


class Meeting:
    """Waits for all ranks by way of the group's store, where a rank that waits for a collective is not met.

    Args:
        rank, size: this process and their number.
    """

    _numbers: ClassVar[Iterator[int]] = count()
    """Of a process, not of a meeting: a group may be used again, and its store remembers."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def wait(self, timeout: timedelta) -> None:
        """Wait for the call of the same number on every rank. Raises RuntimeError when the time is over."""
        store, number = _get_default_store(), next(self._numbers)
        store.set(f"soundomni/meeting/{number}/{self._rank}", "here")
        store.wait([f"soundomni/meeting/{number}/{rank}" for rank in range(self._size)], timeout)


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Args:
        rank, size: this process and their number.
        device: where this process computes.
        mesh: over which parameters are sharded; None for one process without a group.
        meeting: where ranks wait for each other outside of collectives; None for one process without a group.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    meeting: Meeting | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of `values` over all ranks; the argument may be overwritten."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def sum_counts(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Returns named numbers added up over all ranks, which must have the same names."""
        names = sorted(counts)
        sums = self.sum(torch.tensor([counts[name] for name in names], dtype=torch.float64)).tolist()
        return dict(zip(names, sums, strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Returns the small plain `value` of every rank, in rank order."""
        if self.mesh is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Runs `action` on rank 0 and returns its result there, None elsewhere. What it raises is raised on every rank."""
        result: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = action()
            except KeyboardInterrupt:
                raise
            except BaseException as found:  # whatever it is, the other ranks are waiting to hear of it
                if self.mesh is None:
                    raise
                error = found if isinstance(found, SoundOmniError | OSError) else SoundOmniError(named(found))
                error.__cause__ = None if error is found else found
        raised = self.gather(error)[0]
        if raised is not None:
            raise raised
        return result

    def share(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its result on every rank. Whatever it raises is raised on every rank."""
        values = [self.on_main(action)]
        if self.mesh is not None:
            dist.broadcast_object_list(values, src=0)
        return cast(T, values[0])

    def attempt(
        self, action: Callable[[], T], *, module: nn.Module, explain: Callable[[BaseException], str] = reason
    ) -> tuple[T | None, str | None]:
        """Run `action`, which computes with `module` and may fail, on every rank.

        Args:
            action: may gather parameters, so every rank must call this at the same place.
            module: the model, which may be sharded.
            explain: makes one line of what a rank raised.

        Returns:
            the result and None; or None and why it failed. All ranks get the same reason.

        Raises:
            SoundOmniError: it failed here while the other ranks are still computing and wait for this one: none of them can go on.
        """
        result, failure = None, None
        try:
            result = action()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failure = explain(error)
        if failure is not None:
            _end_forward(module)
        self._meet(failure)
        found = [(rank, text) for rank, text in enumerate(self.gather(failure)) if text is not None]
        if not found:
            return result, None
        if failure is None:
            _end_forward(module)
        rank, text = found[0]
        return None, text if len(found) == self.size else f"{text} (on rank {rank})"

    def _meet(self, failure: str | None) -> None:
        """Wait until all ranks are here; one that failed waits for a while only, as the others may be waiting for it elsewhere."""
        if self.meeting is None:
            return
        try:
            self.meeting.wait(LOCKSTEP if failure is None else MEETING)
        except RuntimeError as error:
            gone = (
                f"this rank failed, and the others cannot go on without it: {failure}"
                if failure is not None
                else "another rank has stopped"
            )
            alone = SoundOmniError(f"{gone}; resume from the last checkpoint")
            alone.add_note(f"on rank {self.rank}")
            raise alone from error

    def on_every(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank. What it raises on one is raised on all: as it is if all met the same, else with the rank's number."""
        result: T | None = None
        error: SoundOmniError | None = None
        try:
            result = action()
        except SoundOmniError as found:
            error = found
        errors = self.gather(error)
        rank = next((rank for rank, found in enumerate(errors) if found is not None), None)
        if rank is None:
            return cast(T, result)
        if len({str(found) for found in errors}) == 1:
            raise errors[rank]
        raise type(errors[rank])(f"rank {rank}: {errors[rank]}")

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite whole tensors with those of rank 0."""
        for tensor in tensors:
            if self.mesh is not None:
                dist.broadcast(tensor, src=0)

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Notes the rank on mistakes that this rank may meet alone, such as a file that it alone cannot read.

        All others are met by every rank, and told by the first process of each node; those with a note are told by their own rank.
        """
        try:
            yield
        except SoundOmniError as error:
            if self.size > 1:
                error.add_note(f"on rank {self.rank}")
            raise


@contextmanager
def open_world(parallel: ParallelSpec, *, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Joins the process group that torchrun describes, or stands alone when it describes none.

    A group that exists already is used and left open.

    Raises:
        SpecError: the environment or the mesh does not fit the number of processes, there are more local processes than GPUs, or
            the other processes cannot be reached.
    """
    opened = not dist.is_initialized()
    launch = read_launch(environment) if opened else Launch(dist.get_rank(), dist.get_world_size())
    shape = mesh_shape(parallel, launch.size if launch is not None else 1)
    device = _device(local_rank(environment))
    if launch is None:
        yield World(rank=0, size=1, device=device)
        return
    if opened:
        _join(device, environment)
    try:
        names = ("replicate", "shard") if len(shape) == 2 else ("shard",)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        with _main_rank_speaks(launch.rank):
            yield World(rank=launch.rank, size=launch.size, device=device, mesh=mesh, meeting=Meeting(launch.rank, launch.size))
    finally:
        if opened:
            dist.destroy_process_group()


def _join(device: torch.device, environment: Mapping[str, str]) -> None:
    try:  # gloo carries host tensors, so that agreeing on a number does not wait for the GPU
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        lost = SpecError(
            f"the processes cannot meet at MASTER_ADDR and MASTER_PORT, {place}: {reason(error)}; start them all with torchrun"
        )
        lost.add_note(f"RANK {environment.get('RANK')}")
        raise lost from error


def mesh_shape(parallel: ParallelSpec, size: int) -> tuple[int, ...]:
    """Returns (shard,), or (replicate, shard) for hybrid sharding, of a mesh over `size` processes. Raises SpecError."""
    replicate = parallel.replicate
    if replicate < 1 or size % replicate:
        raise SpecError(f"train.parallel.replicate is {replicate}; it must divide the number of processes, {size}")
    shard = size // replicate if parallel.shard == -1 else parallel.shard
    if replicate * shard != size:
        raise SpecError(
            f"train.parallel has {replicate} x {shard} processes, but {size} are running; "
            f"set train.parallel.shard to {size // replicate} or -1, or start {replicate * max(shard, 1)}"
        )
    return (shard,) if replicate == 1 else (replicate, shard)


def batches_per_rank(batches_per_step: int, size: int) -> int:
    """Returns the micro-batches of each rank. Raises SpecError when the ranks cannot have equally many."""
    if batches_per_step < 1 or batches_per_step % size:
        nearest = max(1, round(batches_per_step / size)) * size
        raise SpecError(
            f"train.batches_per_step is {batches_per_step}; it must be a multiple of the {size} running processes, such as {nearest}"
        )
    return batches_per_step // size


def parallelize(model: nn.Module, world: World, train: TrainSpec) -> None:
    """Moves `model` to the device, sharded over the mesh when there is one; its layers recompute and compile as `train` says.

    Parameters must be equal on all ranks. Frozen parameters of `replicated_modules` stay whole on every rank.
    """
    units = list(as_trainable(model).units)
    if train.compile:
        exempt_executors()
    for unit in units:
        if train.activation_checkpointing:
            recompute_in_backward(unit)
        if train.compile:
            unit.compile()
    if train.compile:
        _allow_recompiling(len(units))
    if world.mesh is None:
        model.to(world.device)
        return
    policy = MixedPrecisionPolicy()
    if train.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    replicated: tuple[nn.Module, ...] = tuple(getattr(model, "replicated_modules", ()))
    whole = {p for module in replicated for p in module.parameters() if not p.requires_grad}
    for module in replicated:
        module.to(world.device)
    for unit in units:
        fully_shard(unit, mesh=world.mesh, mp_policy=policy)
    fully_shard(model, mesh=world.mesh, mp_policy=policy, ignored_params=whole)
    for name in getattr(model, "FORWARD_METHODS", ()):
        register_fsdp_forward_method(model, name)


def computing_precision(world: World, train: TrainSpec) -> AbstractContextManager[Any]:
    """Returns the context in which the model runs: autocast to bf16, or nothing."""
    return torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=train.precision == "bf16")


def reduce_gradients(model: nn.Module, enabled: bool) -> None:
    """Says whether the next backward pass adds gradients up over ranks, or only keeps them for a later micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)


def reshard(model: nn.Module) -> None:
    """Frees gathered parameters, so that the next forward pass gathers them anew from the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _end_forward(model: nn.Module) -> None:
    """Bring FSDP2 back to where no forward pass is running after one that ended in an error.

    It has no public way to do so. Without this, the root would keep its gathered parameters, and the next training step would
    compute with those, even if they are averaged weights.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            state._training_state = TrainingState.IDLE
            state._state_ctx.iter_forward_root = None
            if state._fsdp_param_group is not None:
                state._fsdp_param_group._training_state = TrainingState.IDLE
                state._fsdp_param_group._all_gather_result = None
    reshard(model)


def _allow_recompiling(units: int) -> None:
    """Raises dynamo's limits: all units share their code, so that each counts as a recompilation, and past a limit all run eager."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * units + 8)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * units + 64)


def _device(index: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise SpecError(f"LOCAL_RANK is {index}, but this machine has {torch.cuda.device_count()} GPUs; start one process per GPU")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def recompute_in_backward(unit: nn.Module) -> None:
    """Wraps the forward pass alone: the module keeps its name, its class and its hooks."""
    forward: Callable[..., Any] = unit.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    unit.forward = recomputed


@contextmanager
def _main_rank_speaks(rank: int) -> Iterator[None]:
    logger = logging.getLogger("soundomni")
    level = logger.level
    if rank > 0:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
