"""Making and learning tokens one after the other, against audiolm-pytorch 2.4.0 at the sizes of its README.

All stages have 6 layers with 8 query heads of 64 dimensions and one key-value head; the hidden size is 1024 in the semantic stage and
512 in the others. The coarse stage makes 3 levels of 1024 codes after semantic tokens, the fine one 5 levels after three coarse ones, all
in the order "flat". Keys and values are cached on both sides. There, a training step also predicts the tokens that are given, about one
percent of its work.

One new token reads every weight once, so memory bounds both: at hidden size 1024, its floor takes more than half of their time, and
twice their speed is out of reach. Weights lie where `SoundOmni` puts them, see `lay_out_wide_layers`. The floor is the time of the matrix
products and the attention of our network only. Run on one thread, with both packages on the path:

    pip install --no-deps --target FOLDER --requirement requirements/token-models.txt
    PYTHONPATH=FOLDER OMP_NUM_THREADS=1 pytest -s benchmarks/bench_audiolm.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peers
import pytest
import torch

from soundomni.core.assembly.build import build_sampler
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.wide_layers import lay_out_wide_layers
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.sequence import Context, PackedBatch
from soundomni.core.spec.schema import GuidanceSpec, Slot

_, audiolm = peers.import_peers()

SEMANTIC, SIZE, COARSE, FINE = 500, 1024, 3, 5
CLIPS, DEPTH, HEADS = 2, 6, 8


@dataclass(frozen=True)
class Stage:
    """A stage: hidden size, levels, codes of each, frames to make, the least ratio, and (name, codes, number) of the tokens before."""

    dim: int
    levels: int
    size: int
    frames: int
    least: float
    before: tuple[str, int, int] | None = None


STAGES = {
    "semantic": Stage(1024, 1, SEMANTIC, 192, 1.2),
    "coarse": Stage(512, COARSE, SIZE, 64, 1.75, ("semantic", SEMANTIC, 64)),
    "fine": Stage(512, FINE, SIZE, 40, 1.9, ("coarse", COARSE * SIZE, 40 * COARSE)),
}


class Ours:
    """Our model of a stage."""

    def __init__(self, name: str) -> None:
        self.stage = stage = STAGES[name]
        backbone = {"hidden_dim": stage.dim, "num_layers": DEPTH, "num_heads": HEADS, "num_kv_heads": 1, "head_dim": 64}
        backbone |= {"intermediate_dim": stage.dim * 8 // 3}
        objective = Slot("autoregressive", {"order": "flat", "forget": 0.15})
        made = peers.codes(stage.levels, stage.size, objective=objective, sampler=Slot("next-token"))
        before = {} if stage.before is None else {stage.before[0]: peers.codes(1, stage.before[1])}
        self.model, writer = peers.built(Slot("mot", backbone), {**before, name: made})
        with torch.no_grad():  # a clip that ends early would be less work
            self.model.made().connector.heads[0].bias[stage.size] = -1e9  # type: ignore[index,union-attr]
        self.slot = writer.target(peers.samples_of(stage.frames))
        self.context: Context = ()
        if stage.before is not None:
            of, size, count = stage.before
            self.context = (peers.drawn(writer.context(peers.samples_of(count), of=of), 1, size),)
        self.sampler = build_sampler(Slot("next-token", {"top_k": 0.1}))

    def for_use(self) -> Ours:
        """Return this, with its weights where `SoundOmni` puts them."""
        lay_out_wide_layers(self.model)
        return self

    def make(self) -> torch.Tensor:
        """Make a clip."""
        requests = [AudioRequest(context=self.context, slot=self.slot, seed=0)]
        return sample_audio(self.model, requests, sampler=self.sampler, guidance=GuidanceSpec(scale=1.0)).values

    def batch(self) -> PackedBatch:
        """Return clips to learn from."""
        clips = [peers.drawn(self.slot, self.stage.levels, self.stage.size, seed) for seed in range(CLIPS)]
        return peers.batch_of([self.context] * CLIPS, clips)


class Theirs:
    """Their model of a stage."""

    def __init__(self, name: str) -> None:
        self.stage = stage = STAGES[name]
        common = {"dim": stage.dim, "depth": DEPTH, "heads": HEADS, "flash_attn": True}
        torch.manual_seed(0)
        self.given = None if stage.before is None else torch.randint(0, SEMANTIC, (CLIPS, stage.before[2]))
        self.codes = torch.randint(0, stage.size, (CLIPS, stage.frames, stage.levels))
        if name == "semantic":
            network = audiolm.SemanticTransformer(num_semantic_tokens=SEMANTIC, **common)
            with torch.no_grad():
                network.to_logits.bias[SEMANTIC] = -1e9
            self.wrapper = audiolm.SemanticTransformerWrapper(transformer=network, unique_consecutive=False)
            self.make: Callable[[], Any] = lambda: self.wrapper.generate(max_length=stage.frames)
            self.loss: Callable[[], Any] = lambda: self.wrapper(semantic_token_ids=self.codes[..., 0], return_loss=True)
        elif name == "coarse":
            network = audiolm.CoarseTransformer(num_semantic_tokens=SEMANTIC, codebook_size=SIZE, num_coarse_quantizers=COARSE, **common)
            self.wrapper = audiolm.CoarseTransformerWrapper(transformer=network, codec=_codec(), unique_consecutive=False)
            self.make = lambda: self.wrapper.generate(semantic_token_ids=self.given[:1], max_time_steps=stage.frames)
            self.loss = lambda: self.wrapper(semantic_token_ids=self.given, coarse_token_ids=self.codes, return_loss=True)
        else:
            network = audiolm.FineTransformer(
                num_coarse_quantizers=COARSE, num_fine_quantizers=FINE, codebook_size=SIZE, project_coarse_logits=False, **common
            )
            self.wrapper = audiolm.FineTransformerWrapper(transformer=network, codec=_codec())
            coarse = self.given.view(CLIPS, -1, COARSE)
            self.make = lambda: self.wrapper.generate(coarse_token_ids=coarse[:1])
            self.loss = lambda: self.wrapper(coarse_token_ids=coarse, fine_token_ids=self.codes, return_loss=True)
        self.network = network


def _codec() -> Any:
    """Return a codec that only says how many levels there are."""
    from audiolm_pytorch import SoundStream

    settings = {"channels": 2, "channel_mults": (1, 1), "strides": (2, 2), "codebook_dim": 8, "use_local_attn": False}
    return SoundStream(codebook_size=SIZE, rq_num_quantizers=COARSE + FINE, **settings)


@pytest.mark.benchmark(group="audiolm")
@pytest.mark.parametrize("name", list(STAGES))
def test_generation(benchmark: Any, name: str) -> None:
    """Make a clip, one token after the other."""
    ours, theirs, stage = Ours(name).for_use(), Theirs(name), STAGES[name]
    unused = [theirs.network.proj_text_embed]
    assert peers.count(ours.model) == pytest.approx(peers.count(theirs.network, without=unused), rel=0.02)
    tokens = stage.levels * stage.frames
    assert ours.make().numel() == theirs.make().numel() == tokens
    mine, yours = peers.in_turns(ours.make, theirs.make, rounds=4)
    run = peers.products(ours.model, tokens=1, keys=tokens // 2 + (stage.before[2] if stage.before else 0))
    floor = peers.seconds(lambda: [run() for _ in range(tokens)], rounds=3)
    benchmark.pedantic(ours.make, rounds=1)
    rates = f"{tokens / mine:.0f} and {tokens / yours:.0f} tokens/s"
    peers.report(f"{name}, making {tokens} tokens, {rates}", mine, yours, floor, least=stage.least)


@pytest.mark.benchmark(group="audiolm")
@pytest.mark.parametrize("name", list(STAGES))
def test_training_step(benchmark: Any, name: str) -> None:
    """Compute the gradients of two clips."""
    ours, theirs = Ours(name), Theirs(name)
    model: UnifiedModel = ours.model
    batch = ours.batch()

    def loss() -> torch.Tensor:
        total, number = model(batch)["autoregressive"]
        return total / number

    step, yours = peers.step(loss, model), peers.step(theirs.loss, theirs.network)
    step(), yours()
    mine, theirs_took = peers.in_turns(step, yours, rounds=4)
    tokens = batch.table.num_tokens // CLIPS
    run = peers.products(model, tokens=tokens, keys=tokens, clips=CLIPS, levels=STAGES[name].levels, backward=True)
    floor = peers.seconds(run, rounds=3)
    benchmark.pedantic(step, rounds=1)
    peers.report(f"{name}, training step of {CLIPS} clips of {tokens} tokens", mine, theirs_took, floor, least=1.0)
