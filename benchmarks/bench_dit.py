"""A training step of the diffusion transformer on clips of 2 to 47 seconds, packed here and padded in stable-audio-tools.

Both have 6 layers of hidden size 256 with 4 heads, 64 latent dimensions, 21.5 latents a second, and 34 condition tokens for each clip.
There, a batch is padded to 1024 latents, as their training does. Lengths are drawn evenly, so a perfect pack has about 0.51 of the padded
tokens. The tests compare the outputs of both at these and other sizes (tests/experts/test_dit.py). Run on one thread:

    OMP_NUM_THREADS=1 pytest -s benchmarks/bench_dit.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peers
import pytest
import torch
from torch import Tensor

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, SegmentTemplate, Slot

dit = pytest.importorskip("stable_audio_tools.models.dit", reason="stable-audio-tools is missing: make test installs it")

HIDDEN, LAYERS, HEADS, LATENT, PADDED, RATE = 256, 6, 4, 64, 1024, 44100 / 2048
CLIPS, PROMPT, LEAST = 16, "a text of thirty-three bytes here", 1.6


def frames_of(seed: int = 0) -> list[int]:
    """Return the latents of clips of 2 to 47 seconds."""
    return [int(seconds * RATE) for seconds in np.random.default_rng(seed).uniform(2, 47, CLIPS)]


class Ours:
    """Our model, and a packed batch of clips that are encoded already."""

    def __init__(self, frames: list[int]) -> None:
        codec = Slot("mdct", {"sample_rate": 44100, "frame_size": LATENT})
        made = ModalitySpec(
            codec=codec, connector=Slot("residual-linear"), objective=Slot("v-prediction"), sampler=Slot("dpmpp-3m-sde"), normalize="none"
        )
        text = {"feature_dim": HIDDEN, "num_layers": 1, "num_heads": 1}
        prompt = ModalitySpec(encoder=Slot("bytes", text), connector=Slot("identity"), enters="cross")
        backbone = Slot("dit", {"hidden_dim": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS})
        spec = ModelSpec(
            backbone=backbone,
            router=Slot("dense"),
            modalities={"latent": made, "prompt": prompt},
            prompt=[SegmentTemplate(text="{caption}", of="prompt")],
        )
        self.model = build_model(spec, vocab_size=peers.TOKENIZER.vocab_size)
        writer = segment_writer(self.model, spec, tokenizer=peers.TOKENIZER)
        rng = np.random.default_rng(0)
        samples = []
        for i, count in enumerate(frames):
            values = rng.standard_normal((LATENT, count)).astype(np.float32)
            target = writer.target((count - 1) * LATENT).with_values(values)
            samples.append(Sample(str(i), (writer.condition(PROMPT, of="prompt"), target), seed=i))
        self.batch = PackedBatch.from_samples(samples)

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        total, count = self.model(self.batch)["velocity"]
        return total / count


class Theirs:
    """Their transformer, and a batch that is padded."""

    def __init__(self) -> None:
        self.model = dit.DiffusionTransformer(
            io_channels=LATENT, embed_dim=HIDDEN, depth=LAYERS, num_heads=HEADS, cond_token_dim=HIDDEN, project_cond_tokens=False
        )
        torch.manual_seed(0)
        self.values, self.target = torch.randn(2, CLIPS, LATENT, PADDED)
        self.times, self.prompts = torch.rand(CLIPS), torch.randn(CLIPS, len(PROMPT) + 1, HIDDEN)

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        output = self.model._forward(self.values, self.times, cross_attn_cond=self.prompts, use_checkpointing=False)
        return (output - self.target).square().mean()


@pytest.mark.benchmark(group="dit")
def test_training_step(benchmark: Any) -> None:
    """Compute the gradients of clips of 2 to 47 seconds."""
    frames = frames_of()
    ours, theirs = Ours(frames), Theirs()
    unused = [ours.model.unplaced["prompt"].encoder]
    assert peers.count(ours.model, without=unused) == pytest.approx(peers.count(theirs.model), rel=0.02)
    step, other = peers.step(ours.loss, ours.model), peers.step(theirs.loss, theirs.model)
    step(), other()
    mine, yours = peers.in_turns(step, other, rounds=3)
    benchmark.pedantic(step, rounds=1)
    real = sum(frames)
    print(
        f"\n{CLIPS} clips with {real} latents: {real / mine:.0f} latents/s packed, {real / yours:.0f} padded to {PADDED}: "
        f"{yours / mine:.2f} times as fast; the padded batch has {CLIPS * PADDED / real:.2f} times as many"
    )
    assert yours / mine >= LEAST
