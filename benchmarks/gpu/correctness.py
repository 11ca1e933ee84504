"""Steps 1 to 5: results on the GPU are those of the CPU.

Shape letters: P stored tokens, h heads, h_kv key-value heads, d head dimensions, B clips, C channels, S samples.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings, Number, cosine, error, prepare
from benchmarks.gpu.models import Built, built, gradients, nano, pack, spec_of
from benchmarks.gpu.outcomes import Failed
from soundomni import Audio, Kept
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention import plan_attention
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.stored_order import store
from soundomni.core.full_precision import full_precision
from soundomni.core.interfaces import Codec
from soundomni.core.sequence import Attend, PackedBatch, Role, Segment, SegmentTable
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.data.toys.toy_language import parse_caption
from soundomni.data.toys.toy_recipe import agreement
from soundomni.evaluation.toy_attributes import heard_recipe
from soundomni.train.ema import EMA
from soundomni.train.loss_weighting import loss_shares, weighted_loss
from soundomni.train.parallel import World
from soundomni.train.phases import build_optimizers, phases_of
from soundomni.train.step import train_step

FP32, BF16 = torch.float32, torch.bfloat16


# Attention


def text(length: int) -> Segment:
    """Return causal text."""
    return Segment(role=Role.TEXT, attend=Attend.CAUSAL, length=length, token_ids=np.zeros(length, np.int64))


def audio(length: int, attend: Attend, role: Role = Role.LATENT) -> Segment:
    """Return a clip of `length` tokens, boundaries included."""
    return Segment(role=role, attend=attend, length=length, token_ids=np.zeros(2, np.int64))


def layouts(unit: int) -> dict[str, list[list[Segment]]]:
    """Return layouts of batches of 16 * `unit` tokens each: with one length, flex compiles few kernels. `unit` is at least 8 and even."""
    noise, full, half = Attend.NOISE, Attend.FULL, unit // 2
    turns = [text(unit), audio(2 * unit, full), text(half), audio(unit, full, Role.FEATURES), text(half), audio(3 * unit, noise)]
    heard = [audio(3 * unit, Attend.CAUSAL, Role.FEATURES), text(unit), audio(4 * unit, noise)]
    found = {
        "text to audio": [[text(unit), audio(3 * unit, noise)] for _ in range(4)],
        "interleaved": [turns, turns],
        "ragged": [[text(3 + i), audio(unit + 5 * i, noise)] for i in range(5)],
        "causal features": [heard, heard],
        "only text": [[text(4 * unit)], [text(unit)]],
    }
    for documents in found.values():
        left = 16 * unit - sum(segment.length for document in documents for segment in document)
        documents += [[text(left)]] if left else []
    return found


def _attended(plan: AttentionPlan, inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Return the output and the three gradients, in fp32."""
    own = [x.detach().clone().requires_grad_() for x in inputs]
    out = plan(*own)
    return [x.float() for x in (out, *torch.autograd.grad(out, own, weight.to(out.dtype)))]


def _can_run(executor: str, layout: str, dtype: torch.dtype, dim: int) -> bool:
    """Return whether an executor is compared: varlen where its kernels take what they get, and flex where a few kernels are enough."""
    if executor == "varlen":
        return dtype == BF16 and layout != "interleaved"
    return executor != "flex" or dim == 64


def attention(kind: str, *, unit: int, dims: Sequence[int], odd_dims: Sequence[int]) -> dict[str, Number]:
    """Compare executors with dense attention in fp32: the output and three gradients, by the largest error of a tensor's scale."""
    device = prepare(kind)
    found = Findings()
    executors = ("varlen", "flex", "padded") if device.type == "cuda" else ("merged", "padded")
    worst: dict[tuple[str, torch.dtype], tuple[float, str]] = {}
    for name, documents in layouts(unit).items():
        table = SegmentTable.from_samples(documents)
        stored = store(table, lambda role: int(role == Role.LATENT), 2, multiple=128)
        reference = plan_attention(table, stored, device=device, executor="reference")
        for dim, heads_kv in [(dim, heads_kv) for dim in (*dims, *odd_dims) for heads_kv in (2, 4)]:
            exact = [torch.randn(len(stored.order), heads, dim, device=device) for heads in (4, heads_kv, heads_kv, 4)]
            for dtype in (FP32, BF16):
                given = [x.to(dtype) for x in exact]
                expected = _attended(reference, [x.float() for x in given[:3]], given[3].float())
                tried = [e for e in executors if dim in dims and _can_run(e, name, dtype, dim)]
                for executor in (*tried, *(["auto"] if dim in odd_dims else [])):
                    plan = plan_attention(table, stored, device=device, executor=executor, dtype=dtype, head_dim=dim)
                    results = _attended(plan, given[:3], given[3])
                    size = max(error(one, other) for one, other in zip(results, expected, strict=True))
                    label = f"auto with d = {dim}, which takes {plan.executor}" if executor == "auto" else executor
                    case = (size, f"{name}, d = {dim}, {heads_kv} key-value heads")
                    worst[label, dtype] = max(worst.get((label, dtype), (-1.0, "")), case)
    for (label, dtype), (size, case) in worst.items():
        limit = 1e-4 if dtype == FP32 else 2e-2
        kind = "fp32" if dtype == FP32 else "bf16"
        found[f"{label}, {kind}"] = size
        found.require(size < limit, f"{label} in {kind} is off by {size:.2g} of the scale; expected less than {limit:g} ({case})")
    return found.numbers()


# Codecs


@contextmanager
def rounding(tf32: bool) -> Iterator[None]:
    """Compute convolutions and products of fp32 on the GPU in TF32, or exactly, within this context. Products are exact afterwards."""
    backends: Any = torch.backends
    kinds = (backends.cudnn.conv, backends.cudnn.rnn)
    before = [kind.fp32_precision for kind in kinds]
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")  # as programs do
        for kind in kinds:
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for kind, old in zip(kinds, before, strict=True):
            kind.fp32_precision = old


def codecs(kind: str, *, seconds: float, base_channels: int) -> dict[str, Number]:
    """Encode and decode four ragged clips on the CPU and on the GPU, in fp32, and in TF32, which nothing in the package uses."""
    device = prepare(kind)
    found = Findings()
    sizes: dict[str, dict[str, Any]] = {
        "mdct": {"sample_rate": 8000, "channels": 1, "frame_size": 128},
        "mdct-shape-gain": {"sample_rate": 8000, "channels": 1, "frame_size": 128},
        "harmonic": {"sample_rate": 8000, "channels": 1, "frame_size": 128, "num_harmonics": 15, "pitch_range": [125, 1000]},
        "oobleck": {"sample_rate": 8000, "channels": 1, "base_channels": base_channels, "latent_dim": 16},
    }
    limits = {"mdct": 1e-5, "mdct-shape-gain": 1e-4, "harmonic": 1e-3, "oobleck": 1e-4}
    waveform, lengths = clips(seconds)
    for name, arguments in sizes.items():
        cpu = cast(Codec, registry.build("codec", Slot(name, arguments)))
        gpu = deepcopy(cpu).to(device)
        with torch.no_grad():
            encoded = cpu.encode(waveform, lengths)
            decoded = cpu.decode(encoded)
            given = type(encoded)(encoded.values.to(device), encoded.lengths.to(device), encoded.spec)
            for tf32 in (False, True):
                with rounding(tf32):
                    values = gpu.encode(waveform.to(device), lengths.to(device)).values
                    errors = {"encode": error(values, encoded.values), "decode": error(gpu.decode(given), decoded)}
                for what, size in errors.items():
                    if tf32:
                        found[f"{name} {what} in TF32"] = size
                    else:
                        found.below(f"{name} {what}", size, limits[name])
            with rounding(True), torch.autocast(device.type, dtype=BF16), full_precision(device):
                found.below(f"{name} decode as models do", error(gpu.decode(given), decoded), limits[name])
    return found.numbers()


def clips(seconds: float, count: int = 4) -> tuple[Tensor, Tensor]:
    """Return clips of tones and noise at 8 kHz of several lengths up to `seconds`, `[B, C, S]`, and their lengths."""
    samples = round(8000 * seconds)
    lengths = torch.tensor([samples - index * samples // (2 * count) for index in range(count)])
    time = torch.arange(samples) / 8000
    noise = 0.05 * torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(3))
    tones = torch.stack([0.3 * torch.sin(2 * math.pi * 220 * (index + 1) * time) for index in range(count)])
    return (noise + tones[:, None]) * (torch.arange(samples) < lengths[:, None])[:, None], lengths


# Models


def gradients_of(
    model: UnifiedModel, batch: PackedBatch, weights: Mapping[str, float], *, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the mean of each loss of a batch, and the gradients of their weighted sum."""
    model.zero_grad(set_to_none=True)
    given = batch.to(model.device)
    with torch.autocast(model.device.type, dtype=BF16, enabled=dtype == BF16):
        terms = model(given)
    shares = loss_shares(terms, model.count_terms(batch), 1)
    weighted_loss(shares, weights).backward()
    return {name: share.item() for name, share in shares.items()}, gradients(model)


def gradients_agree(kind: str, *, tokens: int) -> dict[str, Number]:
    """Compare the losses and all gradients of a packed batch between the CPU in fp32 and the GPU in fp32 and bf16."""
    device = prepare(kind)
    found = Findings()
    for name in ("demo", "nano"):
        spec = spec_of(name, f"data.tokens_per_batch={tokens}", "data.max_tokens_per_sample=256", "model.tokenizer.vocab_size=300")
        if name == "nano":
            user = nano(torch.device("cpu"))
            made = Built(spec, user.tokenizer, user.model)
        else:
            made = built(spec)
        batch = pack(made)[0]
        assert spec.train is not None
        losses, expected = gradients_of(made.model, batch, spec.train.loss_weights, dtype=FP32)
        model = deepcopy(made.model).to(device)
        for dtype, kind, most, least in ((FP32, "fp32", 1e-4, 0.9999), (BF16, "bf16", 2e-2, 0.99)):
            others, own = gradients_of(model, batch, spec.train.loss_weights, dtype=dtype)
            worst = max(abs(others[loss] - value) / max(abs(value), 1e-6) for loss, value in losses.items())
            found.below(f"{name} loss error, {kind}", worst, most)
            found.above(f"{name} gradient cosine, {kind}", cosine(own.values(), expected.values()), least)
            each = [cosine([own[key]], [other]) for key, other in expected.items() if other.any()]
            found[f"{name} least cosine of a tensor, {kind}"] = min(each)
    return found.numbers()


PROMPTS = ("a loud sine tone at A4", "a rising chirp", "two clicks", "white noise")


def use(kind: str, *, num_steps: int | None, num_clips: int) -> dict[str, Number]:
    """Generate, continue, vary and describe with `nano` on the CPU and on the GPU; in bf16, the clips follow the prompts as well."""
    device = prepare(kind)
    found = Findings()
    cpu, gpu = nano(torch.device("cpu")), nano(device)
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(num_clips)]
    asked: dict[str, Any] = {"seconds": 1.0, "num_steps": num_steps}
    expected = cpu.generate(prompts, **asked)
    generated = gpu.generate(prompts, **asked)
    found.below("generate", _distance(generated, expected), 1e-3)
    given: dict[str, dict[str, Any]] = {
        "continue": {"known": Kept(expected[0], [(0.0, 0.4)])},
        "vary": {"vary": expected[1], "strength": 0.5},
    }
    for name, edit in given.items():
        own, other = (user.generate(prompts[:1], **asked, **edit) for user in (gpu, cpu))
        found.below(name, _distance(own, other), 1e-3)
    texts, own_texts = cpu.describe(expected, max_new_tokens=32), gpu.describe(expected, max_new_tokens=32)
    found["texts"] = own_texts
    found.require(own_texts == texts, f"the texts are {own_texts}; expected {texts}")
    with torch.autocast(device.type, dtype=BF16):
        rounded = gpu.generate(prompts, **asked)
        found["texts in bf16"] = gpu.describe(expected, max_new_tokens=32)
    found["difference of clips in bf16"] = _distance(rounded, expected)
    exact, score = prompt_score(prompts, expected), prompt_score(prompts, rounded)
    found["prompt score on the CPU"], found["prompt score in bf16"] = exact, score
    # One attribute in twenty may turn over: rounding leads to a different clip.
    found.require(score >= exact - 0.05, f"in bf16, {score:.0%} of the attributes are as the prompts say; expected {exact:.0%}, as in fp32")
    return found.numbers()


def _distance(own: Sequence[Audio], others: Sequence[Audio]) -> float:
    """Return the largest error of any clip, relative to its peak."""
    return max(error(torch.from_numpy(one.waveform), torch.from_numpy(other.waveform)) for one, other in zip(own, others, strict=True))


def prompt_score(prompts: Sequence[str], made: Sequence[Audio]) -> float:
    """Return the share of attributes in captions of toy sounds that signal analysis finds in the clips."""
    right: list[bool] = []
    for prompt, clip in zip(prompts, made, strict=True):
        recipe = parse_caption(prompt)
        assert recipe is not None, prompt
        right += agreement(recipe, heard_recipe(clip)).values()
    return sum(right) / len(right)


KINDS = {
    "shared keys": (
        "model.backbone={class_path: mot, init_args: {hidden_dim: 64, num_layers: 3, num_heads: 4, num_kv_heads: 2, head_dim: 32}}",
        """model.encoder={class_path: qwen2-audio, init_args: {num_mel_bins: 16, d_model: 32, num_layers: 2, num_heads: 2, ffn_dim: 48,
        max_source_positions: 50}}""",
        """model.codec={class_path: oobleck, init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2],
        strides: [8, 8], latent_dim: 8, sample_latents: true}}""",
        *("model.feature_attend=causal", "model.normalize=channel", "model.connectors.latent=mlp", "model.objective=flow-matching"),
    ),
    "mixture": (
        "model.backbone={class_path: mot, init_args: {hidden_dim: 64, num_layers: 3, num_heads: 4, qk_norm: all}}",
        "model.router={class_path: top-k, init_args: {num_experts: 3}}",
    ),
    "adapters": (
        "model.backbone={class_path: mot, init_args: {hidden_dim: 64, num_layers: 3, num_heads: 4, qk_norm: all}}",
        "train.lora={streams: [gen, und], kind: dora, rank: 4}",
    ),
}
"""Kind of model → what is changed in the spec `demo`."""


def kinds(kind: str, *, tokens: int, rules: Sequence[str]) -> dict[str, Number]:
    """Train small models of several kinds for two steps with each optimizer, on the CPU and on the GPU in fp32, and on the GPU in bf16."""
    device = prepare(kind)
    found = Findings()
    for name, changes in KINDS.items():
        sizes = (f"data.tokens_per_batch={tokens}", "data.max_tokens_per_sample=256", "model.tokenizer.vocab_size=300")
        made = built(spec_of("demo", *changes, *sizes))
        batches = pack(made, 2)
        for rule in rules:
            if rule == "adamw-8bit" and importlib.util.find_spec("bitsandbytes") is None:
                found[rule] = "not run: bitsandbytes is missing"
                continue
            expected = _steps(deepcopy(made), batches, rule, torch.device("cpu"), "fp32")
            for precision, limit in (("fp32", 1e-3), ("bf16", 5e-2)):
                own = _steps(deepcopy(made), batches, rule, device, precision)
                size = max(abs(one / other - 1) for one, other in zip(own, expected, strict=True))
                found.below(f"{name}, {rule}, {precision}", size, limit)
    return found.numbers()


def _steps(made: Built, batches: Sequence[PackedBatch], rule: str, device: torch.device, precision: str) -> list[float]:
    """Make a step on each batch; return the losses and gradient norms of all steps, and the norm of the averaged weights."""
    spec = made.spec.train
    assert spec is not None
    train = replace(spec, precision=precision, optimizer=replace(spec.optimizer, rule=Slot(rule), lr=1e-3))
    model = made.model.to(device)
    if precision == "fp32" and device.type == "cuda":
        model.executor = "padded"  # step 3 compiles flex for fp32; here, many small kernels would only take time
    optimizer, ema = build_optimizers(model, phases_of(model, train)), EMA(model, decay=0.9)
    world = World(rank=0, size=1, device=device)
    numbers: list[float] = []
    for batch in batches:
        result = train_step(model, [batch], train=train, optimizer=optimizer, world=world)
        ema.update(model, skipped=result.skipped)
        read = result.read(train)
        if not read.is_finite:
            raise Failed(f"a step with {rule} in {precision} is not finite: {read}")
        numbers += [*read.losses.values(), *read.grad_norms.values()]
    return [*numbers, float(torch.stack([average.square().sum() for average in ema.averages.values()]).sum().sqrt())]
