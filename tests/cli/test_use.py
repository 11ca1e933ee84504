"""Training, exporting and using a model from the command line, with right and with wrong input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.waveform import Audio
from soundomni.data.audio import read_audio


def test_training_leaves_everything_a_run_is(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert {"spec.yaml", "lock.json", "metrics.jsonl", "tokenizer.json", "checkpoints"} <= names
    steps = [json.loads(line)["step"] for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_finished_run_is_not_trained_again(tiny_spec: Path, tiny_run: Path) -> None:
    before = (tiny_run / "metrics.jsonl").read_text()
    assert main(["train", "--config", str(tiny_spec)]) == 0
    assert (tiny_run / "metrics.jsonl").read_text() == before


def test_generate_writes_sound_and_pictures(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    made = result(
        "generate",
        "--model",
        tiny_model,
        "--prompt",
        "a sine tone",
        "--prompt",
        "two clicks",
        "--seconds",
        "0.4",
        "--out",
        tmp_path / "out",
    )
    assert len(made["clips"]) == 2
    for clip in made["clips"]:
        wav, png = map(Path, clip["files"])
        waveform, rate = soundfile.read(wav)
        assert rate == 8000 and len(waveform) == 3200 and np.isfinite(waveform).all() and np.abs(waveform).max() > 0
        assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("prompt", ["a tone\x1b[2J", "a tone \x07\x08", "a tone\u202egnp.exe", "a\ntone"])
def test_a_prompt_never_drives_the_terminal(tiny_model: Path, tmp_path: Path, prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["generate", "--model", str(tiny_model), "--seconds", "0.4", "--no-pictures", "--prompt", prompt, "--out", out]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable() and " a" in line


def test_a_clip_depends_on_its_prompt_and_seed_alone(tiny_model: Path, tmp_path: Path) -> None:
    def make(name: str, *arguments: str) -> np.ndarray:
        out = tmp_path / name
        common = ["generate", "--model", str(tiny_model), "--seconds", "0.4", "--no-pictures", "--out", str(out)]
        assert main([*common, *arguments]) == 0
        return np.stack([soundfile.read(path, dtype="int16")[0] for path in sorted(out.glob("*.wav"))])

    both = make("both", "--prompt", "a sine tone", "--prompt", "two loud clicks", "--seed", "7")
    second = make("second", "--prompt", "two loud clicks", "--seed", "8", "--batch", "1")
    other = make("other", "--prompt", "two loud clicks", "--seed", "9")
    assert np.abs(both[1].astype(int) - second[0]).max() <= 1
    assert np.abs(both[1].astype(int) - other[0]).max() > 1


def test_a_grid_makes_every_combination(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: [a sine tone, white noise]\nseconds: 0.3\nguidance: [1.0, 3.0]\nsteps: [1, 2]\nseed: [0, 1]\n")
    made = result("generate", "--model", tiny_model, "--grid", grid, "--no-pictures", "--out", tmp_path / "out")["clips"]
    assert len(made) == 16 == len({(c["prompt"], c["guidance"], c["steps"], c["seed"]) for c in made})
    log = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert [line["file"] for line in log] == [Path(clip["files"][0]).name for clip in made]


def test_what_a_grid_leaves_out_is_as_the_options_say(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: [noise, clicks]\nsteps: [1, 2]\n")
    options = ("--seconds", "0.25", "--steps", "9", "--guidance", "2.5", "--seed", "7", "--negative", "a tone")
    made = result("generate", "--model", tiny_model, "--grid", grid, *options, "--no-pictures", "--out", tmp_path / "out")["clips"]
    assert [clip["steps"] for clip in made] == [1, 1, 2, 2]
    assert {(c["seconds"], c["guidance"], c["seed"], c["negative"]) for c in made} == {(0.25, 2.5, 7, "a tone")}


def test_a_clip_beyond_full_scale_is_written_quieter_and_that_is_said(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = np.full((1, 800), 2.0, dtype=np.float32)
    monkeypatch.setattr(SoundOmni, "generate", lambda self, prompts, **given: [Audio(loud, 8000)] * len(prompts))
    assert main(["generate", "--model", str(tiny_model), "--prompt", "noise", "--no-pictures", "--out", str(tmp_path)]) == 0
    assert "000-noise.wav: exceeded full scale; saved 6.0 dB quieter\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "prompts.jsonl").read_text())["gain"] == 0.5
    assert np.abs(soundfile.read(tmp_path / "000-noise.wav")[0]).max() == pytest.approx(1.0, abs=1e-3)


def test_the_files_are_the_result_on_stdout(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--model", str(tiny_model), "--seconds", "0.2", "--no-pictures", "--out", str(tmp_path)]
    assert main([*arguments, "--prompt", "a sine tone", "--prompt", "two\nclicks"]) == 0
    first, second = tmp_path / "000-a-sine-tone.wav", tmp_path / "001-two-clicks.wav"
    assert capsys.readouterr().out == f"{first}  a sine tone\n{second}  two clicks\n"


def test_a_second_call_goes_on_where_the_first_ended(tiny_model: Path, tmp_path: Path) -> None:
    common = ["generate", "--model", str(tiny_model), "--seconds", "0.2", "--no-pictures", "--out", str(tmp_path)]
    assert main([*common, "--prompt", "noise", "--prompt", "clicks"]) == 0
    first = (tmp_path / "000-noise.wav").read_bytes()
    (tmp_path / "011-mine.txt").write_text("kept")
    assert main([*common, "--prompt", "noise", "--seed", "5"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == ["000-noise.wav", "001-clicks.wav", "012-noise.wav"]
    assert (tmp_path / "000-noise.wav").read_bytes() == first
    log = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [(line["file"], line["seed"]) for line in log] == [("000-noise.wav", 0), ("001-clicks.wav", 1), ("012-noise.wav", 5)]


def test_finished_clips_are_in_the_log_when_a_later_one_fails(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: noise\nseconds: [0.2, 100.0]\n")
    out = tmp_path / "out"
    assert "the model was trained with at most 256" in fails("generate", "--model", tiny_model, "--grid", grid, "--out", out)
    assert [json.loads(line)["file"] for line in (out / "prompts.jsonl").read_text().splitlines()] == ["000-noise.wav"]


def test_a_file_is_continued_and_its_gap_is_filled(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    file = tmp_path / "start.wav"
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(3200), 8000)
    given = soundfile.read(file)[0]
    common = ("generate", "--model", tiny_model, "--prompt", "noise", "--no-pictures", "--out", tmp_path / "out", "--keep", file)
    clip = result(*common, "--seconds", "0.8")["clips"][0]
    made = soundfile.read(clip["files"][0])[0]
    assert len(made) == 6400 and np.abs(made[:3000] - given[:3000]).max() < 1e-3
    assert (clip["keep"], clip["spans"]) == (str(file), [[0.0, 0.4]])
    clip = result(*common, "--seconds", "0.4", "--span", "0:0.1", "--span", "0.3:0.4")["clips"][0]
    made = soundfile.read(clip["files"][0])[0]
    assert np.abs(made[:700] - given[:700]).max() < 1e-3 and np.abs(made[2600:] - given[2600:]).max() < 1e-3
    assert np.abs(made[1000:2200] - given[1000:2200]).max() > 0.01


def test_a_file_is_varied(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    file = tmp_path / "start.wav"
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(3200), 8000)
    given = soundfile.read(file)[0]
    common = ("generate", "--model", tiny_model, "--prompt", "noise", "--no-pictures", "--out", tmp_path / "out", "--vary", file)
    near, far = (result(*common, "--strength", strength)["clips"][0] for strength in ("0.01", "0.9"))
    assert (near["vary"], near["strength"], near["seconds"]) == (str(file), 0.01, 0.4)
    distances = [np.abs(soundfile.read(clip["files"][0])[0] - given).mean() for clip in (near, far)]
    assert distances[0] < 0.2 * distances[1]
    assert len(soundfile.read(result(*common, "--seconds", "0.3")["clips"][0]["files"][0])[0]) == 2400


def test_weights_are_stored_in_half_precision(tiny_run: Path, tiny_model: Path, tmp_path: Path, result: Any) -> None:
    result("export", tiny_run, "--out", tmp_path / "half", "--dtype", "float16")
    whole, half = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "half"))
    for name, value in whole.items():
        assert half[name].dtype == (torch.float16 if value.is_floating_point() else value.dtype)
        torch.testing.assert_close(half[name].to(value.dtype), value, rtol=1e-3, atol=1e-6)
    model = SoundOmni.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert (tmp_path / "half" / "model.safetensors").stat().st_mode == (tmp_path / "half" / "spec.yaml").stat().st_mode


def test_weights_beyond_half_precision_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    with torch.no_grad():
        next(model.model.parameters()).fill_(1e6)
    with pytest.raises(CheckpointError, match="has values up to 1e\\+06, too large for torch.float16; store float32 or bfloat16"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()


def test_samplers_are_swapped_by_name(tiny_model: Path, tmp_path: Path) -> None:
    for sampler in ("heun", "midpoint", "rk4", "dpmpp"):
        arguments = ["--model", str(tiny_model), "--prompt", "noise", "--seconds", "0.2", "--no-pictures", "--steps", "2"]
        assert main(["generate", *arguments, f"--sampler={sampler}", "--out", str(tmp_path / sampler)]) == 0
        assert len(list((tmp_path / sampler).glob("*.wav"))) == 1


def test_describe_says_something_of_each_file(tiny_model: Path, wav: Path, result: Any) -> None:
    heard = result("describe", wav, wav, "--model", tiny_model)["heard"]
    assert len(heard) == 2 and heard[0]["text"] == heard[1]["text"]
    asked = result("describe", wav, "--model", tiny_model, "--question", "how many events?", "--max-tokens", "3")
    assert asked["question"] == "how many events?"
    model = SoundOmni.from_pretrained(tiny_model)
    clip = Audio(*read_audio(wav))
    texts = [model.describe([clip], question="how many events?", max_new_tokens=most)[0] for most in (3, 4)]
    assert asked["heard"][0]["text"] == texts[0] != texts[1]


def test_described_files_are_drawn_by_their_own_seeds_whatever_the_batch(tiny_model: Path, wav: Path, tmp_path: Path, result: Any) -> None:
    drawn = ["--model", tiny_model, "--max-tokens", "6", "--temperature", "1.5", "--top-k", "200", "--top-p", "0.99"]
    texts = [one["text"] for one in result("describe", wav, wav, wav, *drawn, "--seed", "7", "--batch", "2")["heard"]]
    assert len(set(texts)) > 1
    assert [result("describe", wav, *drawn, "--seed", str(seed))["heard"][0]["text"] for seed in (7, 8, 9)] == texts
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    for unusable in (broken, tmp_path / "missing.wav"):  # a file keeps its seed if another one cannot be used
        heard = result("describe", unusable, wav, wav, *drawn, "--seed", "7", status=1)["heard"]
        assert [one["text"] for one in heard] == texts[1:]


def test_reconstruct_measures_an_invertible_codec(tiny_model: Path, wav: Path, tmp_path: Path, result: Any) -> None:
    row = result("reconstruct", wav, "--model", tiny_model, "--out", tmp_path / "out")["files"][0]
    assert row["si_sdr"] > 60
    assert soundfile.info(row["out"]).samplerate == 8000


def test_reconstruct_in_chunks_writes_the_same_file(tiny_model: Path, wav: Path, tmp_path: Path, result: Any) -> None:
    whole, cut = (result("reconstruct", wav, "--model", tiny_model, "--out", tmp_path / n, "--chunk", n)["files"][0] for n in ("9", "0.05"))
    assert whole["out"] != cut["out"] and whole["si_sdr"] > 60 and cut["si_sdr"] > 60
    made, again = (soundfile.read(row["out"], dtype="int16")[0].astype(int) for row in (whole, cut))
    assert made.shape == again.shape and np.abs(made - again).max() <= 1


def test_a_codec_that_takes_clips_whole_reconstructs_them_and_is_not_cut(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    clip = Audio(np.sin(np.arange(900, dtype=np.float32) / 9)[None], 8000)
    cut = model.reconstruct(clip, chunk_seconds=0.02)
    monkeypatch.setattr(type(model.model.made().codec), "receptive_field", None)
    assert np.allclose(model.reconstruct(clip).waveform, cut.waveform, atol=1e-5)
    with pytest.raises(SpecError, match="declares no receptive_field"):
        model.reconstruct(clip, chunk_seconds=0.02)


def test_the_model_in_three_lines_of_python(tiny_model: Path, tmp_path: Path) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    clip = model.generate(["a sine tone"], seconds=0.4)[0]
    assert clip.waveform.shape == (1, 3200) and isinstance(model.describe([clip])[0], str)
    again = SoundOmni.from_pretrained(model.save_pretrained(tmp_path / "copy"))
    assert np.array_equal(again.generate(["a sine tone"], seconds=0.4)[0].waveform, clip.waveform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "x", "--seconds", "0"], "--seconds is 0; expected a number above 0"),
        (["--prompt", "x", "--seconds", "inf"], "--seconds is inf; expected a number above 0 and at most 86,400"),
        (["--prompt", "x", "--seconds", "nan"], "--seconds is nan; expected a number above 0"),
        (["--prompt", "x", "--seconds", "9"], "the model was trained with at most 256"),
        (["--prompt", "many words " * 200], "Shorten the prompt"),
        (["--prompt", "x", "--guidance", "nan"], "the guidance scale is nan; expected a number from"),
        (["--prompt", "x", "--guidance=-inf"], "the guidance scale is -inf; expected a number from"),
        (["--prompt", "x", "--guidance.scale=nan"], "guidance"),
        (["--prompt", "x", "--guidance", "1", "--negative", "y"], "a negative prompt does nothing"),
        (["--prompt", "x", "--guidance.scale=1", "--negative", "y"], "a negative prompt does nothing"),
        (["--prompt", "x", "--seed=-1"], "the seed is -1; expected a whole number from 0"),
        (["--prompt", "x", "--seed", "9223372036854775808"], "the seed is 9223372036854775808; expected a whole number from 0"),
        (
            ["--prompt", "x", "--prompt", "y", "--seed", "9223372036854775807"],
            "the seed is 9223372036854775807, and 2 seeds count up from it; expected at most 9223372036854775806. Set a smaller seed",
        ),
        (["--prompt", "x", "--device", "gpu"], "no device 'gpu' here; expected one of: cpu"),
        (["--prompt", "x", "--device", "cuda:99"], "no device 'cuda:99' here"),
        (["--prompt", "x", "--steps", "1000000000000"], "steps is 1000000000000; expected at most"),
        (["--prompt", "x", "--steps", "0"], "steps is 0; expected at least 1"),
        (["--prompt", "x", "--batch", "0"], "--batch is 0; expected at least 1"),
        (["--prompt", "x", "--sampler=hun"], "Did you mean 'heun'"),
        (["--prompt", "x", "--secnds", "1"], "Did you mean '--seconds'"),
        (["--prompt", "x", "--speech", "a.wav", "--model"], "--model needs a value"),
        (["--model", "--speech", "a.wav"], "--model needs a value"),
        (
            ["--prompt", "x", "--given", f"a={__file__}", "--given", f"a={__file__}"],
            "--given names 'a' twice. Give one file for each modality",
        ),
        (["--prompt", "x", "--grid", "y"], "exclude each other"),
        (["--grid", "missing.yaml"], "cannot read the grid"),
    ],
)
def test_wrong_requests_end_in_one_line(tiny_model: Path, fails: Any, arguments: list[str], message: str) -> None:
    assert message in fails("generate", "--model", tiny_model, *arguments)


WRONG_GRIDS = {
    "seconds: 1": "does not have the key prompt. Add it, with one prompt or a list of prompts",
    "promt: a": "unknown key 'promt'. Did you mean 'prompt'? Keys: prompt, seconds",
    "": "is empty; expected a mapping with the key prompt",
    "prompt: [1]": "prompt is 1; expected text",
    "prompt: a\nstep: 3": "unknown key 'step'. Did you mean 'steps'",
    "prompt: a\nseed: true": "seed is True; expected a whole number",
    "prompt: a\nseed: null": "seed is null; expected a whole number",
    "prompt: null": "prompt is null; expected text",
    "- a": "is a list; expected a mapping with the key prompt",
    "a": "is a single value; expected a mapping with the key prompt",
    "prompt: [a": "not valid YAML",
    "prompt: []": "prompt is an empty list",
    "prompt: a\nprompt: b": "key 'prompt' is given twice",
    "[" * 3000: "within more than 100 others",
    "prompt: a\nseed: 1:30": "seed is '1:30'; expected a whole number",
    "prompt: [a, b]\nseed: &s [" + "1, " * 300 + "1]\nsteps: *s": "asks for 181,202 clips; expected at most 100,000",
}


@pytest.mark.parametrize(("text", "message"), WRONG_GRIDS.items())
def test_wrong_grids_end_in_one_line(tiny_model: Path, tmp_path: Path, fails: Any, text: str, message: str) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(text)
    line = fails("generate", "--model", tiny_model, "--grid", grid)
    assert "the grid" in line and message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--prompt", "x", "--keep", "missing.wav"], "missing.wav"),
        (
            ["generate", "--prompt", "x", "--keep", "WAV", "--seconds", "0.3"],
            "lasts 0.5 s and would be kept whole, but the clip to make lasts 0.3 s",
        ),
        (
            ["generate", "--prompt", "x", "--keep", "WAV", "--seconds", "0.3", "--span", "0:0.5"],
            "the span to keep is (0.0, 0.5); expected (from, to) with 0 <= from < to <= 0.3 s",
        ),
        (["generate", "--prompt", "x", "--keep", "WAV", "--span", "0:1"], "the span to keep is (0.0, 1.0); expected"),
        (["generate", "--prompt", "x", "--keep", "WAV", "--span", "nan:1"], "0 <= from < to <= 0.5 s"),
        (["generate", "--prompt", "x", "--keep", "WAV", "--span", "1"], "expected FROM:TO in seconds"),
        (["generate", "--prompt", "x", "--vary", "missing.wav"], "missing.wav"),
        (["generate", "--prompt", "x", "--vary", "WAV", "--strength", "0"], "--strength is 0; expected a number above 0"),
        (["generate", "--prompt", "x", "--strength", "0.5"], "--strength says how much to vary a file. Give the file with --vary FILE"),
        (["generate", "--prompt", "x", "--span", "0:1"], "--span says which part of a file to keep; give the file with --keep FILE"),
        (["describe", "WAV", "--max-tokens", "0"], "--max-tokens is 0; expected at least 1"),
        (["describe", "WAV", "--max-tokens", "1000000000000"], "--max-tokens is 1000000000000; expected at most"),
        (["describe", "WAV", "--temperature", "-1"], "--temperature is -1; expected a finite number from 0"),
        (["describe", "WAV", "--temperature", "nan"], "--temperature is nan; expected a finite number from 0"),
        (["describe", "WAV", "--temperature", "1", "--top-k", "0"], "--top-k is 0; expected a number of tokens, at least 1"),
        (["describe", "WAV", "--temperature", "1", "--top-p", "1.5"], "--top-p is 1.5; expected a share of the probability"),
        (["describe", "WAV", "--temperature", "1", "--seed", "-1"], "the seed is -1; expected a whole number from 0"),
        (["describe", "WAV", "--top-p", "0.9"], "--top-p is 0.9, but without a temperature no token is sampled. Set --temperature too"),
        (["describe", "WAV", "--seed", "3"], "--seed is 3, but without a temperature no token is sampled. Set --temperature too"),
        (["describe", "WAV", "--device", "gpu"], "no device 'gpu'"),
        (["describe", "WAV", "--question", "how many events? " * 100], "Shorten the question"),
        (["describe", "WAV", "--question", " "], "--question is empty"),
        (["reconstruct", "WAV", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["reconstruct", "WAV", "--chunk", "0"], "--chunk is 0; expected a number above 0"),
        (["reconstruct", "WAV", "--chunk", "nan"], "--chunk is nan; expected a number above 0"),
        (["evaluate", "--device", "gpu"], "no device 'gpu'"),
        (["evaluate", "--seed=-3"], "the seed is -3; expected a whole number from 0"),
        (["evaluate", "--limit", "0"], "--limit is 0; expected at least 1"),
    ],
)
def test_wrong_numbers_and_devices_end_in_one_line(tiny_model: Path, wav: Path, fails: Any, arguments: list[str], message: str) -> None:
    assert message in fails(*(wav if a == "WAV" else a for a in arguments), "--model", tiny_model)


def test_a_clip_longer_than_in_training_is_refused(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 30), 8000)
    line = fails("describe", tmp_path / "long.wav", "--model", tiny_model)
    assert "a clip of 30 s and the start of the text" in line and "at most 256" in line


def test_files_that_cannot_be_heard_end_in_one_line(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF not really")
    assert "broken.wav" in fails("describe", broken, "--model", tiny_model)
    assert "missing.wav" in fails("reconstruct", tmp_path / "missing.wav", "--model", tiny_model)


def test_an_output_that_cannot_be_written_ends_in_one_line(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("generate", "--model", tiny_model, "--prompt", "x", "--out", tmp_path / "file" / "out")
    assert "cannot write" in fails("export", tiny_model.parent / "run", "--out", tmp_path / "file")
    assert "cannot write" in fails("export", tiny_model.parent / "run", "--out", tmp_path / "file" / "out")


def test_what_is_not_a_model_or_a_run_is_named(tmp_path: Path, fails: Any) -> None:
    assert "not a model directory" in fails("generate", "--model", tmp_path, "--prompt", "x")
    assert "Did you mean 'nano'?" in fails("generate", "--model", "nona", "--prompt", "x")
    assert "not a run directory" in fails("export", tmp_path, "--out", tmp_path / "out")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_export_destroys_nothing(tiny_run: Path, tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("my project")
    (mine / "config.json").write_text('{"format": 3}')
    annotated, run = tmp_path / "annotated", tmp_path / "run"
    shutil.copytree(tiny_model, annotated)
    (annotated / "notes.txt").write_text("what I heard")
    shutil.copytree(tiny_run, run)
    before = tree(tmp_path)
    assert "is neither empty nor a model directory" in fails("export", tiny_run, "--out", mine)
    assert "also holds 'notes.txt'" in fails("export", tiny_run, "--out", annotated)
    assert "is a run directory" in fails("export", tiny_run, "--out", run)
    assert "is a run directory" in fails("export", run, "--out", run)
    assert tree(tmp_path) == before


def test_export_replaces_an_older_model_and_fills_an_empty_folder(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    old, empty = tmp_path / "old", tmp_path / "empty"
    shutil.copytree(tiny_model, old)
    (old / "README.md").write_text("an older card")
    empty.mkdir()
    for folder in (old, empty, tmp_path / "new" / "er"):
        assert main(["export", str(tiny_run), "--out", str(folder)]) == 0
        assert tree(folder) == tree(tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new", "old"]


def test_a_write_that_fails_leaves_the_older_model_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    target = model.save_pretrained(tmp_path / "model")
    before = tree(tmp_path)
    with torch.no_grad():
        list(model.model.parameters())[-1].fill_(1e6)
    with pytest.raises(CheckpointError, match="too large for torch.float16"):
        model.save_pretrained(target, card="a newer card", dtype=torch.float16)
    with pytest.raises(DataError, match="is not valid Unicode"):
        model.save_pretrained(target, card="a card that no file can hold: \udc80")
    assert tree(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_directory_says_what_it_was_trained_with(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    model = SoundOmni.from_pretrained(tiny_model)
    assert model.max_tokens == 256
    copy = model.save_pretrained(tmp_path / "copy")
    assert tree(copy) == tree(tiny_model)
    config = json.loads((copy / "config.json").read_text())
    for limit, expected in ((0, "max_tokens is 0; expected"), ("many", "max_tokens is 'many'; expected")):
        (copy / "config.json").write_text(json.dumps({**config, "max_tokens": limit}))
        assert expected in fails("generate", "--model", copy, "--prompt", "x")
    for text, expected in (
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ('{"format": 3}', "reads the formats 1 and 2"),
    ):
        (copy / "config.json").write_text(text)
        assert expected in fails("generate", "--model", copy, "--prompt", "x")
    (copy / "config.json").write_text('{"format": 1}')
    assert SoundOmni.from_pretrained(copy).max_tokens is None
    (copy / "config.json").unlink()
    assert len(SoundOmni.from_pretrained(copy).generate(["x"], seconds=2.5)) == 1


def test_a_model_directory_may_not_name_files_to_open(tiny_spec: Path, tmp_path: Path, fails: Any) -> None:
    codec = "{class_path: oobleck, init_args: {sample_rate: 8000, base_channels: 4, channel_multiples: [1], strides: [64], latent_dim: 4}}"
    run, model = tmp_path / "run", tmp_path / "model"
    trained = ["--train.steps=1", "--train.random_codec=true"]
    assert main(["train", "--config", str(tiny_spec), f"--train.run_dir={run}", f"--model.codec={codec}", *trained]) == 0
    assert main(["export", str(run), "--out", str(model)]) == 0
    spec = model / "spec.yaml"
    arguments = ["generate", "--model", model, "--prompt", "x", "--seconds", "0.2", "--no-pictures", "--out", tmp_path / "out"]
    assert "model.codec.weights is '/etc/passwd', but a model directory holds" in fails(*arguments, "--model.codec.weights=/etc/passwd")
    tree_of = yaml.safe_load(spec.read_text())
    assert "weights" not in tree_of["model"]["codec"]["init_args"]
    tree_of["model"]["tokenizer"]["path"] = "/etc/passwd"
    spec.write_text(yaml.safe_dump(tree_of))
    assert main([str(a) for a in arguments]) == 0
    tree_of["model"]["codec"]["init_args"]["weights"] = "/etc/passwd"
    spec.write_text(yaml.safe_dump(tree_of))
    assert "'/etc/passwd', but a model directory" in fails(*arguments)


def test_a_model_directory_may_not_name_import_paths(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    stranger = tmp_path / "stranger"
    shutil.copytree(tiny_model, stranger)
    spec = stranger / "spec.yaml"
    spec.write_text(spec.read_text().replace("class_path: mdct", "class_path: os.path.join"))
    assert "os.path.join" in fails("generate", "--model", stranger, "--prompt", "x")
    assert "os.path.join" in fails("generate", "--model", stranger, "--prompt", "x", "--trust-class-paths")


def test_damaged_and_foreign_weights_are_refused(tiny_model: Path, tmp_path: Path, fails: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    weights = copy / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "extra": torch.zeros(1)}, weights)
    assert "of another model: 1 tensor unexpected" in fails("generate", "--model", copy, "--prompt", "x")
    save_file(dict(list(state.items())[1:]), weights)
    assert "1 tensor missing" in fails("generate", "--model", copy, "--prompt", "x")
    save_file({"extra": torch.zeros(1)}, weights)
    line = fails("generate", "--model", copy, "--prompt", "x")
    assert line.endswith(f"but '{copy}' only holds 1 tensor. Use the weights that belong to this spec")
    weights.write_bytes((tiny_model / "model.safetensors").read_bytes()[:-100])
    assert "cannot be read as safetensors" in fails("generate", "--model", copy, "--prompt", "x")
