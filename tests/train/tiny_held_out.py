"""The held-out losses of a small real model on a few toys, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_spec import tiny_spec

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import DropoutSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.held_out_batches import plan_held_out
from soundomni.data.mixture import Mixture
from soundomni.data.prefetch import ClipReader
from soundomni.data.samples import SampleWriter
from soundomni.train.ema import EMA
from soundomni.train.held_out import HeldOut
from soundomni.train.parallel import World, parallelize

SECOND = (
    "{source: {class_path: toy-sounds, init_args: {size: 5, seconds: 0.4, events: [1, 1], seed: 7}}, held_out: 1.0, tasks: {generate: 1}}"
)
HELD_OUT = ("data.datasets.toys.held_out=0.2", f"data.datasets.others={SECOND}")


def held_out(world: World, directory: Path, *overrides: str) -> HeldOut:
    """Returns what measures a fresh model on an odd number of batches; its averages are other weights than those it has."""
    directory.mkdir(exist_ok=True)
    spec = tiny_spec(directory / f"held-out-{world.rank}-of-{world.size}", *HELD_OUT, *overrides)
    assert spec.data is not None and spec.train is not None
    tokenizer = TextTokenizer.train(["a sine"], vocab_size=300)
    model = build_model(spec.model, vocab_size=tokenizer.vocab_size, seed=3)
    model.made().normalizer.leave()
    mixture = Mixture.open(spec.data, build)
    segments = segment_writer(model, spec.model, tokenizer=tokenizer)
    writer = SampleWriter(segments, dropout=DropoutSpec(text=0.0, latent=0.0, features=0.0))
    batches = plan_held_out(mixture, writer, spec.data, most=-1)
    parallelize(model, world, spec.train)
    ema = EMA(model, decay=0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return HeldOut(
        batches=batches,
        reader=ClipReader(mixture=mixture, writer=writer, workers=0),
        module=model,
        ema=ema,
        world=world,
        train=spec.train,
    )
