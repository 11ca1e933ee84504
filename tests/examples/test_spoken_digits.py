"""The spoken-digits example, small: recordings made with espeak-ng and sox, trained on, exported and measured."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import soundfile

from soundomni.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "spoken-digits"


def script(name: str) -> ModuleType:
    """Imports a script of the example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one recording of each digit by each voice."""
    for tool in ("espeak-ng", "sox"):
        assert shutil.which(tool), f"{tool} is missing: `make test` installs it, or sudo apt-get install espeak-ng sox"
    folder = tmp_path_factory.mktemp("digits")
    assert script("make_speech").main([str(folder / "speech"), "--per-voice", "1"]) == 0
    return folder


@pytest.mark.audio_tools
def test_the_recordings_are_mixed_and_one_is_broken(work: Path) -> None:
    infos = [soundfile.info(path) for path in (work / "speech" / "train").iterdir() if path.suffix in (".wav", ".flac", ".mp3")]
    assert {info.samplerate for info in infos} == {8000, 16000, 44100}
    assert {info.channels for info in infos} == {1, 2}
    assert {info.format for info in infos} >= {"WAV", "FLAC"} and len({info.format for info in infos}) == 3
    voices = {path.stem.split("-", 1)[1].rsplit("-", 1)[0] for path in (work / "speech" / "voices").iterdir()}
    trained = {path.stem.split("-", 1)[1].rsplit("-", 1)[0] for path in (work / "speech" / "train").glob("*-*")}
    assert len(voices) == 6 and not voices & trained


@pytest.mark.audio_tools
@pytest.mark.long
def test_it_trains_says_transcribes_and_is_measured(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(work)
    smaller = ["--train.steps=12", "--model.backbone.hidden_dim=64", "--model.backbone.num_layers=2", "--data.tokens_per_batch=512"]
    assert main(["train", "--config", str(EXAMPLE / "digits.yaml"), *smaller]) == 0
    assert "broken.wav" in caplog.text + capsys.readouterr().err
    losses = [json.loads(line)["loss"] for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(loss > 0 for loss in losses)
    assert main(["export", "run", "--out", "model"]) == 0
    capsys.readouterr()
    arguments = ["--speech", "speech", "--model", "model", "--per-digit", "1", "--classifier-steps", "20"]
    assert script("measure").main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"transcribed", "classifier", "generated"}
    assert report["classifier"]["files"] > 0.1 and 0 <= report["generated"]["all"] <= 1


@pytest.mark.audio_tools
@pytest.mark.long
def test_a_codec_is_trained_on_the_speech_and_measured(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    smaller = ["--train.steps=4", "--codec.codec.base_channels=2", "--codec.codec.latent_dim=8", "--codec.codec.warmup_steps=1"]
    assert main(["train", "--config", "soundstream-speech", *smaller, "--train.threads=1"]) == 0
    capsys.readouterr()
    script("measure")
    arguments = ["--speech", "speech", "--run", "runs/soundstream-speech", "--classifier-steps", "20"]
    assert script("measure_codec").main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"files", "voices"}
    assert all(set(scores) == {"recordings", "all levels", "level 0 only"} for scores in report.values())
    assert report["files"]["recordings"] > 0.1


@pytest.mark.audio_tools
@pytest.mark.long
def test_a_chain_of_two_stages_says_digits_after_prompts_of_held_out_voices(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    phrases = script("make_phrases")
    monkeypatch.setattr(phrases, "ACCENTS", phrases.ACCENTS[:1])
    monkeypatch.setattr(phrases, "TRAINED", phrases.TRAINED[:2])
    assert phrases.main(["phrases", "--count", "40", "--settings", "1"]) == 0
    voices = {path.stem.split("-", 1)[1] for path in (work / "phrases" / "prompts").glob("*.wav")}
    assert len(voices) == len(phrases.HELD_OUT) and len(list((work / "phrases" / "train").glob("*.wav"))) == 40
    smaller = [
        "--train.steps=4",
        "--train.threads=1",
        "--data.tokens_per_batch=512",
        "--model.backbone.num_layers=1",
        "--train.save_every=0",
    ]
    few = {"semantic": "semantic.codec.init_args.num_clusters=8", "acoustic": "acoustic.codec.init_args.codebook_size=8"}
    for stage, size in few.items():
        sizes = [
            f"--model.modalities.{size}",
            *(["--model.modalities.semantic.codec.init_args.num_clusters=8"] if stage == "acoustic" else []),
        ]
        assert main(["train", "--config", str(EXAMPLE / "chain" / f"{stage}.yaml"), *sizes, *smaller]) == 0
        assert main(["export", f"runs/{stage}", "--out", f"models/{stage}"]) == 0
    shutil.copy(EXAMPLE / "chain" / "speech.yaml", "speech.yaml")
    capsys.readouterr()
    script("measure")
    arguments = ["--speech", "speech", "--phrases", "phrases", "--chain", "speech.yaml", "--classifier-steps", "20"]
    assert script("measure_chain").main([*arguments, "--per-prompt", "1", "--voices", "1", "--out", "spoken"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clips"] == len(list((work / "spoken").glob("*.wav"))) == 10
    pitches = {f"pitch of {what}" for what in ("the prompt", "another voice", "two recordings of a voice")}
    assert set(report) == {"clips", "recognized", "recognized, prompts themselves", *pitches}
