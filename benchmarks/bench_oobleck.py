"""Stable Audio's autoencoder at full size on the CPU, against diffusers' with the same weights.

Both have to give the same latents and the same samples before a timing counts. The floor is what the convolutions take: it
leaves out the activations. Run on one thread: `OMP_NUM_THREADS=1 pytest benchmarks/bench_oobleck.py -s`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peers
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from soundomni.core.cpu_memory import reuse_cpu_memory
from soundomni.core.representation import Representation
from soundomni.vae import OobleckCodec, SnakeBeta
from soundomni.vae.checkpoints.stable_audio_layouts import to_layout

SECONDS = 2.0
LEAST = 1.2


@pytest.fixture(scope="module")
def both() -> tuple[OobleckCodec, nn.Module]:
    """Our codec and diffusers', with the same random weights."""
    from diffusers import AutoencoderOobleck

    reuse_cpu_memory()
    torch.manual_seed(0)
    ours = OobleckCodec().eval()
    theirs = AutoencoderOobleck().eval()
    state = to_layout(ours.state_dict(), "diffusers-oobleck")
    spelled = {
        name.replace("weight_g", "parametrizations.weight.original0").replace("weight_v", "parametrizations.weight.original1"): tensor
        for name, tensor in state.items()
    }
    theirs.load_state_dict(spelled if any("parametrizations" in name for name in theirs.state_dict()) else state)
    return ours, theirs


@contextmanager
def without_activations() -> Iterator[None]:
    """Leave out the activations."""
    forward = SnakeBeta.forward
    SnakeBeta.forward = lambda self, values: values  # type: ignore[method-assign]
    try:
        yield
    finally:
        SnakeBeta.forward = forward  # type: ignore[method-assign]


def compare(what: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], benchmark: Any) -> None:
    """Check that both give the same, time them in turns, and print the ratio."""
    with torch.inference_mode():
        expected = theirs()
        assert float((ours() - expected).abs().max() / expected.abs().max()) < 1e-4
        mine, yours = peers.in_turns(ours, theirs, rounds=3)
        with without_activations():
            floor = min(peers.seconds(ours) for _ in range(3))
        benchmark.pedantic(ours, rounds=1)
    peers.report(f"{what} {SECONDS:g} s", mine, yours, floor, LEAST)


@pytest.mark.benchmark(group="oobleck")
def test_encoding(benchmark: Any, both: tuple[OobleckCodec, nn.Module]) -> None:
    """Encode to the mean."""
    ours, theirs = both
    samples = round(SECONDS * 44100) // 2048 * 2048
    waveform = 0.1 * torch.randn(1, 2, samples)
    lengths = torch.tensor([samples])

    def encode() -> Tensor:
        with parametrize.cached():
            return ours.encode(waveform, lengths).values

    compare("encoding", encode, lambda: theirs.encode(waveform).latent_dist.mean, benchmark)


@pytest.mark.benchmark(group="oobleck")
def test_decoding(benchmark: Any, both: tuple[OobleckCodec, nn.Module]) -> None:
    """Decode latents."""
    ours, theirs = both
    frames = round(SECONDS * 44100) // 2048
    given = Representation(torch.randn(1, 64, frames), torch.tensor([frames]), ours.spec)

    def decode() -> Tensor:
        with parametrize.cached():
            return ours.decode(given)

    compare("decoding", decode, lambda: theirs.decode(given.values).sample, benchmark)
