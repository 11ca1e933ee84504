"""`soundomni spec validate` opens the listings of the data, or says that it did not."""

import json

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "sounds"
    root.mkdir()
    for i in range(4):
        soundfile.write(root / f"{i}.wav", 0.1 * np.sin(np.arange(800)), 8000)
        if i:
            (root / f"{i}.txt").write_text("a sound")
    (root / "x.wma").write_bytes(b"")
    return root


def layer(tmp_path, source, **entry):
    given = ", ".join(f"{name}: {value}" for name, value in entry.items())
    text = f"data: {{datasets: {{toys: null, mine: {{source: {source}, tasks: {{generate: 1}}{', ' if given else ''}{given}}}}}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


def test_what_is_listed_and_left_out_is_told(folder, tmp_path, capsys):
    spec = layer(tmp_path, "{class_path: audio-folder, init_args: {path: sounds}}")
    assert main(["spec", "validate", "demo", spec]) == 0
    assert "data 'mine': 3 clips are listed; left out: 1 without a caption, 1 in WMA, which cannot be read" in capsys.readouterr().out
    assert main(["--json", "spec", "validate", "demo", spec]) == 0
    (found,) = json.loads(capsys.readouterr().out)["data"]
    assert found == {"name": "mine", "clips": 3, "left_out": {"without a caption": 1, "in WMA, which cannot be read": 1}}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{class_path: audio-folder, init_args: {path: nowhere}}", "no folder 'nowhere' ({here}/nowhere)"),
        ("{class_path: audio-folder, init_args: {path: ~/nowhere}}", "no folder '{here}/nowhere'"),
        ("{class_path: audio-folder, init_args: {path: sounds/1.wav}}", "is a file; expected a folder of audio files"),
        ("{class_path: audio-folder, init_args: {path: sounds, file_list: none.txt}}", "file list 'none.txt' ({here}/none.txt)"),
        ("{class_path: audio-folder, init_args: {path: sounds, include: [x]}}", "no audio files in 'sounds' ({here}/sounds)"),
        ("{class_path: audiocaps, init_args: {csv: none.csv, audio_dir: sounds}}", "cannot read 'none.csv' ({here}/none.csv)"),
    ],
)
def test_data_that_are_not_there_are_a_mistake_of_the_user(folder, tmp_path, capsys, monkeypatch, source, told):
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = layer(tmp_path, source)
    assert main(["spec", "validate", "demo", spec]) == 2
    error = capsys.readouterr().err
    assert "data.datasets.mine: " in error and told.format(here=tmp_path) in error and error.count("\n") == 1
    assert main(["spec", "validate", "demo", spec, "--no-data"]) == 0
    assert "the datasets were not opened (--no-data)" in capsys.readouterr().err
    assert main(["spec", "validate", "demo", layer(tmp_path, source, is_mandatory="false")]) == 0
    assert "data.datasets.mine is left out: " in capsys.readouterr().err


def test_the_examples_of_shipped_specs_need_not_be_here_but_what_is_changed_must(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["spec", "validate", "soundomni-7b-full"]) == 0
    assert (
        "data.datasets.audiocaps was not opened, because its path is an example from the shipped spec: there is no folder"
        in capsys.readouterr().err
    )
    assert main(["spec", "validate", "soundomni-7b-full", "--data.datasets.audiocaps.source.audio_dir=other"]) == 2
    assert f"no folder 'other' ({tmp_path}/other)" in capsys.readouterr().err


@pytest.mark.parametrize("datasets", ["toys: null", "toys: null, more: null"])
def test_a_spec_without_any_dataset_is_not_ok(tmp_path, capsys, datasets):
    (tmp_path / "none.yaml").write_text(f"data: {{datasets: {{{datasets}}}}}\n")
    assert main(["spec", "validate", "demo", str(tmp_path / "none.yaml")]) == 2
    assert "data.datasets is empty" in capsys.readouterr().err
    assert main(["spec", "validate", "demo", str(tmp_path / "none.yaml"), "--no-data"]) == 0
