"""soundstorm-pytorch and audiolm-pytorch next to the environment of this project, and what their benchmarks share.

Both import packages for data and logging that no model needs; empty modules stand for those.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.sequence import PackedBatch, Sample, Segment
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, Slot
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.segments import SegmentWriter

INSTALL = "pip install --no-deps --target FOLDER --requirement requirements/token-models.txt, then run with PYTHONPATH=FOLDER"
UNUSED = ("fairseq", "wandb", "joblib")
TOKENIZER = TextTokenizer.train([], vocab_size=261)


def import_peers() -> tuple[Any, Any]:
    """Return soundstorm_pytorch and audiolm_pytorch.audiolm_pytorch; skip the benchmark if they are not installed."""
    if importlib.util.find_spec("soundstorm_pytorch") is None:
        pytest.skip(f"soundstorm-pytorch and audiolm-pytorch are missing: {INSTALL}", allow_module_level=True)
    for name in UNUSED:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    os.environ["TQDM_DISABLE"] = "1"
    import audiolm_pytorch.audiolm_pytorch as audiolm
    import soundstorm_pytorch as soundstorm
    from audiolm_pytorch import t5

    t5.T5_CONFIGS[t5.DEFAULT_T5_NAME] = {"config": SimpleNamespace(d_model=768)}  # its width; asked for even by models without text
    return soundstorm, audiolm


def codes(num_levels: int, size: int, **roles: Any) -> ModalitySpec:
    """Return a modality of codes. Its codec only says how many there are: clips are drawn at random, and none is decoded."""
    codec = Slot("harmonic-codes", {"num_codebooks": num_levels, "codebook_size": size})
    return ModalitySpec(codec=codec, connector=Slot("codes"), **roles)


def built(backbone: Slot, modalities: dict[str, ModalitySpec]) -> tuple[UnifiedModel, SegmentWriter]:
    """Return a model with random weights, those that start at zero included, and the writer of its segments."""
    spec = ModelSpec(backbone=backbone, router=Slot("dense"), modalities=modalities)
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model, segment_writer(model, spec, tokenizer=TOKENIZER)


def samples_of(frames: int) -> int:
    """Return the samples of a clip of so many frames of the codec of `codes`, which has one frame more than its samples fill."""
    return (frames - 1) * 128


def drawn(segment: Segment, num_levels: int, size: int, seed: int = 0) -> Segment:
    """Return the segment with random codes."""
    return segment.with_values(np.random.default_rng(seed).integers(0, size, (num_levels, segment.num_frames)))


def batch_of(contexts: Sequence[Sequence[Segment]], targets: Sequence[Segment]) -> PackedBatch:
    """Return a batch of training, one clip per sample."""
    pairs = zip(contexts, targets, strict=True)
    return PackedBatch.from_samples([Sample(str(i), (*context, target), seed=i) for i, (context, target) in enumerate(pairs)])


def count(module: nn.Module, *, without: Sequence[nn.Module] = ()) -> int:
    """Return the number of parameters."""
    left_out = {id(p) for one in without for p in one.parameters()}
    return sum(p.numel() for p in module.parameters() if id(p) not in left_out)


def seconds(run: Callable[[], object], rounds: int = 1) -> float:
    """Return the least processor time of a call."""
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        run()
        taken.append(time.process_time() - begun)
    return min(taken)


def step(loss: Callable[[], Tensor], module: nn.Module) -> Callable[[], None]:
    """Return a forward and a backward pass."""

    def run() -> None:
        loss().backward()
        module.zero_grad()

    return run


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the least processor time of each, measured in turns, so that both see the same machine."""
    taken = [(seconds(first), seconds(second)) for _ in range(rounds)]
    return min(one for one, _ in taken), min(other for _, other in taken)


def products(model: UnifiedModel, *, tokens: int, keys: int, clips: int = 1, levels: int = 1, backward: bool = False) -> Callable[[], None]:
    """Return the matrix products and the attention of one pass, with nothing between them: the floor of its time.

    Args:
        model: its own weights are used, so that as much memory is read.
        tokens: new tokens of a clip.
        keys: tokens that each of them sees.
        clips: clips of the batch.
        levels: heads of the connector that run.
        backward: whether the gradients of inputs and weights are computed too.
    """
    heads = list(model.made().connector.heads)[:levels]  # type: ignore[arg-type]
    linears = [one for one in [*model.backbone.layers.modules(), *heads] if isinstance(one, nn.Linear)]
    query_heads = next(one.num_heads for one in model.backbone.modules() if hasattr(one, "num_heads"))
    inputs = {one.in_features: torch.randn(clips * tokens, one.in_features, requires_grad=backward) for one in linears}
    query = torch.randn(clips, query_heads, tokens, model.backbone.head_dim, requires_grad=backward)
    pair = [torch.randn(clips, model.backbone.num_kv_heads, keys, model.backbone.head_dim, requires_grad=backward) for _ in range(2)]
    is_shared = query_heads != model.backbone.num_kv_heads

    def run() -> None:
        with torch.set_grad_enabled(backward):
            for one in linears:
                out = functional.linear(inputs[one.in_features], one.weight, one.bias)
                if backward:
                    torch.autograd.grad(out, (inputs[one.in_features], one.weight), torch.ones_like(out))
            for _ in model.backbone.layers:
                mixed = functional.scaled_dot_product_attention(query, *pair, enable_gqa=is_shared)
                if backward:
                    torch.autograd.grad(mixed, (query, *pair), torch.ones_like(mixed))

    return run


def report(what: str, ours: float, theirs: float, floor: float, least: float) -> None:
    """Print the ratio and the floor, and fail if the ratio is below `least`."""
    ratio = theirs / ours
    allowed = f"{ours / floor:.2f} times the floor of {floor:.3g} s, which allows {theirs / floor:.2f}"
    print(f"\n{what}: {ratio:.2f} times as fast, at least {least}; {ours:.3g} s, theirs {theirs:.3g} s; {allowed}")
    assert ratio >= least
