"""Memory of one training step besides parameters, gradients and states, found by running the model on tensors without
memory.

The model's own forward pass runs on fake tensors of the sizes of a real batch; only parts that depend on values are
replaced: the codec's latents, and which text tokens are predicted. So whatever modules a spec assembles, what they keep
for the backward pass is counted and not guessed. What the backward pass needs in addition is measured in the same way,
but with the CPU's kernels, because a backward pass over fake GPU tensors needs that GPU.

Shape letters: B clips, D latent dimensions, T frames, N tokens, S samples.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from soundomni.core.assembly.encoding import CODEC_SAMPLES, encode_clips
from soundomni.core.assembly.modality import (
    CodecModality,
    EncoderModality,
    Entered,
    MadeModality,
    Modality,
    frame_places,
)
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.text_loss import summed_nats
from soundomni.core.attention import plan_attention
from soundomni.core.attention.flex import FlexPlan
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.planner import chosen_executor
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.interfaces import Encoder, Query
from soundomni.core.sequence import Clips, PackedBatch, Role, SegmentTable
from soundomni.train.memory.live_memory import LiveMemory
from soundomni.train.memory.typical_batch import BatchSizes, ClipSizes
from soundomni.train.memory.without_values import without_values
from soundomni.train.parallel import recompute_in_backward

Device = Literal["cuda", "cpu"]

GPU = torch.device("cuda", 7)
"""The fake GPU. Its index is the last one allowed for fakes, so that constants cached by device are not mistaken for a
real GPU's."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process.

    Args:
        batch: the batch itself.
        kept: what the forward pass keeps for the backward pass, without parameters.
        passing: peak of temporary memory besides: gradients of activations, logits, a layer that is recomputed.
        entering: peak before the first layer, for example in the encoder.
        encoding: peak of the codec before that, while it encodes the clips to make.
    """

    batch: int
    kept: int
    passing: int
    entering: int
    encoding: int

    @property
    def working(self) -> int:
        """Peak of what is used at once in addition to what is kept."""
        return self.batch + max(self.passing, self.entering - self.kept, self.encoding - self.kept)


def measure_step(model: UnifiedModel, sizes: BatchSizes, *, bf16: bool, sharded: bool, recompute: bool) -> StepMemory:
    """Measure a forward and a backward pass on a GPU.

    Args:
        model: model on the meta device; it is there again afterwards.
        sizes: sizes of the batch.
        bf16: whether the model computes under autocast.
        sharded: whether parameters are gathered in the computing precision, as FSDP does; otherwise autocast makes
            copies, which count.
        recompute: whether layers only keep their inputs.

    Raise any error of a plugin whose computation depends on values.
    """
    run = MeasuredRun(model, sizes, bf16=bf16, sharded=sharded, num_layers=len(model.backbone.layers))
    with run.staged("cuda"):
        encoder = run.encoder()
        whole = run.kept("cuda", recompute=False)
        kept = run.kept("cuda", recompute=True) if recompute else whole
    with run.staged("cpu"):
        gradients = run.gradients()
    again = whole.layer if recompute else 0
    samples = sum(model_channels * clips.padded_samples for model_channels, clips in run.clips())
    return StepMemory(
        batch=4 * samples + 16 * sizes.num_tokens,
        kept=kept.total + encoder.total,
        passing=max(kept.passing, again + gradients),
        entering=encoder.total + encoder.passing,
        encoding=run.encoding(),
    )


class _Answered(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers yes if a codec without memory asks whether something holds, such as whether all clips are equally long:
    here they are.

    If it asks which of many hold, such as frames that need more work, the answer is all of them: no batch takes more
    memory. If it asks for a whole number, such as the length of a clip, the answer is `length`.
    """

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = length

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.int64:
            return self._length
        if func is torch.ops.aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)
        return func(*args, **(kwargs or {}))


class _Fused(TorchFunctionMode):
    """Uses the fused attention of a GPU; otherwise torch would choose a kernel that holds the whole matrix of
    weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _flash_like(*args[:3]) if len(args) >= 3 else _flash_like(kwargs["query"], kwargs["key"], kwargs["value"])
        return func(*args, **(kwargs or {}))


class _FlashLike(torch.autograd.Function):
    """Keeps what flash attention keeps: queries, keys, values, the output and one log-sum-exp per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _flash_like(query: Tensor, key: Tensor, value: Tensor, ids: Sequence[Tensor] = (), blocks: Sequence[Tensor] = ()) -> Tensor:
    out: Tensor = _FlashLike.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out


class _Shadow(UnifiedModel):
    """A model that shares another model's modules, without the parts that depend on values."""

    sizes: BatchSizes

    @classmethod
    def of(cls, model: UnifiedModel, sizes: BatchSizes) -> _Shadow:
        """Return a shadow of `model` for batches of `sizes`."""
        shadow = cls.__new__(cls)
        modalities = nn.ModuleDict({modality.name: _shadowed(modality) for modality in model.each()})
        critic = None if model.critic is None else cls.of(model.critic, sizes)
        shadow.__dict__.update(model.__dict__, sizes=sizes, _modules={**model._modules, "modalities": modalities, "critic": critic})
        return shadow

    def plan(self, table: SegmentTable, cache: Any = None) -> Layout:
        """Return a plan for the executor that would be chosen, with a stand-in for a kernel that would have to be
        compiled."""
        stored, kind = self.stored(table), self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        plan: AttentionPlan
        head_dim = self.backbone.head_dim
        if chosen_executor(table, device=self.device, dtype=dtype, head_dim=head_dim) == "flex":
            plan = FlexPlan(table, stored, device=self.device, reason="", attention=_flash_like)
        else:
            plan = plan_attention(table, stored, device=self.device, dtype=dtype, head_dim=head_dim)
        return self.layout(stored, plan)

    def text_loss(self, hidden: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss over the first tokens: only the number of predicted tokens is known."""
        rows = torch.arange(self.sizes.num_labels, device=hidden.device)
        total = summed_nats(self.backbone.head, hidden.index_select(0, rows), labels.index_select(0, rows))
        return total, torch.ones((), device=total.device)


class _Made(MadeModality):
    """A modality that is made, with values of the right shape instead of those of its codec."""

    def corrupt(self, clips: Clips) -> Query:
        """Return values of the right shape."""
        if len(clips) == 0:
            return self.empty_query()
        tokens = self.objective.tokens(self.codec.spec)
        frames = int(clips.num_tokens.max()) - self.lead
        width = tokens.outputs if isinstance(tokens.outputs, int) else tokens.num_inputs
        values = torch.empty(2, len(clips), width, frames, device=self.device, dtype=_values_dtype(self))
        times = torch.empty(len(clips), frames, device=self.device)
        given = tokens.inputs[: self.first_level] if isinstance(tokens.inputs, tuple) else ()
        levels = (*given, *tokens.outputs) if isinstance(tokens.outputs, tuple) else ()
        hints = self.objective.hints(values[0], times > 0)
        return Query(inputs=values[0], timesteps=times, targets=values[1], loss_mask=times > 0, levels=levels, hints=hints)


class _Given(CodecModality):
    """A modality that is given, with values of the right shape instead of those of its codec."""

    def enter_context(self, clips: Clips) -> Tensor:
        """Pass values of the right shape through the connector."""
        values = torch.empty(_values_shape(self, clips), device=self.device, dtype=_values_dtype(self))
        return self.enter_frames(values, None, frame_places(clips.num_tokens, values.shape[-1], self.device))


class _Heard(EncoderModality):
    """A modality that is heard, without its encoder, which is measured separately, once."""

    def enter(self, clips: Clips) -> Entered:
        """Pass features of the right shape through the connector."""
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        shape = (int(clips.num_tokens.sum()), self.encoder.spec.feature_dim)
        return Entered(self.connector.enter(torch.empty(shape, device=self.device, requires_grad=trained)))


def _shadowed(modality: Modality) -> Modality:
    """Return a modality that shares the modules of another one, without the parts that depend on values."""
    kinds = ((MadeModality, _Made), (CodecModality, _Given), (EncoderModality, _Heard))
    shadow_class = next(shadow for kind, shadow in kinds if isinstance(modality, kind))
    shadow: Modality = shadow_class.__new__(shadow_class)
    shadow.__dict__.update(modality.__dict__)
    return shadow


def _values_shape(modality: CodecModality, clips: Clips) -> tuple[int, int, int]:
    return len(clips), modality.codec.spec.token_dim, int(clips.num_frames.max())


def _values_dtype(modality: CodecModality) -> torch.dtype:
    return torch.float32 if modality.codec.spec.kind == "continuous" else torch.int64


@dataclass(frozen=True)
class _Kept:
    """What a forward pass keeps in total and in one layer other than the first, and its peak in addition to all
    that."""

    total: int
    layer: int
    passing: int


@dataclass(frozen=True)
class MeasuredRun:
    """A forward and a backward pass of a model over a typical batch, of which each part is measured by itself."""

    model: UnifiedModel
    sizes: BatchSizes
    bf16: bool
    sharded: bool
    num_layers: int

    @contextmanager
    def staged(self, device: Device) -> Iterator[None]:
        """Within this context, the model's modules, except for the codec, are fake ones on `device`, as when a step
        runs.

        Of identical layers, at most three are used: all but the first keep the same. On the CPU the encoder stays where
        it is: it may cache constants by device, and must not cache fake ones for when it really runs.
        """
        layers = self.model.backbone.layers
        out = {id(module) for part in self.model.replicated_modules for module in part.modules()}
        if device == "cpu":
            out |= {id(module) for heard in self.model.all_encoders for module in heard.encoder.modules()}
        dtype = torch.bfloat16 if self.bf16 and self.sharded else None
        with ExitStack() as stack:
            stack.enter_context(_shortened(layers, 3 if _alike(layers) else len(layers)))
            stack.enter_context(without_values())
            stack.enter_context(placed([m for m in self.model.modules() if id(m) not in out], _place(device), dtype))
            yield

    def kept(self, device: Device, *, recompute: bool) -> _Kept:
        """Run the forward pass; within `staged`."""
        depth, staged = self.num_layers, len(self.model.backbone.layers)
        with _shortened(self.model.backbone.layers, min(2, staged)):
            fewer, passing = self._forward(device, recompute=recompute)
        if staged <= 2:
            return _Kept(fewer, fewer // staged, passing)
        total, passing = self._forward(device, recompute=recompute)
        layer = (total - fewer) // (staged - 2)
        return _Kept(total + (depth - staged) * layer, layer, passing)

    def gradients(self) -> int:
        """Return the peak of the backward pass in addition to what is kept, if nothing is recomputed; on the CPU,
        within `staged`."""
        with self._running("cpu", recompute=False) as (shadow, batch, live):
            for parameter in shadow.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
            loss = torch.stack([total.float() for total, _ in shadow(batch).values()]).sum()
            gc.collect(0)
            kept = live.peak = live.current
            loss.backward()  # type: ignore[no-untyped-call]
            return live.peak - kept

    def clips(self) -> list[tuple[int, ClipSizes]]:
        """Return the audio channels and the clips of each modality."""
        return [(modality.channels, self.sizes.sizes(modality.name)) for modality in self.model.each()]

    def encoder(self) -> _Kept:
        """Run the encoders; within `staged`."""
        each = [self._encoder(heard.encoder, self.sizes.sizes(heard.name)) for heard in self.model.all_encoders]
        return _Kept(sum(one.total for one in each), 0, max((one.passing for one in each), default=0))

    def _encoder(self, encoder: Encoder, clips: ClipSizes) -> _Kept:
        if next(encoder.parameters(), None) is None:  # it keeps nothing for the backward pass, and may depend on values, as t5 does
            return _Kept(0, 0, 0)
        samples = clips.samples or (max(1, encoder.spec.sample_rate // 10),)  # without clips it hears a short silence
        waveform = torch.empty(len(samples), 1, max(samples), device=GPU)
        lengths = torch.empty(len(samples), dtype=torch.int64, device=GPU)
        with LiveMemory([*encoder.parameters(), *encoder.buffers(), waveform, lengths]) as live, ExitStack() as stack:
            stack.enter_context(_Fused())
            stack.enter_context(_young_garbage())
            if self.bf16:
                stack.enter_context(_autocast("cuda"))
            graph = encoder(waveform, lengths).grad_fn
            gc.collect(0)
            kept = live.current
            del graph
        return _Kept(kept, 0, live.peak - kept)

    def encoding(self) -> int:
        """Return the peak of a codec while it encodes its clips, with as many of them as it encodes at once, twice."""
        codecs = [modality for modality in self.model.each() if isinstance(modality, CodecModality)]
        return max((self._encoding(modality, self.sizes.sizes(modality.name)) for modality in codecs), default=0)

    def _encoding(self, modality: CodecModality, clips: ClipSizes) -> int:
        codec = modality.codec
        if not clips.samples:
            return 0
        longest = max(clips.samples)
        count = min(len(clips.samples), 2 * max(1, CODEC_SAMPLES // (longest * codec.spec.channels)))
        with without_values(), placed(codec.modules(), GPU, None), _Answered(longest), torch.no_grad():
            waveform = torch.empty(count, codec.spec.channels, longest, device=GPU)
            lengths = torch.empty(count, dtype=torch.int64, device=GPU)
            with LiveMemory([*codec.parameters(), *codec.buffers(), waveform, lengths]) as live:
                encode_clips(codec, waveform, lengths, num_samples=clips.samples[:count])
            peak: int = live.peak
        return peak

    def _forward(self, device: Device, *, recompute: bool) -> tuple[int, int]:
        with self._running(device, recompute=recompute) as (shadow, batch, live):
            terms = shadow(batch)
            gc.collect(0)
            kept, peak = live.current, live.peak
            del terms
        return kept, peak - kept

    @contextmanager
    def _running(self, device: Device, *, recompute: bool) -> Iterator[tuple[_Shadow, PackedBatch, LiveMemory]]:
        with ExitStack() as stack:
            if recompute:
                stack.enter_context(_recomputing(self.model))
            batch = _batch(self.sizes, self.model, _place(device))
            live = stack.enter_context(LiveMemory([*self.model.parameters(), *self.model.buffers()]))
            if device == "cuda":
                stack.enter_context(_Fused())
            if self.bf16:
                stack.enter_context(_autocast(device))
            stack.enter_context(_young_garbage())
            yield _Shadow.of(self.model, self.sizes), batch, live


@contextmanager
def placed(modules: Iterable[nn.Module], place: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Replace the parameters and buffers of `modules` by fake ones; parameters have `dtype` if it is given."""
    made: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in modules:
        holders: tuple[tuple[dict[str, Any], torch.dtype | None], ...] = ((module._parameters, dtype), (module._buffers, None))
        for held, given in holders:
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=given or tensor.dtype, device=place)
                    made[id(tensor)] = fake.requires_grad_(tensor.requires_grad)
                before.append((held, name, tensor))
    for held, name, tensor in before:
        held[name] = made[id(tensor)]
    try:
        yield
    finally:
        for held, name, tensor in before:
            held[name] = tensor


def _place(device: Device) -> torch.device:
    return GPU if device == "cuda" else torch.device("cpu")


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _alike(layers: nn.ModuleList) -> bool:
    """Return whether all layers have the same modules and parameters, trained or not."""

    def shape(layer: nn.Module) -> list[Any]:
        parameters = [(name, p.shape, p.requires_grad) for name, p in layer.named_parameters()]
        return [*parameters, *((name, type(module)) for name, module in layer.named_modules())]

    return all(shape(layer) == shape(layers[0]) for layer in layers)


@contextmanager
def _shortened(layers: nn.ModuleList, depth: int) -> Iterator[None]:
    """Leave out the layers from `depth` on."""
    rest = list(layers)[depth:]
    del layers[depth:]
    try:
        yield
    finally:
        layers.extend(rest)


def _batch(sizes: BatchSizes, model: UnifiedModel, place: torch.device) -> PackedBatch:
    text = int((sizes.table.token_roles() == Role.TEXT).sum())
    return PackedBatch(
        table=sizes.table,
        keys=(),
        text_ids=torch.zeros(text, dtype=torch.int64, device=place),
        labels=torch.zeros(text, dtype=torch.int64, device=place),
        predicting=torch.zeros(sizes.num_labels, dtype=torch.int64, device=place),
        clips={one.name: _clips(sizes.sizes(one.name), one.channels, place) for one in model.each() if one.name in sizes.clips},
        conditioned=sizes.conditioned,
    )


def _clips(sizes: ClipSizes, channels: int, place: torch.device) -> Clips:
    count = len(sizes.samples)
    return Clips(
        waveform=torch.zeros(count, channels, max(sizes.samples, default=0), device=place),
        lengths=torch.zeros(count, dtype=torch.int64, device=place),
        num_samples=sizes.samples,
        num_frames=np.asarray(sizes.frames, dtype=np.int64),
        num_tokens=np.asarray(sizes.tokens, dtype=np.int64),
        seeds=(0,) * count,
        known=torch.zeros(count, max(sizes.frames, default=0), dtype=torch.bool, device=place),
        noise=torch.zeros(count, dtype=torch.bool, device=place),
        added_to=sizes.added_to,
    )


@contextmanager
def _young_garbage() -> Iterator[None]:
    """Within this context, all new cycles stay young, so that `gc.collect(0)` quickly finds the tensors in them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _recomputing(model: UnifiedModel) -> Iterator[None]:
    """Make layers keep only their inputs, as training does."""
    for unit in model.units:
        recompute_in_backward(unit)
    try:
        yield
    finally:
        for unit in model.units:
            del unit.forward


@contextmanager
def _autocast(kind: Device) -> Iterator[None]:
    """Enter torch.autocast to bf16 even for devices that do not exist here, which torch refuses."""
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, True)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
