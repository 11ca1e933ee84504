"""From a folder of recordings to a model that prepares what it is given: training says so, and so does every command that does it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni import Audio, SoundOmni
from soundomni.cli.main import main
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.writing.preparing import prepared
from soundomni.data.audio import read_audio
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import Settings, run_model

LINE = "clips are prepared as in training: from the onset, 0.25 s long, peak 0.9 (model.clips)"
CLIPS = ClipSpec(cut="onset", seconds=0.25, peak=0.9)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hits of three kinds at two rates, some short, some long, some stereo, each after a silence of its own."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(13):
        rate, random = (8000, 11025)[i % 2], np.random.default_rng(i)
        hit = random.standard_normal((rate // (2 + 3 * (i % 3)), 1 + i % 2)) * 0.2
        soundfile.write(folder / f"{i:02}.wav", np.pad(hit, ((300 * (i % 4), 0), (0, 0))), rate)
        (folder / f"{i:02}.txt").write_text("kick" if i < 7 else "snare" if i < 12 else "rimshot")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_spec: Path, sounds: Path) -> Any:
    """(model directory, what training said)."""
    folder = tmp_path_factory.mktemp("prepared")
    source = f"{{class_path: audio-folder, init_args: {{path: {sounds}}}}}"
    clips = "{cut: onset, seconds: 0.25, peak: 0.9}"
    entry = f"{{source: {source}, tasks: {{generate: 1, describe: 1}}, clips: {clips}, balance: 4, held_out: 0.2}}"
    layer = folder / "mine.yaml"
    layer.write_text(f"data: {{datasets: {{toys: null, mine: {entry}}}}}\ntrain: {{run_dir: {folder / 'run'}}}\n")
    assert main(["train", "--config", str(tiny_spec), "--config", str(layer)]) == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "model")]) == 0
    return folder / "model"


def test_training_says_how_clips_are_prepared_and_a_resumed_run_may_not_change_it(
    tmp_path: Path, tiny_spec: Path, sounds: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = f"{{class_path: audio-folder, init_args: {{path: {sounds}}}}}"
    layer = tmp_path / "mine.yaml"
    layer.write_text(f"data: {{datasets: {{toys: null, mine: {{source: {source}}}}}}}\ntrain: {{run_dir: {tmp_path / 'run'}, steps: 2}}\n")
    command = ["train", "--config", str(tiny_spec), "--config", str(layer), "--data.datasets.mine.clips.cut=onset"]
    assert main([*command, "--data.datasets.mine.clips.seconds=0.25"]) == 0
    said = capfd.readouterr().err
    assert "data 'mine': clips are prepared: from the onset, 0.25 s long; of 13, " in said
    assert "data 'mine': 3 captions have a median of 5 clips; rare ones are 'rimshot' (1). Set data.datasets.mine.balance to 5" in said
    longer = [*command, "--data.datasets.mine.clips.seconds=0.3", "--train.steps=3"]
    assert main(longer) == 2
    assert "data.datasets.mine.clips.seconds" in capfd.readouterr().err
    assert main([*longer, "--allow-change", "data.datasets.mine.clips"]) == 0


def test_describe_prepares_the_file_and_says_so(trained: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = SoundOmni.from_pretrained(trained), sounds / "01.wav"
    assert model.clips == CLIPS
    assert main(["describe", str(file), "--model", str(trained)]) == 0
    captured = capsys.readouterr()
    assert captured.err.count(LINE) == 1
    plain = SoundOmni.from_pretrained(trained, overrides={"model.clips": None})
    raw = Audio(*read_audio(file))
    assert [captured.out.rstrip("\n")] == model.describe(raw) == plain.describe(prepared(raw, CLIPS))
    assert main(["describe", str(file), "--model", str(trained), "--model.clips=null"]) == 0
    assert LINE not in capsys.readouterr().err


def test_generate_makes_clips_of_the_trained_length_unless_told_otherwise(
    trained: Path, tiny_model: Path, tmp_path: Path, result: Any
) -> None:
    def seconds(*options: object, model: Path = trained) -> float:
        made = result("generate", "--model", model, "--prompt", "kick", "--no-pictures", "--out", tmp_path / "out", *options)
        (clip,) = made["clips"]
        assert soundfile.info(clip["files"][0]).duration == pytest.approx(clip["seconds"], abs=1e-3)
        return float(clip["seconds"])

    assert seconds() == 0.25 and seconds("--seconds", 0.4) == 0.4
    assert seconds(model=tiny_model) == 1.0, "a model of clips of many lengths"
    grid = tmp_path / "grid.yaml"
    for text, expected in (("", 0.25), ("seconds: 0.3\n", 0.3), ("seconds: null\n", 0.25)):
        grid.write_text(f"prompt: [kick]\n{text}")
        made = result("generate", "--model", trained, "--grid", grid, "--no-pictures", "--out", tmp_path / "grid")
        assert [clip["seconds"] for clip in made["clips"]] == [expected]


def test_keep_and_vary_prepare_the_file_and_say_so(
    trained: Path, sounds: Path, tmp_path: Path, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--model", str(trained), "--prompt", "kick", "--no-pictures", "--out", str(tmp_path / "out")]
    assert main([*command, "--vary", str(sounds / "03.wav"), "--strength", "0.2"]) == 0
    assert capsys.readouterr().err.count(LINE) == 1
    assert main([*command, "--keep", str(sounds / "03.wav"), "--span", "0.1:0.2"]) == 0
    assert capsys.readouterr().err.count(LINE) == 1
    assert "lasts 0.581587 s and would be kept whole, but the clip to make lasts 0.25 s" in fails(*command, "--keep", sounds / "03.wav")
    assert "(0.0, 0.05), but the model takes this clip from 0.07" in fails(*command, "--keep", sounds / "03.wav", "--span", "0:0.05")


def test_evaluate_measures_on_prepared_clips_and_says_so(
    trained: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = json.dumps({"class_path": "audio-folder", "init_args": {"path": str(sounds)}})
    arguments = ["evaluate", "--model", str(trained), "--dataset", source, "--limit", "4", "--tasks", "describe", "reconstruct"]
    assert main(["--json", *arguments, "--save", str(tmp_path / "saved")]) == 0
    captured = capsys.readouterr()
    assert captured.err.count(LINE) == 1
    assert json.loads(captured.out)["made_with"]["clips"] == {"cut": "onset", "seconds": 0.25, "trim": None, "peak": 0.9, "loudness": None}
    model = SoundOmni.from_pretrained(trained)
    clips = [prepared(Audio(*read_audio(file)), CLIPS) for file in sorted(sounds.glob("*.wav"))[:4]]
    said = [json.loads(line)["described"] for line in (tmp_path / "saved" / "results.jsonl").read_text().splitlines()]
    assert said == model.describe(clips)


def test_clips_are_generated_at_the_trained_length_to_be_measured(trained: Path) -> None:
    toys = ToySounds(size=2, seconds=0.5, events=(1, 1), seed=5)
    outcome = run_model(SoundOmni.from_pretrained(trained), toys, Settings(limit=2, tasks=("generate",)))
    assert [clip.waveform.shape for clip in outcome.generated] == [(1, 2000)] * 2
    assert {item.num_samples / item.sample_rate for item in outcome.items} == {0.25}
