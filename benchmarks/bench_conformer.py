"""The Conformer on packed clips, against the plain formulation on padded ones: `OMP_NUM_THREADS=1 pytest benchmarks/bench_conformer.py`.

Both have the same weights. The plain one pads all clips of a batch to the longest: linear layers on `[B, T, H]`, attention with a
mask of keys, and a convolution of `[B, C, T]` with padding set to zero before it. Outputs and gradients must agree before a timing
counts.

Shape letters: B clips, T frames, H hidden dimensions, C channels, N frames of all clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soundomni.core.attention import plan_attention
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.stored_order import store
from soundomni.core.representation import length_mask
from soundomni.core.sequence import Attend, Role, Segment, SegmentTable
from soundomni.experts import ConformerBackbone, ConformerExpert, DenseRouter
from soundomni.experts.rope import rope_tables, rotate

SIZES = {"hidden_dim": 256, "num_layers": 2, "num_heads": 4, "intermediate_dim": 1024}
LENGTHS = {
    "equal": [128] * 8,
    "drawn": sorted(np.random.default_rng(0).integers(20, 250, 8).tolist()),
    "one long": [16] * 12 + [750],
}
"""Frames of the clips of a batch: padding wastes nothing, about half, and most of it."""
FLOORS = {"equal": 0.8, "drawn": 1.3, "one long": 4.0}
"""Least speed of packed clips over padded ones."""
ROUNDS = 3


def padded(backbone: ConformerBackbone, hidden: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Map `[B, T, H]` to `[B, T, H]`, undefined beyond the clips."""
    real = length_mask(lengths, hidden.shape[1])
    for layer in backbone.layers:
        expert: ConformerExpert = layer.experts["all"]
        convolution, depthwise = expert.convolution, expert.convolution.depthwise
        hidden = hidden + 0.5 * expert.first(expert.first_norm(hidden))
        query, key, value = expert.qkv(expert.attention_norm(hidden)).unflatten(-1, (3, -1, expert.head_dim)).unbind(2)
        turned = [rotate(x.flatten(0, 1), cos, sin).view_as(x).transpose(1, 2) for x in (query, key)]
        mixed = F.scaled_dot_product_attention(*turned, value.transpose(1, 2), attn_mask=real[:, None, None])
        hidden = hidden + expert.output(mixed.transpose(1, 2).flatten(2))
        gated = F.glu(convolution.gated(convolution.norm(hidden))) * real[..., None]
        convolved = F.conv1d(gated.transpose(1, 2), depthwise.weight, depthwise.bias, padding=depthwise.reach, groups=gated.shape[-1])
        hidden = hidden + convolution.pointwise(convolution.inner_norm(F.silu(convolved.transpose(1, 2))))
        hidden = expert.norm(hidden + 0.5 * expert.second(expert.second_norm(hidden)))
    return hidden


class Case:
    """A batch of clips, packed and padded."""

    def __init__(self, lengths: list[int]) -> None:
        torch.manual_seed(0)
        self.backbone = ConformerBackbone(vocab_size=8, router=DenseRouter(), **SIZES)  # type: ignore[arg-type]
        clips = [Segment(role=Role.TEXT, attend=Attend.NOISE, length=n, token_ids=np.zeros(n, dtype=np.int64)) for n in lengths]
        table = SegmentTable.from_samples([(clip,) for clip in clips])
        stored = store(table, lambda role: 0, 1)
        plan = plan_attention(table, stored, device=torch.device("cpu"))
        self.layout = Layout(stored, torch.from_numpy(stored.position_ids), plan)
        frames = [torch.randn(n, SIZES["hidden_dim"]) for n in lengths]
        self.packed, self.padded = torch.cat(frames), torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        self.lengths = torch.tensor(lengths)
        positions = torch.arange(max(lengths)).repeat(len(lengths))
        theta = self.backbone.rope_theta
        self.rope = rope_tables(positions, head_dim=self.backbone.head_dim, theta=theta, dtype=torch.float32)

    def run_packed(self) -> Tensor:
        """Return the frames of all clips, `[N, H]`."""
        return self.backbone([self.packed], self.layout)[0][0]

    def run_padded(self) -> Tensor:
        """Return the frames of all clips, `[N, H]`."""
        out = padded(self.backbone, self.padded, self.lengths, *self.rope)
        return out[length_mask(self.lengths, self.padded.shape[1])]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both passes"])
@pytest.mark.parametrize("name", list(LENGTHS))
def test_conformer(benchmark: Any, name: str, backward: bool) -> None:
    """Measure frames per second of both, in turns in one process."""
    case = Case(LENGTHS[name])
    runs = {"packed": case.run_packed, "padded": case.run_padded}
    parameters = list(case.backbone.layers.parameters())
    outs = [run() for run in runs.values()]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-3, atol=1e-4)
    grads = [torch.autograd.grad(out.square().mean(), parameters) for out in outs]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-5)
    seconds = {key: min(_timed(run, parameters, backward) for _ in range(ROUNDS)) for key, run in runs.items()}
    benchmark.pedantic(lambda: _timed(case.run_packed, parameters, backward), rounds=1)
    ratio = seconds["padded"] / seconds["packed"]
    benchmark.extra_info["frames_per_second"] = int(case.lengths.sum()) / seconds["packed"]
    benchmark.extra_info["packed_over_padded"] = ratio
    print(f"{name}, {'both passes' if backward else 'forward'}: {ratio:.2f} times as fast packed, floor {FLOORS[name]}")
    assert ratio >= FLOORS[name]


def _timed(run: Callable[[], Tensor], parameters: list[torch.nn.Parameter], backward: bool) -> float:
    """Return the seconds of processor time of one pass."""
    with torch.set_grad_enabled(backward):
        begin = time.process_time()
        out = run()
        if backward:
            torch.autograd.grad(out.square().mean(), parameters)
        return time.process_time() - begin
