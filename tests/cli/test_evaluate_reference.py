"""`soundomni evaluate --reference`: what it prints about clips of a folder, by a shipped model, and what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main
from soundomni.cli.result_lines import result_lines

TRAINING, HELD_OUT = range(8), range(100, 103)


def slot(folder: Path, *patterns: str) -> str:
    include = f", include: [{', '.join(patterns)}]" if patterns else ""
    return f"{{class_path: audio-folder, init_args: {{path: '{folder}'{include}}}}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise and tones of half a second that were used for training, and others that were held out."""
    path = tmp_path_factory.mktemp("sounds")
    rows = ["file_name,caption"]
    for part, seeds in (("train", TRAINING), ("held-out", HELD_OUT)):
        (path / part).mkdir()
        for seed in seeds:
            rng = np.random.default_rng(seed)
            hertz = rng.uniform(300, 600)
            for name, clip in (
                ("loud white noise", 0.3 * rng.standard_normal(4000)),
                ("a loud sine tone at A4", 0.5 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000)),
            ):
                file = f"{part}/{name.split()[-1]}-{seed}.wav"
                soundfile.write(path / file, clip * np.exp(-rng.uniform(0, 8) * np.arange(4000) / 8000), 8000)
                rows.append(f"{file},{name}")
    (path / "metadata.csv").write_text("\n".join(rows))
    return path


def test_a_shipped_model_is_judged_on_a_folder(folder: Path, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("evaluate", "--model", "nano", "--tasks", "generate", "--dataset", slot(folder, "held-out/*"))
    compared = (*command, "--reference", slot(folder, "train/*"))
    found = result(*compared)
    assert found["clips"] == 6 and found["reference"]["clips"] == 16 and found["reference"]["judged"] == 6
    scores = found["generated"]
    assert scores["nearest_of_data"] == scores["classified_of_data"] == 1.0 and scores["chance"] == 0.5
    assert scores["nearest"] > 0.5 and scores["copies"] == 0.0 and 0 < scores["bandwidth"] <= 4000
    assert result(*compared) == found
    assert main(list(map(str, compared))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == result_lines(found) and any(line.startswith("reference: 16 training clips of 2 captions, ") for line in lines)
    assert result(*compared, "--limit", "2", "--seed", "3")["clips"] == 2


def test_a_clip_that_the_model_cannot_make_is_left_out_and_the_others_are_judged(folder: Path, tmp_path: Path, capsys: Any) -> None:
    for name, seconds in (("short", 0.5), ("long", 4.0)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(round(8000 * seconds)), 8000)
        (tmp_path / f"{name}.txt").write_text("loud white noise")
    command = ("evaluate", "--model", "nano", "--tasks", "generate", "--dataset", slot(tmp_path), "--reference", slot(folder), "--json")
    assert main([*command, "--steps", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["unmeasurable"], found["reference"]["judged"]) == (1, 1, 1)
    assert found["failures"][0]["file"] == "long.wav" and "Choose a shorter length" in found["failures"][0]["error"]


def test_toy_sounds_are_judged_by_analysis_and_by_a_reference(tiny_model: Path, result: Any) -> None:
    toys = "{class_path: toy-sounds, init_args: {size: 3, seconds: 0.5, events: [1, 1], seed: SEED}}"
    data = [toys.replace("SEED", seed) for seed in ("1", "2")]
    found = result("evaluate", "--model", tiny_model, "--tasks", "generate", "--dataset", data[0], "--reference", data[1])
    assert {"right", "novelty", "bandwidth_of_data"} <= found["generated"].keys()
    assert found["made_with"]["reference"]["clips"] == 3 and found["not_measured"] == []


def test_what_a_reference_found_is_printed_in_lines() -> None:
    wrong = [{"caption": f"c{i}", "heard": "x", "clips": 2, "of": 3 + i} for i in range(7)]
    report: dict[str, Any] = {
        "clips": 1234,
        "captions": 7,
        "sample_rate": 16000,
        "seconds": 1.5,
        "judged": 20,
        "confusions": wrong,
        "copy_below": 0.3,
        "copies": [{"clip": "a.wav", "of": "b.wav", "novelty": 0.123}],
        "saturated": ["nearest: why"],
        "notes": ["what"],
    }
    result = {"clips": 20, "unreadable": 0, "unmeasurable": 0, "details": [], "not_measured": [], "reference": report}
    named = "; ".join(f"'c{i}' as 'x' 2 of {3 + i}" for i in range(5))
    assert result_lines(result)[2:] == [
        "reference: 1,234 training clips of 7 captions, compared at 16000 Hz, up to 1.5 s; "
        "scores that end in _of_data are those of the held-out clips themselves",
        f"classified wrongly: {named}; and 2 more",
        "copies (novelty below 0.3), generated for: 'a.wav' of 'b.wav' (0.12)",
        "saturated: nearest: why",
        "note: what",
    ]
    bare = report | {"captions": 0, "confusions": [], "copies": [], "saturated": [], "notes": []}
    (line,) = result_lines(result | {"reference": bare})[2:]
    assert line.startswith("reference: 1,234 training clips, compared at 16000 Hz")


def test_unreadable_clips_of_the_reference_change_the_exit_status(folder: Path, tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    soundfile.write(tmp_path / "good.wav", np.ones(4000) / 8, 8000)
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    command = ("evaluate", "--model", tiny_model, "--tasks", "generate", "--dataset", slot(folder, "held-out/*"), "--json")
    loose = f"{{class_path: audio-folder, init_args: {{path: '{tmp_path}', captions: false}}}}"
    assert main([*map(str, command), "--reference", loose]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["file"] for row in found["failures"]] == ["bad.wav"] and "left out 'bad.wav', a clip of the reference: " in err
    assert found["reference"]["notes"] == [
        "captions are not judged: not every clip of the reference has a caption",
        "novelty is not measured: the reference has no two different clips to compare",
    ]


def test_a_wrong_reference_is_refused_in_one_line(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    command = ("evaluate", "--model", tiny_model, "--dataset", slot(folder, "held-out/*"))
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    same = slot(folder, "held-out/*")
    spelled = [str(folder), ".", "./", f"{folder}/train/..", str(tmp_path / "link"), os.path.relpath(folder)]
    for one in (same, *(same.replace(str(folder), other) for other in spelled), same.replace("audio-folder", "soundomni:audio-folder")):
        assert "the reference is the dataset that is measured" in fails(*command, "--reference", one)
    assert "Did you mean 'audio-folder'" in fails(*command, "--reference", "audio-foldr")
    assert f"'{folder / 'none'}'" in fails(*command, "--reference", slot(folder / "none"))
    assert "Add generate, or leave the reference out" in fails(*command, "--reference", slot(folder), "--tasks", "describe")
    line = fails(*command, "--reference", "{class_path: audio-folder, init_arg: {}}")
    assert "unknown key 'reference.init_arg'. Did you mean 'init_args'?" in line
