"""Files that commands read and write: one bad one stops nothing, nothing made is lost, and every path means what a user expects."""

import json
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli import folders
from soundomni.cli.folders import append_line, claimed_number, claimed_numbers
from soundomni.cli.main import main
from soundomni.core.errors import DataError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.waveform import Audio
from soundomni.data.audio_formats import FORMATS

SINE = 0.3 * np.sin(np.arange(4000) / 5)


@pytest.fixture
def some(tmp_path: Path) -> list[Path]:
    """Two files that can be used among three that cannot: no audio, none at all, and too long for the tiny model."""
    good = [tmp_path / "first.wav", tmp_path / "last.flac"]
    for path in good:
        soundfile.write(path, SINE, 8000)
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 30), 8000)
    return [good[0], tmp_path / "text.wav", tmp_path / "missing.wav", tmp_path / "long.wav", good[1]]


def generate(model: Path, out: Path, *arguments: object) -> int:
    common = ["generate", "--model", model, "--seconds", "0.2", "--steps", "1", "--out", out]
    return main([str(one) for one in (*common, *arguments)])


def test_bad_files_do_not_stop_the_others_from_being_heard(
    tiny_model: Path, some: list[Path], result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--model", str(tiny_model), "--max-tokens", "2")
    for batch in ("1", "2", "8"):
        told = result("describe", *some, *quick, "--batch", batch, status=1)
        assert [one["file"] for one in told["heard"]] == [str(some[0]), str(some[4])]
        assert {one["file"] for one in told["failures"]} == set(map(str, some[1:4])) and "error" not in told
    alone = result("describe", some[0], *quick)
    assert alone["heard"][0] == told["heard"][0] and alone["failures"] == []
    assert main(["describe", *map(str, some), *quick]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("soundomni: error: ")]
    assert len(lines) == 3 and all(any(path.name in line for line in lines) for path in some[1:4])
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [str(some[0]), str(some[4])]


def test_names_with_line_breaks_stay_on_one_line(tiny_model: Path, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "a\nb.wav"
    good.write_bytes(wav.read_bytes())
    bad = [tmp_path / "no\nsuch.wav", tmp_path / "noise\r\nof.wav"]
    bad[1].write_bytes(b"noise")
    assert main(["describe", *map(str, (good, *bad, wav)), "--model", str(tiny_model), "--max-tokens", "1"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 and "a b.wav: " in captured.out
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 2 and all(line.startswith("soundomni: error: cannot read '") for line in errors)


def test_bad_files_do_not_stop_the_others_from_being_reconstructed(tiny_model: Path, some: list[Path], tmp_path: Path, result: Any) -> None:
    damaged = bytearray(some[4].read_bytes())
    damaged[1000:1200] = bytes(range(200))
    broken = tmp_path / "broken.flac"  # its header can be read, and what follows cannot
    broken.write_bytes(damaged)
    out = tmp_path / "out"
    told = result("reconstruct", some[1], some[0], broken, some[4], "--model", tiny_model, "--out", out, status=1)
    assert [Path(row["out"]).name for row in told["files"]] == ["000-first.wav", "001-last.wav"]
    assert [one["file"] for one in told["failures"]] == [str(some[1]), str(broken)]
    assert sorted(path.name for path in out.iterdir()) == ["000-first.wav", "001-last.wav"]


@pytest.mark.parametrize("command", ["describe", "reconstruct"])
def test_without_a_file_that_can_be_used_each_is_named_and_no_model_is_loaded(
    some: list[Path], tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [str(path) for path in some[1:3]]
    assert main([command, *bad, "--model", "no-such-model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and [line.startswith("soundomni: error: cannot read") for line in captured.err.splitlines()] == [True] * 2
    assert main(["--json", command, *bad, "--model", "no-such-model"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "none of the 2 files could be used" and [one["file"] for one in told["failures"]] == bad
    assert main(["--json", command, bad[1], "--model", "no-such-model"]) == 2
    assert "no such file" in json.loads(capsys.readouterr().out)["error"]


def test_files_are_read_one_batch_at_a_time(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundomni.core.inference.round_trip as round_trip
    import soundomni.data.audio as audio

    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", SINE, 8000)
    log: list[str] = []
    read, describe, trips = audio.read_audio, SoundOmni.describe, round_trip.round_trips
    monkeypatch.setattr(audio, "read_audio", lambda path: (log.append("read"), read(path))[1])
    monkeypatch.setattr(SoundOmni, "describe", lambda self, clips, **k: (log.append("use"), describe(self, clips, **k))[1])
    monkeypatch.setattr(round_trip, "round_trips", lambda codec, *a, **k: (log.append("use"), trips(codec, *a, **k))[1])
    paths = [str(tmp_path / f"{i}.wav") for i in range(5)]
    assert main(["describe", *paths, "--model", str(tiny_model), "--batch", "2", "--max-tokens", "1"]) == 0
    assert log == ["read", "read", "use", "read", "read", "use", "read", "use"]
    log.clear()
    assert main(["reconstruct", *paths, "--model", str(tiny_model), "--out", str(tmp_path / "out")]) == 0
    assert log == ["read", "use"] * 5


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written(tiny_model: Path, tmp_path: Path, name: str, result: Any) -> None:
    kind, source = FORMATS[name], tmp_path / "a.wav"
    soundfile.write(source, SINE, 8000)
    row = result("reconstruct", source, "--model", tiny_model, "--format", name, "--out", tmp_path / "out")["files"][0]
    assert generate(tiny_model, tmp_path / "out", "--prompt", "noise", "--format", name, "--no-pictures") == 0
    log = json.loads((tmp_path / "out" / "prompts.jsonl").read_text())
    for path in (Path(row["out"]), tmp_path / "out" / log["file"]):
        info = soundfile.info(path)
        assert (path.suffix, info.format, info.subtype, info.samplerate) == (kind.suffix, kind.container, kind.subtype, 8000)
    assert row["gain"] == 1.0 and log["file"] == f"001-noise{kind.suffix}"


def test_formats_are_checked_before_anything_is_made(tiny_model: Path, wav: Path, tmp_path: Path, fails: Any) -> None:
    out = tmp_path / "out"
    assert "Did you mean 'mp3'?" in fails("generate", "--model", tiny_model, "--prompt", "x", "--format", "mp4", "--out", out)
    assert "expected one of wav, wav24" in fails("reconstruct", wav, "--model", tiny_model, "--format", "m4a", "--out", out)
    for name, meant in (("WAV", "wav"), (".FLAC", "flac"), ("Wav32f", "wav32f")):
        assert f"Did you mean '{meant}'?" in fails("reconstruct", wav, "--model", tiny_model, "--format", name, "--out", out)
    for chunk in ("nan", "0"):
        assert "expected a number above 0" in fails("reconstruct", wav, "--model", tiny_model, "--chunk", chunk, "--out", out)
    for command in (("reconstruct", wav), ("generate", "--prompt", "x")):
        assert "it is a file; expected a directory" in fails(*command, "--model", tiny_model, "--out", wav)
    for rate, name in ((7000, "mp3"), (96000, "mp3"), (300_000, "ogg")):
        codec = f"--model.codec.sample_rate={rate}"
        line = fails("generate", "--model", tiny_model, codec, "--prompt", "x", "--format", name, "--seconds", "0.01", "--out", out)
        assert f"does not support {rate} Hz, only " in line
    assert not out.exists()


def test_a_reconstruction_that_is_written_quieter_says_so(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, peak in (("two", 2.0), ("four", 4.0), ("one", 0.9)):
        soundfile.write(tmp_path / f"{name}.wav", peak / 0.3 * SINE, 8000, subtype="FLOAT")
    paths = [str(tmp_path / f"{name}.wav") for name in ("two", "four", "one")]
    arguments = ["reconstruct", *paths, "--model", str(tiny_model), "--out", str(tmp_path / "out")]
    assert main(["--json", *arguments]) == 0
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if "exceeded full scale" in line]
    assert len(said) == 2 and "000-two.wav: exceeded full scale; saved 6.0 dB quieter" in said[0] and "saved 12.0 dB quieter" in said[1]
    assert [row["gain"] for row in json.loads(captured.out)["files"]] == [pytest.approx(0.5, rel=0.02), pytest.approx(0.25, rel=0.02), 1.0]
    assert main([*arguments, "--format", "wav32f"]) == 0  # floats have no full scale
    assert "quieter" not in capsys.readouterr().err
    assert np.abs(soundfile.read(tmp_path / "out" / "004-four.wav")[0]).max() == pytest.approx(4.0, rel=0.02)


def test_any_prompt_has_its_clip_and_its_picture(tiny_model: Path, tmp_path: Path) -> None:
    prompts = ["cash $$ money $$", "a $^$ sign", "\\frac{$ _", "two\nlines\x07", "\U0001f415 barks", "noise"]
    assert generate(tiny_model, tmp_path, *(one for prompt in prompts for one in ("--prompt", prompt))) == 0
    assert len(list(tmp_path.glob("*.wav"))) == len(list(tmp_path.glob("*.png"))) == len(prompts)


def test_a_picture_that_fails_costs_no_clip(tiny_model: Path, tmp_path: Path, result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from soundomni.data import spectrogram

    def fail(path: Path, *_: Any, title: str, **__: Any) -> Path:
        if title == "noise":
            raise ValueError("an error\nof two lines")
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(spectrogram, "save_spectrogram", fail)
    arguments = ("--prompt", "noise", "--prompt", "clicks", "--seconds", "0.2", "--steps", "1", "--batch", "1", "--out", tmp_path)
    told = result("generate", "--model", tiny_model, *arguments, status=1)
    assert [len(clip["files"]) for clip in told["clips"]] == [1, 2] and len(list(tmp_path.glob("*.wav"))) == 2
    assert [(Path(one["file"]).name, one["error"]) for one in told["failures"]] == [("000-noise.png", "an error of two lines")]


def test_what_was_made_before_a_failure_is_whole(tiny_model: Path, tmp_path: Path, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SoundOmni.generate
    calls: list[int] = []

    def fail_at_third(self: SoundOmni, prompts: list[str], **given: Any) -> list[Audio]:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise DataError("the third batch cannot be made")
        return whole(self, prompts, **given)

    monkeypatch.setattr(SoundOmni, "generate", fail_at_third)
    prompts = [one for i in range(6) for one in ("--prompt", f"noise {i}")]
    arguments = ("generate", "--model", tiny_model, *prompts, "--seconds", "0.2", "--steps", "1", "--batch", "2", "--no-pictures")
    assert "the third batch" in fails(*arguments, "--out", tmp_path)
    log = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in log] == [f"noise {i}" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(line["file"] for line in log), "prompts.jsonl"])


def test_numbers_are_never_taken_twice(tmp_path: Path) -> None:
    taken: list[int] = []
    start = threading.Barrier(4)

    def write(slug: str) -> None:
        start.wait()
        for i in range(25):
            with claimed_number(tmp_path) as number:
                (tmp_path / f"{number:03d}-{slug}-{i}.wav").write_text("")
                taken.append(number)
            append_line(tmp_path / "prompts.jsonl", json.dumps({"number": number, "slug": slug * 3000}))

    threads = [threading.Thread(target=write, args=(slug,)) for slug in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(100))
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert sorted(row["number"] for row in rows) == list(range(100))
    assert len(list(tmp_path.iterdir())) == 101  # no claim is left


def test_a_number_that_was_taken_in_between_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "000-a.wav").write_text("")
    monkeypatch.setattr(folders, "next_number", lambda folder: 0)  # as if the file above came after it was asked for
    (tmp_path / ".001.claim").write_text("")
    with claimed_number(tmp_path) as number:
        assert number == 2
    with pytest.raises(ZeroDivisionError), claimed_number(tmp_path):
        _ = 1 / 0
    assert {path.name for path in tmp_path.iterdir()} == {"000-a.wav", ".001.claim"}


def test_numbers_in_a_row_are_free_and_stay_reserved(tmp_path: Path) -> None:
    """Rows and single numbers lie around them; files and claims within a row move it on."""
    (tmp_path / ".002.claim").write_text("")
    with claimed_numbers(tmp_path, 3) as first:
        assert first == 3
        with claimed_numbers(tmp_path, 2) as second, claimed_number(tmp_path) as single:
            assert (second, single) == (0, 6)
    assert {path.name for path in tmp_path.iterdir()} == {".002.claim"}
    (tmp_path / "007-a.wav").write_text("")
    with claimed_numbers(tmp_path, 2) as first:
        assert first == 8


def test_a_line_that_the_disk_has_no_room_for_is_not_there_in_part(tmp_path: Path) -> None:
    log = tmp_path / "prompts.jsonl"
    append_line(log, '{"whole": 1}')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        for _ in range(2):
            with pytest.raises(DataError, match=r"cannot write .*prompts.jsonl': the disk is full"):
                append_line(log, json.dumps({"long": "x" * 100}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_line(log, '{"whole": 2}')
    assert log.read_text() == '{"whole": 1}\n{"whole": 2}\n'
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write .*folder': Is a directory"):
        append_line(tmp_path / "folder", "x")


def test_a_tilde_is_the_home_folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any, result: Any) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "model").symlink_to(tiny_model)
    (home / "grid.yaml").write_text("prompt: noise\nseconds: 0.2\nsteps: 1\n")
    soundfile.write(home / "a.wav", SINE, 8000)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    quick = ("--seconds", "0.6", "--steps", "1", "--no-pictures", "--out=~/out")
    clips = [
        result("generate", "--model=~/model", "--prompt", "x", "--keep=~/a.wav", *quick)["clips"][0],
        result("generate", "--model=~/model", "--prompt", "x", "--vary=~/a.wav", *quick)["clips"][0],
        result("generate", "--model=~/model", "--grid=~/grid.yaml", "--no-pictures", "--out=~/out")["clips"][0],
    ]
    assert [Path(clip["files"][0]).parent for clip in clips] == [home / "out"] * 3 and clips[0]["keep"] == str(home / "a.wav")
    assert result("reconstruct", "~/a.wav", "--model=~/model", "--out=~/out")["files"][0]["out"] == str(home / "out" / "003-a.wav")
    assert result("describe", "~/a.wav", "--model=~/model", "--max-tokens", "1")["heard"][0]["file"] == str(home / "a.wav")
    assert "names the home folder of a user who does not exist" in fails("describe", "~nobody-here/a.wav", "--model", "nano")
    assert not any(path.name.startswith("~") for path in tmp_path.iterdir())


def test_errors_say_where_relative_paths_were_looked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    make = ("generate", "--model", tiny_model, "--prompt", "x")
    for arguments, place in (
        (("describe", "a.wav", "--model", tiny_model), "a.wav"),
        (("reconstruct", "sub/a.wav", "--model", tiny_model), "sub/a.wav"),
        ((*make, "--keep", "a.wav"), "a.wav"),
        ((*make, "--vary", "a.wav"), "a.wav"),
        (("generate", "--model", tiny_model, "--grid", "grid.yaml"), "grid.yaml"),
        (("generate", "--model", "my-model", "--prompt", "x"), "my-model"),
        (("evaluate", "--model", tiny_model, "--list", "own.yaml"), "own.yaml"),
        ((*make, "--out", "file/out"), "file/out"),
    ):
        assert str(tmp_path / place) in fails(*arguments)


def test_auto_picks_a_device_and_says_what_was_never_tested(
    tiny_model: Path, wav: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    import torch

    from soundomni.cli.model_options import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["--json", "describe", str(wav), "--model", str(tiny_model), "--max-tokens", "1", "--device", "auto"]) == 0
    captured = capsys.readouterr()
    assert "--device auto runs on cpu: this machine has neither cuda nor mps\n" in captured.err and json.loads(captured.out)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for available, given, device in ((True, "auto", "cuda"), (True, "cuda:0", "cuda:0"), (False, "auto", "mps"), (False, "mps", "mps")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert choose_device(argparse.Namespace(device=given)) == device
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"SoundOmni has never been tested on {device.partition(':')[0]}" in said
    assert choose_device(argparse.Namespace(device="cpu")) == "cpu" and capsys.readouterr().err == ""
