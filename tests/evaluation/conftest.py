"""A tiny model with random weights, and what a right and a wrong model would make and say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import save_tiny_clap, save_tiny_classifier

from soundomni import Audio, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.shorthand import model_of
from soundomni.core.spec.written import ConnectorsSpec, WrittenModel
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import Outcome, compare


@pytest.fixture(scope="session")
def model() -> SoundOmni:
    """A model at 8 kHz that takes and makes clips of half a second."""
    written = WrittenModel(
        backbone=Slot("mot", {"hidden_dim": 32, "num_layers": 1, "num_heads": 2}),
        router=Slot("modality"),
        codec=Slot("mdct", {"sample_rate": 8000, "frame_size": 64}),
        encoder=Slot("log-mel", {"sample_rate": 8000, "n_fft": 128, "hop_length": 100, "num_mels": 16, "feature_dim": 16}),
        connectors=ConnectorsSpec(latent=Slot("linear"), features=Slot("linear")),
        objective=Slot("flow-matching"),
    )
    spec = model_of(written, sampler=Slot("euler", {"num_steps": 2}))
    tokenizer = TextTokenizer.train(["a sine tone, then two clicks"] * 4, vocab_size=280)
    built = build_model(spec, vocab_size=tokenizer.vocab_size, seed=0)
    clips = torch.from_numpy(np.stack([ToySounds(size=4, seconds=0.5, events=(1, 1)).load(i)[0] for i in range(4)]))
    built.made().normalizer.fit([built.made().codec.encode(clips, torch.full((4,), clips.shape[-1]))])
    with torch.no_grad():
        built.backbone.embedding.weight[tokenizer.eos] *= 30.0  # most texts end soon, which a model without training would not do
    return SoundOmni(built, Spec(model=spec), tokenizer)


@pytest.fixture(scope="session")
def data() -> ToySounds:
    return ToySounds(size=60, seed=3, held_out="include")


OutcomeOf = Callable[..., Outcome]


@pytest.fixture(scope="session")
def outcome_of() -> OutcomeOf:
    """Returns what a model would make and say that takes each clip for the one `offset` further on."""

    def made(data: ToySounds, *, offset: int = 0) -> Outcome:
        items, clips = [data.item(i) for i in range(len(data))], [Audio(*data.load(i)) for i in range(len(data))]
        others = [items[(i + offset) % len(items)] for i in range(len(items))]
        known = [dict(other.questions) for other in others]
        return Outcome(
            items=items,
            clips=clips,
            generated=[clips[(i + offset) % len(clips)] for i in range(len(clips))],
            described=[other.captions[0] for other in others],
            answered=[[answers.get(question, "no idea") for question, _ in i.questions] for i, answers in zip(items, known, strict=True)],
            reconstructed=[compare(clip, Audio(clip.waveform + np.float32(1e-3), clip.sample_rate)) for clip in clips],
        )

    return made


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a tiny CLAP network and a tiny classifier."""
    folder = tmp_path_factory.mktemp("networks")
    return save_tiny_clap(folder / "clap"), save_tiny_classifier(folder / "classifier")
