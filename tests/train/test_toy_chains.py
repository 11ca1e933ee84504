"""The shipped specs of AudioLM and SoundStorm on toy sounds, made tiny: each trains, and the chains generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from soundomni import Kept
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.waveform import Audio
from soundomni.data import ToySounds
from soundomni.train.export import load_run
from soundomni.train.run import run_training
from soundomni.train.stages import load_chain

TINY = {
    "backbone": {"init_args": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "intermediate_dim": 16}},
    "tokenizer": {"vocab_size": 300},
}
STAGES = ("audiolm-toy-semantic", "audiolm-toy-coarse", "audiolm-toy-fine")
FRESH = {"audiolm-toy-coarse": "[semantic.connector]", "audiolm-toy-fine": "[acoustic.connector]"}
"""The connector of codes that a stage starts afresh: it only takes them, or has more levels of them than the stage before."""
ONLY_CODECS = "[backbone,semantic.connector]"


def train(name: str, *overrides: tuple[str, str], model: dict[str, object] = TINY) -> Path:
    """Train a shipped spec for a few steps in the working directory, and return the exported model."""
    few = [("train.steps", "3"), ("train.save_every", "0"), ("train.threads", "1"), ("data.tokens_per_batch", "640")]
    assert run_training(load_spec_with_start([name, {"model": model}], [*few, *overrides])).finished
    return load_run(Path("runs") / name)[0].save_pretrained(Path("models") / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the models of all stages, as the tutorial makes them."""
    folder = tmp_path_factory.mktemp("chains")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        started: Sequence[tuple[str, str]] = ()
        without_tokenizer = {"backbone": TINY["backbone"]}
        for name in STAGES:
            fresh = [("model.start_fresh", FRESH[name])] if started else []
            started = [("model.start", str(train(name, *started, *fresh, model=without_tokenizer if started else TINY)))]
        storm = [("model.start", "models/audiolm-toy-semantic"), ("model.start_fresh", ONLY_CODECS)]
        train("soundstorm-toy", *storm, model=without_tokenizer)
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture(scope="module")
def clip() -> Audio:
    return Audio(*ToySounds(size=1, seconds=0.5, events=(1, 1), kinds=["tone"]).load(0))


@pytest.mark.usefixtures("here")
def test_the_shipped_chain_is_found_by_its_name_and_generates(clip: Audio) -> None:
    chain = load_chain("audiolm-toy")
    assert list(chain.stages) == ["semantic", "coarse", "fine"]
    kept = Kept(clip, [(0.0, 0.25)])
    made = chain.make(["a loud C4 sine", "two clicks"], seconds=0.5, known=kept)
    for semantic, coarse, fine in zip(*made.values(), strict=True):
        assert [one.values.shape[1] for one in (semantic, coarse, fine)] == [1, 2, 4]
        assert torch.equal(fine.values[:, :2], coarse.values)
    (heard,) = chain.generate("a loud C4 sine", seconds=0.5, known=kept)
    assert heard.sample_rate == 8000 and heard.waveform.shape[1] <= 4000 and np.isfinite(heard.waveform).all()


def test_soundstorm_follows_a_stage_of_semantic_tokens_with_the_same_codec(here: Path, clip: Audio) -> None:
    (here / "storm.yaml").write_text("stages: {semantic: models/audiolm-toy-semantic, acoustic: models/soundstorm-toy}\n")
    chain = load_chain("storm.yaml")
    made = chain.make("a loud C4 sine", seconds=0.5)
    assert made["semantic"][0].frame_counts == made["acoustic"][0].frame_counts
    storm = chain.stages["acoustic"]
    with_tokens, without = (storm.make("", seconds=0.5, given=given)[0] for given in ({"semantic": clip}, None))
    assert with_tokens.values.shape == without.values.shape == (1, 4, 33)
