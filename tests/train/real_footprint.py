"""What a real training step of a small spec holds, counted byte by byte in this process.

Run as `python real_footprint.py SPEC OUT` with torchrun's environment, each process writes `OUT/RANK.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.sequence import NO_LABEL, Clips, PackedBatch
from soundomni.core.spec import registry
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.schema import Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.samples import SampleWriter
from soundomni.train.ema import EMA
from soundomni.train.memory.live_memory import LiveMemory
from soundomni.train.memory.typical_batch import BatchSizes, ClipSizes
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.parallel import World, computing_precision, open_world, parallelize
from soundomni.train.step import train_step


def held(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the shards that this process has."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum(t.numel() * t.element_size() for t in local)


def sizes_of(batch: PackedBatch) -> BatchSizes:
    def clips(of: Clips) -> ClipSizes:
        return ClipSizes(tuple(of.lengths.tolist()), tuple(of.num_frames.tolist()), tuple(of.num_tokens.tolist()), tuple(of.noise.tolist()))

    labels = int((batch.labels != NO_LABEL).sum())
    return BatchSizes(batch.table, labels, {name: clips(of) for name, of in batch.clips.items()}, {}, 0.0, 0)


def parts(spec: Spec, world: World) -> tuple[UnifiedModel, PackedLoader]:
    """The model and the loader of a run."""
    data, train = spec.data, spec.train
    assert data is not None and train is not None
    mixture = Mixture.open(data, registry.build)
    tokenizer = TextTokenizer.train(mixture.captions(64), vocab_size=spec.model.tokenizer.vocab_size)
    model = build_model(spec.model, vocab_size=tokenizer.vocab_size)
    model.made().normalizer.leave()
    writer = SampleWriter(segment_writer(model, spec.model, tokenizer=tokenizer), dropout=data.condition_dropout)
    loader = PackedLoader(
        mixture=mixture, writer=writer, spec=data, rank=world.rank, world_size=world.size, batches_per_step=train.batches_per_step
    )
    return model, loader


def real_step(spec: Spec, world: World) -> tuple[dict[str, int], BatchSizes]:
    """Makes two steps, and returns what the second holds and what the forward pass of its first batch keeps."""
    train = spec.train
    assert train is not None
    model, loader = parts(spec, world)
    parallelize(model, world, train)
    ema = EMA(model, decay=train.ema_decay)
    optimizer = build_optimizer(model, train.optimizer)
    train_step(model, next(loader).batches, train=train, optimizer=optimizer, world=world)
    batches = next(loader).batches
    loader.close()
    found = {"weights": held([*model.parameters(), *model.buffers()]), "ema": held(ema.averages.values())}
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    found["optimizer"] = held(kept)
    if world.mesh is None:
        whole = [*model.parameters(), *model.buffers()]
        saved: list[Tensor] = []
        with computing_precision(world, train), torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
            terms = model(batches[0])
        found["saved"] = saved_bytes(saved, whole)
        del terms, saved
        with computing_precision(world, train), LiveMemory(whole) as live:
            terms = model(batches[0])
            found["alive"] = live.current
            del terms
    step = optimizer.step
    optimizer.step = lambda: found.update(gradients=held(p.grad for p in model.parameters())) or step()  # type: ignore[method-assign]
    assert not train_step(model, batches, train=train, optimizer=optimizer, world=world).skipped
    return found, sizes_of(batches[0])


def saved_bytes(saved: Iterable[Tensor], ignored: Iterable[Tensor]) -> int:
    """Returns the bytes of the distinct storages of `saved`, without those of `ignored`."""
    without = {tensor.untyped_storage()._cdata for tensor in ignored}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for key, size in storages.items() if key not in without)


def main(config: str, out: Path) -> None:
    torch.set_num_threads(1)
    spec: Any = resolve(load_spec([config]))
    with open_world(spec.train.parallel) as world:
        found, _ = real_step(spec, world)
        (out / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
