"""Processes and shards: one process without a group, or FSDP2 over a mesh described by torchrun's environment.

The same code runs on CPU (gloo) and GPU (nccl). Gradients are averaged over ranks by FSDP2; the loop multiplies its loss by the
number of ranks, because it has already divided by global counts.
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
from soundomni.train.gpus import check_gpus, name_of, own_gpu
from soundomni.train.launch import Launch, local_rank, read_launch
from soundomni.train.trainable import as_trainable

T = TypeVar("T")

MOST_WHOLE_GRADIENTS = 2**28
"""Bytes of the gradients, in float32, up to which ranks keep them whole between micro-batches: part of what `doctor` reserves."""
MEETING, LOCKSTEP = timedelta(minutes=5), timedelta(minutes=30)
"""How long a rank that failed, and one that did not, waits for the others. In lockstep, they come soon."""


class Meeting:
    """Waits for all ranks through the group's store, which a rank that waits in a collective does not reach.

    Args:
        rank, size: number of this process, and number of processes.
    """

    _numbers: ClassVar[Iterator[int]] = count()
    """Numbers of the calls.

    One counter per process, not per meeting: a group may be used again, and its store remembers.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def wait(self, timeout: timedelta) -> None:
        """Wait for the call with the same number on every rank. Raise RuntimeError after the timeout."""
        store, number = _get_default_store(), next(self._numbers)
        store.set(f"soundomni/meeting/{number}/{self._rank}", "here")
        store.wait([f"soundomni/meeting/{number}/{rank}" for rank in range(self._size)], timeout)


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Args:
        rank, size: number of this process, and number of processes.
        device: device on which this process computes.
        mesh: mesh over which parameters are sharded; None for one process without a group.
        meeting: lets ranks wait for each other outside of collectives; None for one process without a group.
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
        """Return the sum of `values` over all ranks; `values` may be overwritten."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def sum_counts(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Return the sum of each named number over all ranks, which must use the same names."""
        names = sorted(counts)
        sums = self.sum(torch.tensor([counts[name] for name in names], dtype=torch.float64)).tolist()
        return dict(zip(names, sums, strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Return the small plain `value` of every rank, in rank order."""
        if self.mesh is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Run `action` on rank 0 and return its result there, None elsewhere. Its errors are raised on every rank."""
        result: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = action()
            except KeyboardInterrupt:
                raise
            except BaseException as found:  # the other ranks are waiting to hear of any error
                if self.mesh is None:
                    raise
                error = found if isinstance(found, SoundOmniError | OSError) else SoundOmniError(named(found))
                error.__cause__ = None if error is found else found
        raised = self.gather(error)[0]
        if raised is not None:
            raise raised
        return result

    def share(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its result on every rank. Its errors are raised on every rank."""
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
            explain: returns what a rank raised as one line.

        Returns:
            The result and None; or None and why it failed. All ranks get the same reason.

        Raises:
            SoundOmniError: it failed here while the other ranks compute and wait for this one: none of them can
                continue.
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
        """Wait until all ranks are here; a rank that failed waits less, as the others may wait for it elsewhere."""
        if self.meeting is None:
            return
        try:
            self.meeting.wait(LOCKSTEP if failure is None else MEETING)
        except RuntimeError as error:
            gone = (
                f"this rank failed, and the others cannot continue without it: {failure}"
                if failure is not None
                else "another rank has stopped"
            )
            own_error = SoundOmniError(f"{gone}. Resume from the last checkpoint")
            own_error.add_note(f"on rank {self.rank}")
            raise own_error from error

    def on_every(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank.

        An error on one is raised on all, with the number of its rank unless all have the same.
        """
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
        """Overwrite unsharded tensors with those of rank 0."""
        for tensor in tensors:
            if self.mesh is not None:
                dist.broadcast(tensor, src=0)

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Add the rank as a note to errors that only this rank may have, such as a file that only it cannot read.

        The rank itself reports an error with a note. All ranks have the others: the first process of each node reports
        them.
        """
        try:
            yield
        except SoundOmniError as error:
            if self.size > 1:
                error.add_note(f"on rank {self.rank}")
            raise


@contextmanager
def open_world(
    parallel: ParallelSpec,
    *,
    environment: Mapping[str, str] = os.environ,
    device: torch.device | None = None,
    timeout: timedelta | None = None,
) -> Iterator[World]:
    """Join the process group that torchrun describes, or use one process if it does not describe any.

    A group that already exists is used and left open.

    Args:
        parallel: how processes share the work.
        environment: torchrun's variables.
        device: device of the tensors that processes exchange; None for the GPU with this process's number, or the CPU
            if there are no GPUs.
        timeout: how long processes wait for each other; None for PyTorch's default.

    Raises:
        SpecError: the environment or the mesh does not fit the number of processes, there are more local processes
            than GPUs, or the other processes cannot be reached.
    """
    opened = not dist.is_initialized()
    launch = read_launch(environment) if opened else Launch(dist.get_rank(), dist.get_world_size())
    shape = mesh_shape(parallel, launch.size if launch is not None else 1)
    device = own_gpu(local_rank(environment), environment) if device is None else device
    if launch is None:
        yield World(rank=0, size=1, device=device)
        return
    if opened:
        _join(device, environment, timeout)
    mesh = None
    try:
        if device.type == "cuda":
            gpus = [""] * launch.size
            dist.all_gather_object(gpus, name_of(device))
            check_gpus(gpus)
        names = ("replicate", "shard") if len(shape) == 2 else ("shard",)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        with _main_rank_speaks(launch.rank):
            yield World(rank=launch.rank, size=launch.size, device=device, mesh=mesh, meeting=Meeting(launch.rank, launch.size))
    finally:
        if opened:
            dist.destroy_process_group()
            # caches of DTensor keep the mesh, and as long as it keeps its groups, their threads run on
            getattr(mesh, "_pg_registry", {}).clear()


def _join(device: torch.device, environment: Mapping[str, str], timeout: timedelta | None) -> None:
    try:  # gloo carries host tensors, so that agreeing on a number does not wait for the GPU
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        lost = SpecError(
            f"the processes cannot meet at MASTER_ADDR and MASTER_PORT, {place}: {reason(error)}. Start them all with torchrun"
        )
        lost.add_note(f"RANK {environment.get('RANK')}")
        raise lost from error


def mesh_shape(parallel: ParallelSpec, size: int) -> tuple[int, ...]:
    """Return (shard,), or (replicate, shard) for hybrid sharding, of a mesh over `size` processes.

    Raise SpecError on failure.
    """
    replicate = parallel.replicate
    if replicate < 1 or size % replicate:
        raise SpecError(f"train.parallel.replicate is {replicate}; expected a divisor of the number of processes, {size}")
    shard = size // replicate if parallel.shard == -1 else parallel.shard
    if replicate * shard != size:
        raise SpecError(
            f"train.parallel has {replicate} x {shard} processes, but {size} are running. "
            f"Set train.parallel.shard to {size // replicate} or -1, or start {replicate * max(shard, 1)}"
        )
    return (shard,) if replicate == 1 else (replicate, shard)


def batches_per_rank(batches_per_step: int, size: int) -> int:
    """Return the micro-batches of each rank. Raise SpecError if they do not divide evenly."""
    if batches_per_step < 1 or batches_per_step % size:
        nearest = max(1, round(batches_per_step / size)) * size
        raise SpecError(
            f"train.batches_per_step is {batches_per_step}; expected a multiple of the {size} running processes, such as {nearest}"
        )
    return batches_per_step // size


def parallelize(model: nn.Module, world: World, train: TrainSpec) -> None:
    """Moves `model` to the device, sharded over the mesh when there is one; its layers recompute and compile as `train` says.

    Parameters must be equal on all ranks. Frozen parameters of `replicated_modules`, and all of `whole`, stay whole on every rank.
    """
    units = list(as_trainable(model).units)
    if train.compile:
        exempt_executors()
    for unit in units:
        if train.activation_checkpointing:
            recompute_in_backward(unit, compiled=train.compile)
        elif train.compile:
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
    whole |= set(_whole(model))
    for module in (*replicated, *getattr(model, "whole", ())):
        module.to(world.device)
    for unit in units:
        fully_shard(unit, mesh=world.mesh, mp_policy=policy)
    for network in (*getattr(model, "networks", ()), model):
        fully_shard(network, mesh=world.mesh, mp_policy=policy, ignored_params=whole)
        for name in getattr(network, "FORWARD_METHODS", ()):
            register_fsdp_forward_method(network, name)


def computing_precision(world: World, train: TrainSpec) -> AbstractContextManager[Any]:
    """Return the context in which the model runs: autocast to bf16, or no change."""
    return torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=train.precision == "bf16")


def reduce_gradients(model: nn.Module, *, is_last: bool) -> None:
    """Set whether the next backward pass sums gradients over ranks, or keeps them for a later micro-batch.

    Those of large models are summed after each micro-batch: that takes more time, but only the memory of a shard.
    """
    if isinstance(model, FSDPModule):
        size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.set_requires_gradient_sync(is_last or size > MOST_WHOLE_GRADIENTS)


def average_whole(model: nn.Module, world: World) -> None:
    """Average over ranks the gradients of trained parameters that every rank keeps whole: FSDP2 does not know them."""
    if world.mesh is None:
        return
    gradients = [p.grad for p in _whole(model) if p.grad is not None]
    if gradients:
        mean = world.sum(torch.cat([gradient.flatten() for gradient in gradients])) / world.size
        for gradient, part in zip(gradients, torch.split(mean, [gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _whole(model: nn.Module) -> list[nn.Parameter]:
    return [p for module in getattr(model, "whole", ()) for p in module.parameters()]


def reshard(model: nn.Module) -> None:
    """Free gathered parameters, so the next forward pass gathers them from the shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _end_forward(model: nn.Module) -> None:
    """Reset FSDP2 after a forward pass that ended in an error.

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
    """Raise dynamo's limits: units share code, so each counts as a recompilation; past a limit, all run eagerly."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * units + 8)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * units + 64)


def recompute_in_backward(unit: nn.Module, *, compiled: bool = False) -> None:
    """Recompute the forward pass of a unit in the backward pass, and compile it if asked for. The module keeps its name, class and hooks.

    What is recomputed is compiled by itself: within a checkpoint that is compiled, the compiler skips everything, because executors of
    attention interrupt it.
    """
    forward: Callable[..., Any] = torch.compile(unit.forward) if compiled else unit.forward

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
