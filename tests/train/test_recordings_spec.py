"""The spec for recordings of one's own: it trains in a folder that holds my-sounds, and a layer over it only says what differs."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import ClipSpec

SMALL = [
    "--model.backbone={init_args: {hidden_dim: 32, num_layers: 1, num_heads: 2, intermediate_dim: 32, gen_intermediate_dim: 32}}",
    *("--model.encoder.feature_dim=16", "--model.tokenizer.vocab_size=261", "--sampler.num_steps=2"),
    *("--train.steps=2", "--train.threads=1", "--train.save_every=0", "--train.schedule.warmup_steps=null"),
]


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven hits of noise, quiet and late, of several rates, channels and lengths."""
    folder = tmp_path / "my-sounds"
    folder.mkdir()
    for i in range(7):
        rate, generator = (16000, 22050, 44100)[i % 3], np.random.default_rng(i)
        hit = 0.1 * generator.standard_normal((rate, 1 + i % 2)) * np.exp(-np.arange(rate) / 2000)[:, None]
        soundfile.write(folder / f"{i}.wav", np.concatenate([np.zeros((rate // (1 + i), 1 + i % 2)), hit]), rate)
        (folder / f"{i}.txt").write_text("a snare")
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_trains_where_my_sounds_is_and_the_model_keeps_how_clips_are_prepared(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", "recordings", *SMALL]) == 0
    told = capsys.readouterr().err
    assert "data 'mine': 7 of 7 clips are used\n" in told
    assert "from the onset, 1 s long, peak 0.9; of 7, 7 are longer and cut, 0 are shorter and padded" in told
    assert main(["export", "runs/recordings", "--out", "model"]) == 0
    assert load_spec(["model/spec.yaml"]).model.clips == ClipSpec(cut="onset", seconds=1.0, peak=0.9)  # type: ignore[union-attr]
    assert main(["generate", "--model", "model", "--prompt", "a snare", "--no-pictures", "--out", "made"]) == 0
    (made,) = Path("made").glob("*.wav")
    assert (soundfile.info(made).samplerate, soundfile.info(made).frames) == (24000, 24000)
    capsys.readouterr()
    assert main(["describe", "--model", "model", "my-sounds/0.wav"]) == 0
    assert "clips are prepared as in training: from the onset, 1 s long, peak 0.9" in capsys.readouterr().err


def test_a_layer_over_it_only_says_what_differs(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recordings.rename(tmp_path / "hits")
    assert main(["train", "--config", "recordings", *SMALL]) == 2
    assert "no folder 'my-sounds'" in capsys.readouterr().err
    layer = {"source": {"init_args": {"path": "hits", "exclude": ["0.wav"]}}, "clips": {"seconds": 0.25, "peak": None, "loudness": -23}}
    Path("mine.yaml").write_text(json.dumps({"data": {"datasets": {"mine": layer}}, "train": {"run_dir": "runs/mine"}}))
    assert main(["train", "--config", "recordings", "--config", "mine.yaml", *SMALL]) == 0
    told = capsys.readouterr().err
    assert "data 'mine': 6 of 6 clips are used\n" in told and "from the onset, 0.25 s long, loudness -23 LUFS; of 6, 6 are longer" in told


def test_samples_during_training_are_as_long_as_the_clips(recordings: Path) -> None:
    sampled = ["--train.validation.every=2", "--train.validation.prompts=[a snare]", "--train.validation.num_describe=0"]
    for given, frames in (([], 6000), (["--train.validation.seconds=0.5"], 12000)):
        name = f"runs/{frames}"
        length = ["--data.datasets.mine.clips.seconds=0.25", f"--train.run_dir={name}"]
        assert main(["train", "--config", "recordings", *SMALL, *sampled, *length, *given]) == 0
        (made,) = Path(name, "samples").rglob("*.wav")
        assert soundfile.info(made).frames == frames
