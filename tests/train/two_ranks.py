"""One of two processes: runs every scenario in one process group and writes what it saw to `OUT/seen-RANK.json`.

Run as `python two_ranks.py OUT` with torchrun's environment; OUT/alone/checkpoints holds a checkpoint of one process.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny_held_out import held_out
from tiny_training import TinyModel, TinyRun, make_batch, settings
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from soundomni.core.errors import CheckpointError, DataError, SoundOmniError, SpecError
from soundomni.core.interfaces import Dataset, Item
from soundomni.core.spec.schema import OptimizerSpec, ParallelSpec, Slot, ValidationSpec
from soundomni.data.mixture import Mixture, Source
from soundomni.train import parallel
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.loop import Hooks
from soundomni.train.optimizers.muon import Muon
from soundomni.train.parallel import World, batches_per_rank, open_world
from soundomni.train.run_directory.same_data import list_data
from soundomni.train.signals import StopRequest
from soundomni.train.step import Measured, StepResult, part_means
from soundomni.train.validation import Made, Part, Validation

Seen = dict[str, Any]

MUON = OptimizerSpec(rule=Slot("muon"), lr=0.01, eps=1e-8, weight_decay=0.1)


def keep(run: TinyRun, path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in run.tensors().items()}
    if run.world.is_main:
        save_file(tensors, path)


def sharded(world: World, out: Path) -> Seen:
    """Twenty steps, saving after ten."""
    run, checkpointer = TinyRun(world, settings()), Checkpointer(out / "sharded", world, keep=2)
    run.run(10, checkpointer=checkpointer)
    run.run(20)
    checkpointer.wait()
    keep(run, out / "sharded.safetensors")
    rows = run.state.model.enter.weight.to_local().shape[0]
    return {"losses": run.losses, "norms": run.norms, "rows": rows, "whole": type(run.state.model.codec.weight).__name__}


def resumed(world: World, out: Path) -> Seen:
    latest = find_latest(out / "sharded", world)
    run = TinyRun(world, settings(), resume=latest)
    step = run.state.progress.step
    run.run(20)
    keep(run, out / "resumed.safetensors")
    return {"losses": run.losses, "from": step}


def muon(world: World, out: Path) -> Seen:
    """Twenty steps with matrices gathered for their updates, and ten again from the checkpoint between."""
    chosen = settings(optimizer=MUON)
    run, checkpointer = TinyRun(world, chosen), Checkpointer(out / "muon", world, keep=2)
    run.run(10, checkpointer=checkpointer)
    run.run(20)
    checkpointer.wait()
    again = TinyRun(world, chosen, resume=find_latest(out / "muon", world))
    again.run(20)
    same = all(torch.equal(tensor, again.tensors()[name]) for name, tensor in run.tensors().items())
    return {"losses": run.losses, "same": same and run.losses[10:] == again.losses}


def muon_together(world: World, out: Path) -> Seen:
    """Matrices of equal shapes, cut along rows or columns that do not divide evenly, next to the same whole ones."""
    generator, mesh = torch.Generator().manual_seed(0), init_device_mesh("cpu", (2,))
    whole = {f"layers.{i}": nn.Parameter(torch.randn(5, 3 + i % 2, generator=generator)) for i in range(6)}
    cut = {name: nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(i % 2)])) for i, (name, p) in enumerate(whole.items())}
    optimizers = [Muon().build(parameters, MUON) for parameters in (whole, cut)]
    for _ in range(3):
        for name, p in whole.items():
            p.grad = p.detach().sin()
            cut[name].grad = distribute_tensor(p.grad, mesh, cut[name].placements)
        for optimizer in optimizers:
            optimizer.step()
    errors = [(cut[name].full_tensor() - p).abs().max().item() for name, p in whole.items()]
    return {"error": max(errors), "kept": all(p.placements == (Shard(i % 2),) for i, p in enumerate(cut.values()))}


def resumed_from_one(world: World, out: Path) -> Seen:
    run = TinyRun(world, settings(), resume=find_latest(out / "alone", world))
    run.run(20)
    return {"losses": run.losses}


def large(world: World, out: Path) -> Seen:
    """Gradients that are too large to be kept whole between micro-batches."""
    most = parallel.MOST_WHOLE_GRADIENTS
    try:
        parallel.MOST_WHOLE_GRADIENTS = 0
        run = TinyRun(world, settings())
        run.run(20)
    finally:
        parallel.MOST_WHOLE_GRADIENTS = most
    return {"losses": run.losses, "norms": run.norms}


def hybrid(world: World, out: Path) -> Seen:
    run, checkpointer = TinyRun(world, settings()), Checkpointer(out / "hybrid", world, keep=1)
    run.run(10, checkpointer=checkpointer)
    run.run(20)
    checkpointer.wait()
    return {"losses": run.losses, "norms": run.norms, "rows": run.state.model.enter.weight.to_local().shape[0]}


def poisoned(world: World, out: Path) -> Seen:
    """Batch 8 falls on rank 0 alone."""
    run = TinyRun(world, settings(), poisoned=(8,))
    run.run(20)
    losses = [loss if math.isfinite(loss) else None for loss in run.losses]
    return {"losses": losses, "skipped": run.state.progress.skipped_steps}


def skipping(world: World, out: Path) -> Seen:
    """Steps 1, 3 and 6 are skipped on the device, and the run is resumed after the second of them; again on the host."""
    seen: Seen = {}
    for rule, spec in (("adamw", settings().optimizer), ("muon", MUON)):
        chosen, poison = settings(optimizer=spec, log_every=7), (0, 8, 21)
        run, host = (TinyRun(world, chosen, poisoned=poison) for _ in range(2))
        host.state.optimizer._step_supports_amp_scaling = False
        checkpointer = Checkpointer(out / f"skipping-{rule}", world, keep=2)
        run.run(3, checkpointer=checkpointer)
        run.run(20)
        checkpointer.wait()
        again = TinyRun(world, chosen, resume=find_latest(out / f"skipping-{rule}", world), poisoned=poison)
        begun = again.state.progress.skipped_steps
        again.run(20)
        host.run(20)
        others = {"resumed": again.tensors(), "host": host.tensors()}
        same = {name: all(torch.equal(t, tensors[key]) for key, t in run.tensors().items()) for name, tensors in others.items()}
        sharded = type(run.state.optimizer.state[run.state.model.leave.weight]["exp_avg"]).__name__
        skipped = [one.state.progress.skipped_steps for one in (run, again, host)]
        seen[rule] = {"losses": run.losses, "same": same, "skipped": [begun, *skipped], "sharded": sharded}
    return seen


def poisoned_for_good(world: World, out: Path) -> Seen:
    run = TinyRun(world, settings(), poisoned=tuple(range(8, 100, 2)))
    try:
        run.run(20)
    except SoundOmniError as error:
        return {"error": str(error), "step": run.state.progress.step}
    return {}


def averaged(world: World, out: Path) -> Seen:
    """Predicts with the averages in the middle of a run, and goes on."""
    run = TinyRun(world, settings())
    inputs = make_batch(3).inputs
    run.run(5)
    model, ema = run.state.model, run.state.ema
    assert ema is not None
    with torch.no_grad():
        plain = model.predict(inputs)
        with ema.swapped(model):
            found = model.predict(inputs)
        again = model.predict(inputs)
    reference = TinyModel()
    reference.load_state_dict({n.removeprefix("model/"): t for n, t in run.tensors().items() if n.startswith("model/")})
    averages = {n.removeprefix("ema/"): t for n, t in run.tensors().items() if n.startswith("ema/")}
    reference.load_state_dict(averages, strict=False)
    with torch.no_grad():
        expected = reference.predict(inputs)
    run.run(20)
    return {
        "losses": run.losses,
        "error": (found - expected).abs().max().item(),
        "difference": (found - plain).abs().max().item(),
        "restored": torch.equal(plain, again),
    }


def recomputed(world: World, out: Path) -> Seen:
    run = TinyRun(world, settings(activation_checkpointing=True))
    run.run(20)
    return {"losses": run.losses}


def bf16(world: World, out: Path) -> Seen:
    run = TinyRun(world, settings(precision="bf16"))
    run.run(5)
    return {"losses": run.losses, "dtype": str(run.state.model.enter.weight.dtype)}


def stopping(world: World, out: Path) -> Seen:
    """Rank 1 alone is asked to stop after its third step."""
    run, stop, saved = TinyRun(world, settings()), StopRequest(), []

    def should_stop() -> bool:
        stop.requested = world.rank == 1 and run.state.progress.step == 3
        return stop.agreed(world)

    hooks = Hooks(save=lambda progress: saved.append(progress.step), should_stop=should_stop)
    return {"finished": run.run(20, hooks=hooks), "saved": saved}


def full_disk(world: World, out: Path) -> Seen:
    """Rank 1 cannot write its second checkpoint; the first one stays, and both ranks hear of it."""
    run, checkpointer = TinyRun(world, settings()), Checkpointer(out / "full", world, keep=1)
    run.run(2, checkpointer=checkpointer)
    checkpointer.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.run(4, checkpointer=None)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    run.state.save(checkpointer, world, identity={})
    error = None
    try:
        checkpointer.wait()
    except CheckpointError as found:
        error = str(found)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    latest = find_latest(out / "full", world)
    return {"error": error, "latest": latest.name if latest else None, "left": sorted(p.name for p in (out / "full").iterdir())}


def validating(world: World, out: Path) -> Seen:
    """Parts of validation fail on both ranks in the middle of the model, and on one; training is to compute what it does without."""
    train = settings(validation=ValidationSpec(every=2))
    run, losses, inputs, failing = TinyRun(world, train), [], make_batch(3).inputs, []
    model = run.state.model

    def fail(module: torch.nn.Module, arguments: Any) -> None:
        if failing:
            raise ValueError("in the middle")

    model.layers[1].register_forward_pre_hook(fail)

    def in_the_middle() -> Made:
        failing.append(True)
        try:
            return Made(lines={"never.jsonl": model.predict(inputs).tolist()})
        finally:
            failing.clear()

    def on_one_rank() -> Made:
        model.predict(inputs)
        if world.rank == 1:
            raise SystemExit("gone")
        return Made()

    def works() -> Made:
        return Made(lines={"made.jsonl": [{"sum": model.predict(inputs).sum().item()}]})

    validation = Validation(
        parts=[Part("a", in_the_middle), Part("b", on_one_rank), Part("c", works)],
        module=model,
        ema=run.state.ema,
        samples_dir=out / "validating",
        world=world,
        train=train,
        report=lambda step, files: None,
    )
    progress = run.state.progress
    hooks = Hooks(log=lambda step, metrics: losses.append(metrics["loss"]), should_stop=lambda: progress.step >= 10, validate=validation)
    run.run(10, hooks=hooks)
    files = sorted(path.relative_to(out / "validating").as_posix() for path in (out / "validating").glob("*/*"))
    return {"losses": losses, "told": sorted(validation.told), "files": files}


def left_alone(world: World, out: Path) -> Seen:
    """Rank 1 fails while rank 0 gathers parameters with it: it ends after a while instead of waiting for ever."""
    run, inputs = TinyRun(world, settings()), make_batch(3).inputs
    model = run.state.model
    model.predict(inputs)
    parallel.reshard(model)

    def fails() -> None:
        if world.rank == 1:
            raise MemoryError
        model.predict(inputs)

    parallel.MEETING = timedelta(seconds=2)
    try:
        return {"failure": world.attempt(fails, module=model)[1]}
    except SoundOmniError as error:
        model.predict(inputs)  # what rank 0 waits for
        world.gather("left alone")
        return {"error": str(error), "notes": error.__notes__}
    finally:
        parallel.MEETING = timedelta(minutes=5)


def refusals(world: World, out: Path) -> Seen:
    seen: Seen = {}
    attempts: dict[str, Callable[[], Any]] = {
        "batches": lambda: batches_per_rank(3, world.size),
        "mesh": lambda: open_world(ParallelSpec(shard=3)).__enter__(),
        "replicate": lambda: open_world(ParallelSpec(replicate=3)).__enter__(),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except SpecError as error:
            seen[name] = str(error)
    return seen


class Clips(Dataset):
    """Items with these captions."""

    def __init__(self, captions: Sequence[str]) -> None:
        self._captions = captions

    def __len__(self) -> int:
        return len(self._captions)

    def item(self, index: int) -> Item:
        caption = self._captions[index]
        return Item(key=f"{index}.wav", num_samples=800, sample_rate=8000, captions=(caption,), questions=(("what?", caption),))

    def load(self, index: int) -> tuple[np.ndarray, int]:
        raise AssertionError("a listing decodes nothing")


def other_data(world: World, out: Path) -> Seen:
    """Rank 1 lists one caption less, another one, or cannot open its data at all; both ranks hear the same."""
    seen: Seen = {}
    captions = {"same": "abc", "caption": "abd" if world.rank else "abc", "length": "ab" if world.rank else "abc"}
    for name, letters in captions.items():
        source = Source(dataset=Clips(letters), tasks={"generate": 1.0})
        try:
            list_data(Mixture(sources={"mine": source}), world)
            seen[name] = None
        except DataError as error:
            seen[name] = str(error)

    def opened() -> int:
        if world.rank:
            raise DataError("no folder 'mine'")
        return 1

    def broken() -> None:
        raise DataError("no folder at all")

    for name, action in (("one cannot", opened), ("none can", broken), ("all can", lambda: 1)):
        try:
            seen[name] = world.on_every(action)
        except DataError as error:
            seen[name] = str(error)
    return seen


def copied(world: World, out: Path) -> Seen:
    tensors = [torch.full((3,), float(world.rank)), torch.tensor(world.rank == 0)]
    world.copy_from_main(tensors)
    return {"values": [tensor.tolist() for tensor in tensors]}


def measured(world: World, out: Path) -> Seen:
    """An odd number of held-out batches: one rank computes a batch with nothing in it."""
    measure = held_out(world, out)
    return {"numbers": measure(0), "batches": len(measure.batches), "again": measure(1)}


def in_parts(world: World, out: Path) -> Seen:
    """Each rank has a part that the other one may not have."""
    own = [{"ce/a": (3.0, 2.0)}, {"ce/a": (5.0, 6.0), "ce/b": (1.0, 4.0), "ce/c": (0.0, 0.0)}][world.rank]
    parts = {name: (torch.tensor(total), torch.tensor(count)) for name, (total, count) in own.items()}
    return part_means(StepResult(Measured(0, {"": ("ce",)}), torch.zeros(2), torch.zeros(()), parts), world)


LEARNING = (
    sharded,
    large,
    resumed,
    muon,
    muon_together,
    resumed_from_one,
    poisoned,
    skipping,
    poisoned_for_good,
    averaged,
    recomputed,
    bf16,
)
SHARDED = (*LEARNING, stopping, full_disk, validating, refusals, left_alone, other_data, copied, measured, in_parts)


def main(out: Path) -> None:
    logging.basicConfig(level=logging.CRITICAL)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seen: dict[str, Seen] = {}
    for name, spec, scenarios in (
        ("shard", ParallelSpec(), SHARDED),
        ("replicate", ParallelSpec(replicate=2, shard=1), (hybrid,)),
    ):
        with open_world(spec) as world:
            for scenario in scenarios:
                seen[scenario.__name__] = scenario(world, out)
        assert dist.is_initialized(), f"{name}: a group that was there before stays open"
    (out / f"seen-{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
