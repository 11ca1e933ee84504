"""Steps 8 to 13: speed and memory, next to what the machine allows and what `soundomni doctor` expects.

Shape letters: P stored tokens, h heads, d head dimensions, N tokens, H hidden dimensions, B clips, C channels, S samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.correctness import audio, text
from benchmarks.gpu.findings import Findings, Number, error, forget_peak, peak, prepare, synchronize, timed
from benchmarks.gpu.models import Built, built_there, pack, spec_of
from soundomni import Audio
from soundomni.core.assembly.chunked import decode_in_chunks, encode_in_chunks
from soundomni.core.attention import plan_attention
from soundomni.core.attention.places import token_places
from soundomni.core.attention.rule import token_rule
from soundomni.core.attention.stored_order import StoredOrder, store
from soundomni.core.full_precision import full_precision
from soundomni.core.inference.decoding import iter_tokens
from soundomni.core.interfaces import Codec
from soundomni.core.sequence import Attend, PackedBatch, Role, SegmentTable
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.upload import upload
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.ema import EMA
from soundomni.train.loop import Progress
from soundomni.train.memory.diagnosis import RESERVE, diagnose
from soundomni.train.parallel import World, parallelize
from soundomni.train.phases import build_optimizers, phases_of
from soundomni.train.state import RunState
from soundomni.train.step import train_step
from soundomni.train.usage import peak_speed

GPU_MEMORY = 139 << 30
BANDWIDTH = 4.8e12
"""Bytes per second of the memory of an H200, from its data sheet."""


def large(
    *,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    tokens: int = 16384,
    seconds: float = 1.0,
    changes: Sequence[str] = (),
) -> Spec:
    """Return the spec `demo` with a large backbone and clips of `seconds`, trained in bf16 with AdamW."""
    width = intermediate_dim
    sizes = f"hidden_dim: {hidden_dim}, num_layers: {num_layers}, num_heads: {num_heads}, intermediate_dim: {width}"
    toys = f"{{size: 100000, seed: 0, seconds: {seconds}, events: [1, 1], variation: 0.0}}"
    return spec_of(
        "demo",
        f"model.backbone={{class_path: mot, init_args: {{{sizes}, gen_intermediate_dim: {width}, qk_norm: gen}}}}",
        "model.tokenizer.vocab_size=300",
        f"data.datasets.toys.source.init_args={toys}",
        "data.datasets.toys.tasks={generate: 1.0}",
        f"data.tokens_per_batch={tokens}",
        f"data.max_tokens_per_sample={tokens}",
        *("train.precision=bf16", "train.ema_decay=0.0", "train.optimizer={rule: adamw, lr: 1.0e-4}"),
        *changes,
    )


class Trainer:
    """A model in training on the device.

    Args:
        made: the model, on the device.
        device: its device.
    """

    def __init__(self, made: Built, device: torch.device) -> None:
        assert made.spec.train is not None
        self.made, self.train, self.world = made, made.spec.train, World(rank=0, size=1, device=device)
        parallelize(made.model, self.world, self.train)
        self.phases = phases_of(made.model, self.train)
        self.optimizer = build_optimizers(made.model, self.phases)

    def step(self, batch: PackedBatch) -> None:
        """Make a step on a batch of the host."""
        train_step(self.made.model, [batch], train=self.train, optimizer=self.optimizer, world=self.world, phases=self.phases, step=10)


def operations(made: Built, batch: PackedBatch) -> float:
    """Return the operations of a training step: six per token and weight of its stream, and those of attention between visible pairs."""
    backbone, table = made.model.backbone, batch.table
    tokens = np.bincount(
        [made.model.router.stream_of(Role(role)) for role in table.token_roles()], minlength=len(made.model.router.streams)
    )
    weights = [sum(p.numel() for p in backbone.expert_parameters(stream) if p.ndim > 1) for stream in made.model.router.streams]
    pairs = visible_pairs(table)
    heads = next(one.num_heads for one in backbone.modules() if hasattr(one, "num_heads"))
    of_attention = 12.0 * pairs * heads * backbone.head_dim * len(backbone.layers)
    return 6.0 * float(np.dot(tokens, weights)) + of_attention


def visible_pairs(table: SegmentTable) -> int:
    """Return the number of pairs of a query and a key that it sees, document by document."""
    rule, pairs = token_rule(table), 0
    for document in range(table.num_documents):
        own = np.flatnonzero(rule.document == document)
        block, noise = rule.block[own], rule.noise[own]
        seen = np.tril(np.ones((len(own), len(own)), dtype=bool)) | ((block[:, None] == block) & (block != -1))
        pairs += int((seen & ((noise == -1) | (noise[:, None] == noise))).sum())
    return pairs


def training(
    kind: str,
    *,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    tokens: int,
    seconds: float,
    rounds: int,
    backend: str,
    cases: Sequence[tuple[bool, bool]],
) -> dict[str, Number]:
    """Time training steps with and without recomputing and compiling, and compare peak memory with the estimate.

    Args:
        kind: "cuda" or "cpu".
        num_layers, hidden_dim, num_heads, intermediate_dim: sizes of the backbone.
        tokens: tokens of a batch.
        seconds: length of each clip.
        rounds: timed steps.
        backend: compiler of torch; "eager" compiles nothing, to try the step itself.
        cases: whether layers are compiled and whether they are recomputed, for each model that is timed.
    """
    device = prepare(kind)
    found = Findings()
    took: dict[tuple[bool, bool], float] = {}
    for compiled, recompute in cases:
        label = f"{'compiled' if compiled else 'eager'}, {'recomputed' if recompute else 'kept'}"
        changes = (f"train.activation_checkpointing={str(recompute).lower()}", f"train.compile={str(compiled).lower()}")
        spec = large(
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            tokens=tokens,
            seconds=seconds,
            changes=changes,
        )
        torch.compiler.reset()
        with _compiling_with(backend):
            made = built_there(spec, device)
            batch = pack(made)[0]
            trainer = Trainer(made, device)
            forget_peak(device)
            begun = time.perf_counter()
            trainer.step(batch)
            synchronize(device)
            if compiled:
                found[f"first step, {label}, s"] = time.perf_counter() - begun
            took[compiled, recompute] = timed(device, partial(trainer.step, batch), rounds=rounds)
        found[f"step, {label}, ms"] = 1e3 * took[compiled, recompute]
        if not compiled:
            if not recompute:
                found["parameters, billions"] = sum(p.numel() for p in made.model.parameters()) / 1e9
                found["tokens"] = batch.table.num_tokens
            _compare_memory(found, label, spec, seconds, device)
        speed = operations(made, batch) / took[compiled, recompute]
        most = peak_speed(torch.cuda.get_device_name(device), precision="bf16") if device.type == "cuda" else None
        if most is not None:
            found[f"MFU, {label}"] = speed / most
        if most is not None and not compiled and not recompute:
            found.require(speed / most > 0.35, f"the MFU is {speed / most:.2f} without compiling and recomputing; expected more than 0.35")
        del trainer, made
    if device.type == "cuda":
        for recompute in (False, True):
            ratio = took[True, recompute] / took[False, recompute]
            what = "recomputed" if recompute else "kept"
            found.require(ratio < 1.02, f"compiled steps take {ratio:.2f} times as long as eager ones ({what}); expected at most as long")
    return found.numbers()


def _compiling_with(backend: str) -> Any:
    """Return a context in which torch.compile uses another compiler; nothing changes for "inductor"."""
    if backend == "inductor":
        return nullcontext()
    return patch("torch.compile", partial(torch.compile, backend=backend))


def _compare_memory(found: Findings, label: str, spec: Spec, seconds: float, device: torch.device) -> None:
    """Compare the peak since `forget_peak` with the estimate of `soundomni doctor`, on a GPU within 15 %."""
    estimate = diagnose(spec, gpus=1, gpu_memory=GPU_MEMORY, seconds=seconds).footprint.total - RESERVE
    found[f"expected peak, {label}, GiB"] = estimate / 2**30
    if device.type == "cuda":
        own = peak(device)
        found[f"peak, {label}, GiB"] = own / 2**30
        found.require(
            abs(own / estimate - 1) < 0.15, f"the peak ({label}) is {own / estimate:.2f} times the estimate; expected within 15 %"
        )


# Attention


def attention(
    kind: str, *, documents: int, words: int, frames: int, heads: int, dim: int, num_layers: int, rounds: int
) -> dict[str, Number]:
    """Time attention of a batch, forward and backward in bf16, and what the batch costs before: planning and copying.

    Args:
        kind: "cuda" or "cpu".
        documents: captions of `words` tokens, each with a target of `frames` tokens.
        words, frames: see documents.
        heads, dim: h and d.
        num_layers: layers of the model that planning is compared with.
        rounds: timed calls.
    """
    device = prepare(kind)
    found = Findings()
    table = SegmentTable.from_samples([[text(words), audio(frames, Attend.NOISE)] for _ in range(documents)])
    stored = store(table, lambda role: int(role == Role.LATENT), 2, multiple=128)
    inputs = [torch.randn(len(stored.order), heads, dim, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    weight = torch.randn_like(inputs[0])
    executors = ("varlen", "flex") if device.type == "cuda" else ("merged",)
    contestants: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        name: plan_attention(table, stored, device=device, executor=name, dtype=torch.bfloat16, head_dim=dim) for name in executors
    }
    contestants["SDPA per segment"] = sdpa_per_segment(table, stored, device)
    took = {}
    for name, attend in contestants.items():

        def run(attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attend) -> None:
            torch.autograd.grad(attend(*inputs), inputs, weight)

        took[name] = timed(device, run, rounds=rounds, warm_up=2)
        found[f"{name}, ms"] = 1e3 * took[name]
    ours = next(iter(took.values()))
    found["tokens"] = table.num_tokens
    speed = 12.0 * visible_pairs(table) * heads * dim / ours / 1e12
    found[f"{executors[0]}, TFLOP/s"] = speed
    planning = timed(device, lambda: plan_attention(table, stored, device=device, dtype=torch.bfloat16, head_dim=dim), rounds=rounds)
    found["planning, ms"] = 1e3 * planning
    waveform = torch.randn(documents, 1, frames * 128)
    found["pinning and copying the clips, ms"] = 1e3 * timed(device, lambda: upload(waveform, device), rounds=rounds)
    if device.type == "cuda":
        share = min(took.values()) / ours
        found.require(share >= 0.9, f"varlen has {share:.2f} of the speed of the fastest; expected at least 0.9")
        share = planning / (num_layers * ours)
        found.require(share < 0.1, f"planning takes {share:.0%} of the attention of {num_layers} layers; expected less than 10 %")
    return found.numbers()


def sdpa_per_segment(table: SegmentTable, stored: StoredOrder, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return attention as one call of SDPA per segment: text sees text causally, a clip its document up to its end."""
    places = token_places(stored)
    calls = []
    for start, length, document, attend in zip(table.start, table.length, table.document, table.attend, strict=True):
        first = int(table.start[np.searchsorted(table.document, document)])
        rows = torch.from_numpy(places[start : start + length]).to(device)
        keys = torch.from_numpy(places[first : start + length]).to(device)
        calls.append((rows, keys, bool(attend == Attend.CAUSAL)))
    order = torch.cat([rows for rows, _, _ in calls])

    def attend_to(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outs = []
        for rows, keys, causal in calls:
            q, k, v = (x.index_select(0, i).transpose(0, 1)[None] for x, i in ((query, rows), (key, keys), (value, keys)))
            outs.append(functional.scaled_dot_product_attention(q, k, v, is_causal=causal)[0].transpose(0, 1))
        return torch.zeros_like(query).index_copy(0, order, torch.cat(outs))

    return attend_to


# Use


def use(
    kind: str,
    *,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    num_tokens: int,
    batch_sizes: Sequence[int],
    seconds: float,
    num_steps: int,
) -> dict[str, Number]:
    """Time each token of a text, with and without cuDNN's attention, and sampling with guidance.

    A token has to read the weights of the text's expert and of the head once: the share of that floor is printed.
    """
    device = prepare(kind)
    found = Findings()
    spec = large(num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads, intermediate_dim=intermediate_dim)
    made = built_there(spec, device)
    pack(made)  # which fits the latents
    clip = Audio(0.1 * np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32), 8000)
    backbone = made.model.backbone
    read = [p for p in backbone.expert_parameters(made.model.router.streams[0]) if p.ndim > 1]
    weights = sum(p.numel() for p in read)
    for half in (True, False):
        for cudnn in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            for rows in batch_sizes:
                label = f"{'bf16' if half else 'fp32'}, {rows} rows, {'with' if cudnn else 'without'} cuDNN"
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                    token_times(made, [clip] * rows, 4, device)
                    taken = token_times(made, [clip] * rows, num_tokens, device)
                median = float(np.median(taken))
                found[f"token, {label}, ms"] = 1e3 * median
                found[f"slowest token, {label}, ms"] = 1e3 * max(taken)
                found[f"share of the floor, {label}"] = weights * (2 if half else 4) / BANDWIDTH / median
                if device.type == "cuda":
                    found.require(max(taken) <= 3 * median, f"a token takes {max(taken) / median:.1f} times the median ({label})")
    torch.backends.cuda.enable_cudnn_sdp(True)
    for half in (True, False):

        def sample(half: bool = half) -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                made.user.generate(["a sine tone"], seconds=seconds, num_steps=num_steps, guidance_scale=3.0)

        found[f"sampling {seconds:g} s in {num_steps} steps, {'bf16' if half else 'fp32'}, s"] = timed(device, sample, rounds=1)
    return found.numbers()


def token_times(made: Built, heard: Sequence[Audio], count: int, device: torch.device) -> list[float]:
    """Return the seconds of each token but the first, which includes the context. Tokens that end texts are not allowed."""
    user = made.user
    contexts = [user.contexts.clip(clip, None) for clip in heard]
    taken, last = [], 0.0
    for _ in iter_tokens(made.model, contexts, tokenizer=cast(Any, _Endless(made)), max_new_tokens=count):
        synchronize(device)
        now = time.perf_counter()
        if last:
            taken.append(now - last)
        last = now
    return taken


class _Endless:
    """The tokenizer of a model without tokens that end texts."""

    def __init__(self, made: Built) -> None:
        self.bos, self.ends = made.tokenizer.bos, ()


# Codec


def codec(kind: str, *, seconds: float, count: int, chunk_seconds: float, sizes: dict[str, Any]) -> dict[str, Number]:
    """Encode and decode long clips with the autoencoder in full size, whole and in chunks."""
    device = prepare(kind)
    found = Findings()
    oobleck = cast(Codec, registry.build("codec", Slot("oobleck", sizes))).to(device)
    spec = oobleck.spec
    samples = round(seconds * spec.sample_rate)
    waveform = 0.1 * torch.randn(count, spec.channels, samples, device=device)
    lengths = torch.full((count,), samples, device=device)
    frames = max(1, round(chunk_seconds * spec.sample_rate / spec.downsampling_ratio))
    results: dict[str, Any] = {}
    with torch.no_grad(), full_precision(device):
        calls: dict[str, Callable[[], Any]] = {
            "encode whole": lambda: oobleck.encode(waveform, lengths),
            "encode in chunks": lambda: encode_in_chunks(oobleck, waveform, lengths, chunk_frames=frames),
            "decode whole": lambda: oobleck.decode(results["encode whole"]),
            "decode in chunks": lambda: decode_in_chunks(oobleck, results["encode whole"], chunk_frames=frames),
        }
        for name, call in calls.items():
            forget_peak(device)

            def run(name: str = name, call: Callable[[], Any] = call) -> None:
                results[name] = call()

            rate = count * seconds / timed(device, run, rounds=1)
            found[f"{name}, peak GiB"] = peak(device) / 2**30
            if device.type == "cuda":
                found.above(f"{name}, seconds per second", rate, 100.0)
            else:
                found[f"{name}, seconds per second"] = rate
    found.below("chunks against whole, encode", error(results["encode in chunks"].values, results["encode whole"].values), 1e-4)
    found.below("chunks against whole, decode", error(results["decode in chunks"], results["decode whole"]), 1e-4)
    return found.numbers()


# Checkpoints


def checkpoint(
    kind: str, *, num_layers: int, hidden_dim: int, num_heads: int, intermediate_dim: int, stall_per_gigabyte: float
) -> dict[str, Number]:
    """Save the whole state of a run, with averages and AdamW, and load it again: the same bits come back."""
    device = prepare(kind)
    found = Findings()
    spec = large(num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads, intermediate_dim=intermediate_dim, tokens=1024)
    made = built_there(spec, device)
    batch, trainer = pack(made)[0], Trainer(made, device)
    trainer.step(batch)
    ema = EMA(made.model, decay=0.99)
    state = RunState(made.model, trainer.optimizer, ema, Progress())
    with TemporaryDirectory() as name:
        checkpointer = Checkpointer(Path(name), trainer.world, keep=1)
        synchronize(device)
        begun = time.perf_counter()
        state.save(checkpointer, trainer.world, identity={})
        stall = time.perf_counter() - begun
        checkpointer.wait()
        total = time.perf_counter() - begun
        path = find_latest(Path(name))
        assert path is not None
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e9
        found["GB"], found["stall, s"], found["total, s"] = size, stall, total
        found["stall, s per GB"] = stall / size
        if device.type == "cuda":
            limit = stall_per_gigabyte
            found.require(stall / size < limit, f"saving stalls for {stall / size:.2g} s per GB; expected less than {limit:g}")
        before = {key: value.clone() for key, value in _everything(state).items()}
        for value in _everything(state).values():
            value.zero_()
        begun = time.perf_counter()
        state.load(path, trainer.world)
        synchronize(device)
        found["load, s"] = time.perf_counter() - begun
        changed = [key for key, value in _everything(state).items() if not torch.equal(value, before[key])]
        found.require(not changed, f"{len(changed)} tensors came back with other bits, the first is {changed[0] if changed else ''}")
    return found.numbers()


def _everything(state: RunState) -> dict[str, Tensor]:
    """Return the tensors of weights, averages and the optimizer."""
    assert state.ema is not None
    tensors = {f"weights {name}": p.detach() for name, p in state.model.named_parameters()}
    tensors |= {f"average {name}": average for name, average in state.ema.averages.items()}
    for name, parameter in state.model.named_parameters():
        tensors |= {f"{key} of {name}": value for key, value in state.optimizer.state.get(parameter, {}).items()}
    return tensors


# Layers of soundomni-7b


def wide_layers(
    kind: str,
    *,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    intermediate_dim: int,
    gen_intermediate_dim: int,
    vocab_rows: int,
    tokens: int,
    seconds: float,
    labels: int,
) -> dict[str, Number]:
    """Time the layers of `soundomni-7b` in training with recomputing, and the loss of text over its vocabulary."""
    device = prepare(kind)
    found = Findings()
    sizes = f"hidden_dim: {hidden_dim}, num_layers: {num_layers}, num_heads: {num_heads}, intermediate_dim: {intermediate_dim}"
    more = f"gen_intermediate_dim: {gen_intermediate_dim}, vocab_rows: {vocab_rows}, qk_norm: gen"
    changes = (
        f"model.backbone={{class_path: mot, init_args: {{{sizes}, {more}}}}}",
        *("model.freeze=[und, embedding, encoder]", "train.activation_checkpointing=true"),
    )
    spec = large(
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        intermediate_dim=intermediate_dim,
        tokens=tokens,
        seconds=seconds,
        changes=changes,
    )
    made = built_there(spec, device)
    batch, trainer = pack(made)[0], Trainer(made, device)
    forget_peak(device)
    trainer.step(batch)
    _compare_memory(found, f"{num_layers} layers", spec, seconds, device)
    whole = timed(device, lambda: trainer.step(batch), rounds=2)
    found["tokens"], found["step, ms"] = batch.table.num_tokens, 1e3 * whole
    kept, layers = num_layers // 2, made.model.backbone.layers
    made.model.backbone.layers = layers[:kept]
    less = timed(device, lambda: trainer.step(batch), rounds=2)
    found["layer, ms"] = 1e3 * (whole - less) / (num_layers - kept)
    made.model.backbone.layers = layers
    hidden = torch.randn(labels, hidden_dim, device=device, requires_grad=True)
    ids = torch.randint(vocab_rows, (labels,), device=device)
    rows = torch.arange(labels, device=device)

    def of_text() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            total, _ = made.model.text_loss(hidden, ids, rows)
        total.backward()

    forget_peak(device)
    before = peak(device)
    found[f"text loss of {labels} labels, ms"] = 1e3 * timed(device, of_text, rounds=2)
    found[f"text loss of {labels} labels, GiB more"] = (peak(device) - before) / 2**30
    return found.numbers()
