"""Making and learning 12 levels of codes with a Conformer, against soundstorm-pytorch 0.6.1 at the sizes of its README.

Both have hidden size 512, 2 layers of 8 heads, kernels of 31 taps and 12 levels of 1024 codes. There, each head has a projection of its
own before it. So we compare twice: with feed-forward networks as wide as there (2048, a tenth fewer parameters), and with wider ones
(2816, as many parameters). The floor is the time of the matrix products and the attention of our network only. Run on one thread, with both
packages on the path:

    pip install --no-deps --target FOLDER --requirement requirements/token-models.txt
    PYTHONPATH=FOLDER OMP_NUM_THREADS=1 pytest -s benchmarks/bench_soundstorm.py
"""

from __future__ import annotations

from typing import Any

import peers
import pytest
import torch

from soundomni.core.assembly.build import build_sampler
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.spec.schema import GuidanceSpec, Slot

soundstorm, _ = peers.import_peers()

LEVELS, SIZE, FRAMES, CLIPS, DIM, DEPTH = 12, 1024, 1024, 2, 512, 2
CASES = {
    "as many parameters, 27 passes": (2816, 16),
    "as many parameters, 27 and 29 passes, the defaults": (2816, 18),
    "equal widths, 27 passes": (2048, 16),
}
"""Width of our feed-forward networks, and passes of the first level there; here they are 16. All further levels have one each."""
LEAST = {2816: 2.5, 2048: 3.0}
"""Least ratio, by width."""
SHARES = {2816: 1.0, 2048: 0.9}
"""Our parameters as a share of theirs, by width."""


def ours(width: int) -> tuple[Any, Any, Any]:
    """Return our model, a clip to make, and a function that makes it."""
    acoustic = peers.codes(LEVELS, SIZE, objective=Slot("masked"), sampler=Slot("maskgit"))
    sizes = {"hidden_dim": DIM, "num_layers": DEPTH, "num_heads": 8, "intermediate_dim": width, "kernel_size": 31}
    model, writer = peers.built(Slot("conformer", sizes), {"acoustic": acoustic})
    slot, sampler = writer.target(peers.samples_of(FRAMES)), build_sampler(Slot("maskgit"))
    requests = [AudioRequest(context=(), slot=slot, seed=0)]
    return model, slot, lambda: sample_audio(model, requests, sampler=sampler, guidance=GuidanceSpec(scale=1.0)).values


def theirs(steps: int) -> Any:
    """Return their model as in the README."""
    torch.manual_seed(0)
    conformer = soundstorm.ConformerWrapper(codebook_size=SIZE, num_quantizers=LEVELS, conformer={"dim": DIM, "depth": DEPTH})
    return soundstorm.SoundStorm(conformer, steps=steps, schedule="cosine")


@pytest.mark.benchmark(group="soundstorm")
@pytest.mark.parametrize("case", list(CASES))
def test_generation(benchmark: Any, case: str) -> None:
    """Make a clip of 1024 frames."""
    width, passes = CASES[case]
    (model, _, make), other = ours(width), theirs(passes)
    assert peers.count(model) == pytest.approx(SHARES[width] * peers.count(other), rel=0.02)
    assert make().numel() == other.generate(FRAMES, batch_size=1).numel() == LEVELS * FRAMES
    mine, yours = peers.in_turns(make, lambda: other.generate(FRAMES, batch_size=1), rounds=1)
    floor = 27 * peers.seconds(peers.products(model, tokens=FRAMES, keys=FRAMES), rounds=3)
    benchmark.pedantic(make, rounds=1)
    peers.report(f"making {FRAMES} frames, {case}", mine, yours, floor, least=LEAST[width])


@pytest.mark.benchmark(group="soundstorm")
def test_training_step(benchmark: Any) -> None:
    """Compute the gradients of two clips of 1024 frames."""
    (model, slot, _), other = ours(2816), theirs(18)
    batch = peers.batch_of([()] * CLIPS, [peers.drawn(slot, LEVELS, SIZE, seed) for seed in range(CLIPS)])
    codes = torch.randint(0, SIZE, (CLIPS, FRAMES, LEVELS))

    def loss() -> torch.Tensor:
        total, number = model(batch)["masked"]
        return total / number

    step, yours = peers.step(loss, model), peers.step(lambda: other(codes.clone())[0], other)
    step(), yours()
    mine, theirs_took = peers.in_turns(step, yours, rounds=3)
    floor = peers.seconds(peers.products(model, tokens=FRAMES, keys=FRAMES, clips=CLIPS, levels=LEVELS, backward=True), rounds=2)
    benchmark.pedantic(step, rounds=1)
    peers.report(f"training step of {CLIPS} clips of {FRAMES} frames", mine, theirs_took, floor, least=1.0)
