"""What a spec needs on GPUs of a given size, whether it fits, and what would make it fit."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import ConstructionError, SpecError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec.culprit import named
from soundomni.core.spec.ranges import check_train
from soundomni.core.spec.registry import load
from soundomni.core.spec.schema import DataSpec, Spec, TrainSpec
from soundomni.data.data_section import check_data
from soundomni.train.memory.activations import StepMemory, measure_step
from soundomni.train.memory.footprint import (
    OptimizerState,
    Part,
    gathered_bytes,
    list_parts,
    optimizer_state,
    resident_bytes,
    teacher_bytes,
)
from soundomni.train.memory.typical_batch import TEXT_TOKENS, BatchSizes, typical_batch
from soundomni.train.parallel import mesh_shape
from soundomni.train.without_memory import model_without_memory

RESERVE = 1 << 30
"""Bytes of a GPU that nothing here uses: the CUDA context, libraries, gaps between blocks of memory."""
MOST_GPUS = 1024
LEAST_SHARE, TOKEN_STEP = 8, 256
"""A budget is reduced to this share at most, and to a multiple of this number."""


@dataclass(frozen=True)
class Setting:
    """The settings that can be changed to make a run fit."""

    gpus: int
    recompute: bool
    tokens: int


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU. `optimizer` and the needs of a step are None if they are unknown, and then count as nothing.

    Args:
        weights, gradients, optimizer, ema: throughout the run.
        activations: what a forward pass keeps for the backward pass.
        working: peak of temporary memory besides: the batch, the codec and the encoder at work, gradients of
            activations.
        gathered: parameters gathered by FSDP, and gradients being reduced; 0 on one GPU.
        reserve: memory that is left free.
    """

    weights: int
    gradients: int
    optimizer: int | None
    ema: int
    activations: int | None
    working: int | None
    gathered: int
    reserve: int = RESERVE

    @property
    def total(self) -> int:
        """Sum of all rows, as if all peaks came at once: a forward pass only meets gradients from the second
        micro-batch on."""
        return sum(size or 0 for size in vars(self).values())


@dataclass(frozen=True)
class Diagnosis:
    """Result of a diagnosis.

    Args:
        parts: parts of the model.
        setting: the setting that was asked about.
        footprint: memory on each GPU.
        gpu_memory: bytes of each GPU.
        change: the first change found that makes it fit, with GPUs that share `batches_per_step` evenly; None if it
            already fits, or if no change is enough.
        changed: the footprint after that change.
        notes: what was assumed, and what cannot be known.
    """

    parts: tuple[Part, ...]
    setting: Setting
    footprint: Footprint
    gpu_memory: int
    change: Setting | None
    changed: Footprint | None
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every row is known."""
        return None not in vars(self.footprint).values()

    @property
    def fits(self) -> bool:
        """Whether every GPU has enough memory for what is known."""
        return self.footprint.total <= self.gpu_memory


def diagnose(
    spec: Spec,
    *,
    gpus: int,
    gpu_memory: int,
    seconds: float | None = None,
    text_tokens: int = TEXT_TOKENS,
    trust_class_paths: bool = False,
) -> Diagnosis:
    """Build the model without memory and measure what a training step needs.

    Args:
        spec: spec with `data` and `train`; neither its data nor its tokenizer are opened.
        gpus: number of processes, one per GPU; a single one does not shard.
        gpu_memory: bytes of each GPU.
        seconds, text_tokens: lengths of the clips and texts in a batch; see `typical_batch`.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        SpecError: the spec has no such sections, trains a codec (see codec_diagnosis.py), or does not fit this number of GPUs.
    """
    spec.check_single()
    data, train = spec.data, spec.train
    if data is None or train is None:
        raise SpecError(f"the spec has no '{'data' if data is None else 'train'}' section, so it trains nothing; add one")
    check_data(data)
    check_train(train)
    mesh_shape(train.parallel, gpus)
    _check_optimizer(train, gpus, trust_class_paths=trust_class_paths)
    scale = _Scale(_build(spec, trust_class_paths), spec, data, train, seconds, text_tokens, trust_class_paths)
    setting = Setting(gpus, train.activation_checkpointing, data.tokens_per_batch)
    footprint = scale.weigh(setting)
    change = beyond = None
    if footprint.total > gpu_memory:
        counts = [count for count in range(gpus + 1, MOST_GPUS + 1) if scale.fits_mesh(count)]
        dividing = [count for count in counts if train.batches_per_step % count == 0]
        least = scale.batch(setting.tokens).longest

        def total(tried: Setting) -> int:
            return scale.weigh(tried).total

        change = first_change(total, setting, gpu_memory, counts=dividing, least=least)
        if change is None:
            beyond = first_change(total, setting, gpu_memory, counts=counts, least=least)
    return Diagnosis(
        parts=tuple(list_parts(scale.model)),
        setting=setting,
        footprint=footprint,
        gpu_memory=gpu_memory,
        change=change,
        changed=None if change is None else scale.weigh(change),
        notes=tuple(_notes(scale, spec, train, setting, beyond)),
    )


def _build(spec: Spec, trust_class_paths: bool) -> UnifiedModel:
    """Build the model without memory. Raise SpecError if a plugin cannot be built like that."""
    try:
        return model_without_memory(spec, trust_class_paths=trust_class_paths)
    except ConstructionError as error:
        raise SpecError(f"the model cannot be built without memory: {error}") from error


def _check_optimizer(train: TrainSpec, gpus: int, *, trust_class_paths: bool) -> None:
    """Raise SpecError if an optimizer that only runs in one process is given several GPUs."""
    name = train.optimizer.rule.class_path
    if gpus > 1 and not cast(type[Optimizer], load("optimizer", name, trust_class_paths=trust_class_paths)).shards:
        raise SpecError(f"train.optimizer.rule is '{name}', which only runs in one process, but there are {gpus} GPUs; choose adamw")


class _Scale:
    """Footprints of one model under different settings."""

    def __init__(
        self,
        model: UnifiedModel,
        spec: Spec,
        data: DataSpec,
        train: TrainSpec,
        seconds: float | None,
        text_tokens: int,
        trust_class_paths: bool,
    ) -> None:
        self.model = model
        self.train = train
        self.trust_class_paths = trust_class_paths
        self.bf16 = train.precision == "bf16"
        self.state: OptimizerState = optimizer_state(model, train.optimizer, trust_class_paths=trust_class_paths)
        self.unmeasured: str | None = None
        """Why a step cannot be measured."""

        def batch(tokens: int) -> BatchSizes:
            limit = data.max_tokens_per_sample
            smaller = replace(data, tokens_per_batch=tokens, max_tokens_per_sample=None if limit is None else min(limit, tokens))
            return typical_batch(model, spec.of_model, smaller, seconds=seconds, text_tokens=text_tokens)

        self.batch: Callable[[int], BatchSizes] = functools.cache(batch)
        self._step = functools.cache(self._measure)

    def fits_mesh(self, gpus: int) -> bool:
        """Return whether train.parallel and the optimizer allow this number of GPUs."""
        try:
            mesh_shape(self.train.parallel, gpus)
            _check_optimizer(self.train, gpus, trust_class_paths=self.trust_class_paths)
        except SpecError:
            return False
        return True

    def weigh(self, setting: Setting) -> Footprint:
        """Return the footprint of a setting."""
        shard = mesh_shape(self.train.parallel, setting.gpus)[-1]
        resident = resident_bytes(self.model, self.state, shard=shard, ema=self.train.ema_decay > 0)
        step = self._step(setting.gpus > 1, setting.recompute, setting.tokens)
        taught = self.train.teacher is not None
        gathered = gathered_bytes(self.model, bf16=self.bf16) if setting.gpus > 1 else 0
        return Footprint(
            weights=resident.weights + (teacher_bytes(self.model, shard=shard) if taught else 0),
            gradients=resident.gradients,
            optimizer=resident.optimizer,
            ema=resident.ema,
            activations=None if step is None else step.kept,
            working=None if step is None else step.working,
            gathered=gathered * (2 if taught else 1),  # at most: the teacher runs while the model's root is gathered
        )

    def _measure(self, sharded: bool, recompute: bool, tokens: int) -> StepMemory | None:
        if self.unmeasured is not None:
            return None
        sizes = self.batch(tokens)
        try:
            return measure_step(self.model, sizes, bf16=self.bf16, sharded=sharded, recompute=recompute)
        except Exception as error:  # any error of a plugin whose computation depends on values
            self.unmeasured = f"activations cannot be known: {named(error)[:300]}"
            return None


def first_change(
    total: Callable[[Setting], int], setting: Setting, gpu_memory: int, *, counts: Sequence[int], least: int
) -> Setting | None:
    """Return the first setting that fits: recomputing, more GPUs, both, or smaller batches as well; None if none is
    enough.

    Args:
        total: function that returns the bytes on one GPU; it never grows with more GPUs or fewer tokens.
        setting: a setting that does not fit.
        gpu_memory: bytes of a GPU.
        counts: other numbers of GPUs, ascending.
        least: smallest number of tokens in a batch, which is also at least the share LEAST_SHARE of the current number.
    """

    def fits(tried: Setting) -> bool:
        return total(tried) <= gpu_memory

    recomputing = replace(setting, recompute=True)
    if not setting.recompute and fits(recomputing):
        return recomputing
    for tried in dict.fromkeys((setting, recomputing)):
        if counts and fits(replace(tried, gpus=counts[-1])):
            return _fewest_gpus(fits, tried, counts)
    short = replace(recomputing, tokens=max(least, setting.tokens // LEAST_SHARE))
    if not fits(short):
        if not counts or not fits(replace(short, gpus=counts[-1])):
            return None
        short = _fewest_gpus(fits, short, counts)
    low, high = total(short), total(replace(short, tokens=setting.tokens))
    tokens = short.tokens + int((setting.tokens - short.tokens) * (gpu_memory - low) / max(1, high - low))
    while tokens > short.tokens:  # memory grows evenly with tokens, apart from whole samples
        if fits(longer := replace(short, tokens=tokens // TOKEN_STEP * TOKEN_STEP)):
            return longer
        tokens -= TOKEN_STEP
    return short


def _fewest_gpus(fits: Callable[[Setting], bool], setting: Setting, counts: Sequence[int]) -> Setting:
    """Return the setting with the fewest GPUs that fits; the largest number fits."""
    place = bisect_left(counts, True, key=lambda gpus: fits(replace(setting, gpus=gpus)))
    return replace(setting, gpus=counts[place])


def _notes(scale: _Scale, spec: Spec, train: TrainSpec, setting: Setting, beyond: Setting | None) -> Iterator[str]:
    """Yield what was assumed; `beyond` is a setting that fits, but whose GPUs cannot share `batches_per_step`."""
    batch = scale.batch(setting.tokens)
    samples = ", ".join(f"{count} x {task}" for task, count in batch.samples.items())
    yield f"a batch of {batch.num_tokens} tokens consists of {samples}, with {batch.seconds:g} s and {batch.text_tokens} tokens per text"
    yield "no data, tokenizer or weights were read"
    if spec.of_model.backbone.init_args.get("vocab_rows") is None:
        yield f"the tokenizer has {spec.of_model.tokenizer.vocab_size} ids"
    if setting.gpus == 1:
        yield "one GPU is one process without torchrun: nothing is sharded"
    if train.batches_per_step % setting.gpus:
        yield f"train.batches_per_step is {train.batches_per_step}; expected a multiple of {setting.gpus}, the number of GPUs"
    if beyond is not None:
        batches = -(-train.batches_per_step // beyond.gpus) * beyond.gpus
        recompute = ", train.activation_checkpointing=true" if beyond.recompute and not setting.recompute else ""
        tokens = f", data.tokens_per_batch={beyond.tokens}" if beyond.tokens != setting.tokens else ""
        yield f"it would fit on {beyond.gpus} GPUs with train.batches_per_step={batches}{recompute}{tokens}"
    if train.teacher is not None:
        yield "the weights include the model's and its frozen teacher's"
    if train.compile:
        yield "train.compile is ignored; compiled layers keep less"
    for unknown in (scale.state.unknown, scale.unmeasured):
        if unknown:
            yield unknown
