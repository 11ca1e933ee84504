"""soundstorm-pytorch and audiolm-pytorch beside the environment of this project, and what their benchmarks share.

Both import packages for data and logging that no model needs; empty modules stand for those.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
