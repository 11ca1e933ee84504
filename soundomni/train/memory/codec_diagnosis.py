"""What training a codec with its critics needs on each GPU: the codec is sharded, and critics are whole on every process."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from soundomni.core.errors import ConstructionError, SpecError
from soundomni.core.spec.culprit import named
from soundomni.core.spec.ranges import check_train
from soundomni.core.spec.schema import CodecSpec, DataSpec, Spec, TrainSpec
from soundomni.data.data_section import check_data
from soundomni.train.codec_training import CodecTraining
from soundomni.train.memory.codec_step import measure_codec_step
from soundomni.train.memory.diagnosis import Diagnosis, Footprint, Setting
from soundomni.train.memory.footprint import OptimizerState, Part, optimizer_state, shard_numel
from soundomni.train.memory.typical_batch import SECONDS
from soundomni.train.parallel import mesh_shape
from soundomni.train.phases import phases_of
from soundomni.train.without_memory import codec_without_memory

BOUNDARIES = 2
"""Tokens of a clip besides its frames."""


def diagnose_codec(
    spec: Spec, section: CodecSpec, *, gpus: int, gpu_memory: int, seconds: float | None = None, trust_class_paths: bool = False
) -> Diagnosis:
    """Build the codec and its critics without memory and measure what a training step needs.

    Args:
        spec, section: a resolved spec with `codec`, `data` and `train`.
        gpus: number of processes, one per GPU.
        gpu_memory: bytes of each GPU.
        seconds: length of the clips in a batch; None for the longest that the data allow, or 10.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        SpecError: the spec has no such sections, does not fit this number of GPUs, or a batch does not hold a clip.
    """
    data, train = spec.data, spec.train
    assert data is not None and train is not None, "checked before"
    check_data(data)
    check_train(train)
    shard = mesh_shape(train.parallel, gpus)[-1]
    try:
        module = codec_without_memory(section, train, trust_class_paths=trust_class_paths)
    except ConstructionError as error:
        raise SpecError(f"the codec cannot be built without memory: {error}") from error
    samples, clips = _clips(module, data, seconds)
    states = [optimizer_state(phase.module, phase.optimizer, trust_class_paths=trust_class_paths) for phase in phases_of(module, train)]
    whole = {id(p) for part in module.whole for p in part.parameters()}
    unmeasured = kept = working = None
    try:
        step = measure_codec_step(module, clips=clips, samples=samples, bf16=train.precision == "bf16")
        kept, working = step.kept, step.working
    except Exception as error:  # any error of a plugin whose computation depends on values
        unmeasured = f"activations cannot be known: {named(error)[:300]}"
    footprint = _footprint(module, train, states, whole, shard, kept=kept, working=working)
    notes = _notes(module, train, clips=clips, samples=samples, gpus=gpus, unknown=[*(state.unknown for state in states), unmeasured])
    return Diagnosis(
        parts=tuple(_parts(module)),
        setting=Setting(gpus, train.activation_checkpointing, data.tokens_per_batch),
        footprint=footprint,
        gpu_memory=gpu_memory,
        change=None,
        changed=None,
        notes=tuple(notes),
    )


def _clips(module: CodecTraining, data: DataSpec, seconds: float | None) -> tuple[int, int]:
    """Return the samples of a clip, and how many such clips a batch holds."""
    limits = [entry.longest_seconds for entry in data.datasets.values() if entry is not None and entry.longest_seconds is not None]
    if seconds is None:
        seconds = max(limits, default=SECONDS)
    codec = module.codec.spec
    samples = max(1, round(seconds * codec.sample_rate))
    tokens = codec.num_frames(samples) + BOUNDARIES
    if tokens > data.tokens_per_batch:
        raise SpecError(
            f"a clip of {seconds:g} s has {tokens} tokens, but data.tokens_per_batch is {data.tokens_per_batch}; expected at least {tokens}"
        )
    return samples, data.tokens_per_batch // tokens


def _footprint(
    module: CodecTraining,
    train: TrainSpec,
    states: list[OptimizerState],
    whole: set[int],
    shard: int,
    *,
    kept: int | None,
    working: int | None,
) -> Footprint:
    """Return the bytes on one GPU."""

    def held(part: nn.Module, *, trained: bool = True) -> int:
        found = [p for p in part.parameters() if p.requires_grad or not trained]
        return sum(p.element_size() * (p.numel() if id(p) in whole else shard_numel(p, shard)) for p in found)

    optimizer: int | None = 0
    for phase, state in zip(phases_of(module, train), states, strict=True):
        if state.unknown is not None or optimizer is None:
            optimizer = None
            continue
        for name, p in phase.module.named_parameters():
            if p.requires_grad:
                local = p.numel() if id(p) in whole else shard_numel(p, shard)
                optimizer += math.ceil(local * state.per_element[name]) + state.fixed[name]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    gathered = sum(4 * p.numel() for p in module.codec.parameters() if id(p) not in whole)
    return Footprint(
        weights=held(module, trained=False) + buffers,
        gradients=max(held(phase.module) for phase in phases_of(module, train)),
        optimizer=optimizer,
        ema=held(module.codec) if train.ema_decay > 0 else 0,
        activations=kept,
        working=working,
        gathered=2 * gathered if shard > 1 else 0,
    )


def _parts(module: CodecTraining) -> Iterator[Part]:
    """Yield the parts of the codec, and each critic that has parameters."""
    children = {**dict(module.codec.named_children()), **{f"critic {name}": one for name, one in module.critics.items()}}
    for name, part in children.items():
        parameters = list(part.parameters())
        if parameters:
            yield Part(name, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))


def _notes(module: CodecTraining, train: TrainSpec, *, clips: int, samples: int, gpus: int, unknown: list[str | None]) -> Iterator[str]:
    seconds = samples / module.codec.spec.sample_rate
    yield f"a batch has {clips} clips of {seconds:.3g} s"
    yield "all critics and losses have started, and no data or weights were read"
    if gpus == 1:
        yield "one GPU is one process without torchrun: nothing is sharded"
    if train.batches_per_step % gpus:
        yield f"train.batches_per_step is {train.batches_per_step}; expected a multiple of {gpus}, the number of GPUs"
    yield from (reason for reason in unknown if reason is not None)
