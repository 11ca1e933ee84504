"""Whatever a user gets wrong in a spec, a folder or a run ends in one clear line and status 2, and nothing is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main


@pytest.fixture
def train_fails(tiny_spec: Path, tmp_path: Path, fails: Any) -> Callable[..., str]:
    """Runs a training that must fail, in a run directory of its own, and returns the one line."""

    def run(*overrides: str) -> str:
        line: str = fails("train", "--config", tiny_spec, f"--train.run_dir={tmp_path / 'run'}", *overrides)
        return line

    return run


def folder_of(path: Path, count: int = 4, *, seconds: float = 0.5, captions: bool = True) -> Path:
    """A folder of short noises with captions."""
    path.mkdir()
    for i in range(count):
        soundfile.write(path / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(int(8000 * seconds)), 8000)
        if captions:
            (path / f"{i}.txt").write_text("some noise")
    return path


def from_folder(path: Path, tasks: str = "{generate: 1}") -> str:
    return f"--data.datasets={{toys: null, mine: {{source: {{class_path: audio-folder, init_args: {{path: '{path}'}}}}, tasks: {tasks}}}}}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--model.codec=mdtc", "Did you mean 'mdct'?"),
        ("--model.codec=nobody:mdct", "nobody:mdct"),
        ("--model.codec=os.path.join", "--trust-class-paths"),
        ("--model.codec.frame_sise=64", "Did you mean 'frame_size'"),
        ("--model.codec.frame_size=big", "frame_size"),
        ("--model.codec.sample_rate=0", "sample_rate"),
        ("--model.codec.sample_rate=-8000", "sample_rate"),
        ("--model.backbone.num_heads=5", "num_heads"),
        ("--model.backbone.vocab_size=7", "vocab_size"),
        ("--model.freeze=[generation]", "unknown part 'generation'"),
        ("--model.tokenizer.path=nowhere", "no tokenizer at 'nowhere'"),
        ("--model.codec.weights=nowhere", "weights"),
        ("--train.stepz=3", "Did you mean 'steps'"),
        ("--train.steps=many", "train.steps"),
        ("--train.steps=0", "train.steps"),
        ("--train.run_dir=", "train.run_dir is empty"),
        ("--model.tokenizer.vocab_size=1000000000000", "vocab_size is 1000000000000; expected at most"),
        ("--data.tokens_per_batch=1000000000000", "data.tokens_per_batch is 1000000000000; expected at most 1,048,576"),
        ("--data.lookahead=1000000000000", "data.lookahead is 1000000000000; expected 1 to 1,000,000"),
        ("--data.datasets.toys.weight=.inf", "weight is inf; expected a finite number above 0"),
        ("--data.datasets.toys.source.seconds=.nan", "seconds is nan; expected at most 120"),
        ("--sampler.num_steps=1000000000", "num_steps of sampler 'euler' is 1000000000; expected at most 10,000"),
        ("--train.precision=fp8", "train.precision"),
        ("--train.parallel.shard=2", "shard"),
        ("--data.tokens_per_batch=12", "12"),
        ("--data.max_tokens_per_sample=6", "6"),
        ("--data.condition_dropout.text=2", "condition_dropout.text"),
        ("--data.datasets.toys.tasks={sing: 1}", "sing"),
        ("--data.datasets.toys.source.size=0", "size"),
        ("--sampler=heum", "Did you mean 'heun'"),
        ("--guidance.renormalize=globl", "guidance.renormalize"),
        ("--train.trackers=[tensorbord]", "Did you mean 'tensorboard'"),
        # the error names the plugin, because several plugins may have an argument of that name
        ("--model.codec.frame_size=0", "codec 'mdct': frame_size is 0; expected at least 1"),
        ("--sampler.shift=0", "sampler 'euler': shift is 0.0; expected a number above 0"),
        ("--model.objective.shift=0", "objective 'flow-matching': shift is 0.0; expected a number above 0"),
        ("--model.backbone.hidden_dim=33", "error: mot: hidden_dim is 33; expected a multiple of num_heads"),
    ],
)
def test_wrong_specs(train_fails: Any, override: str, expected: str) -> None:
    assert expected in train_fails(override)


def test_a_spec_that_is_not_there(fails: Any, tmp_path: Path) -> None:
    assert "Did you mean 'nano'" in fails("train", "--config", "nona")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    assert "broken.yaml" in fails("train", "--config", broken)


@pytest.mark.parametrize(
    "command",
    [("train", "--config"), ("spec", "print"), ("generate", "--model", "MODEL", "--grid"), ("evaluate", "--model", "MODEL", "--list")],
)
def test_a_sound_in_place_of_a_text_file(fails: Any, tiny_model: Path, wav: Path, command: tuple[str, ...]) -> None:
    line = fails(*(tiny_model if part == "MODEL" else part for part in command), wav)
    assert line.endswith(f"'{wav}' cannot be read: it is not text in UTF-8 (byte {_first_other_byte(wav)})") or line.endswith(
        f"cannot read the grid '{wav}': it is not text in UTF-8 (byte {_first_other_byte(wav)})"
    )


def _first_other_byte(file: Path) -> str:
    content = file.read_bytes()
    with pytest.raises(UnicodeDecodeError) as caught:
        content.decode("utf-8")
    return f"{caught.value.start} is 0x{content[caught.value.start]:02x}"


@pytest.mark.parametrize("command", [("generate", "--prompt", "x"), ("describe", "WAV"), ("evaluate",)])
def test_a_run_in_place_of_a_model(fails: Any, tiny_run: Path, wav: Path, command: tuple[str, ...]) -> None:
    line = fails(*(wav if part == "WAV" else part for part in command), "--model", tiny_run)
    assert line.endswith(
        f"'{tiny_run}' is a run directory, not a model directory. Export it with `soundomni export {tiny_run} --out DIR`, and use DIR"
    )


def test_an_empty_folder(train_fails: Any, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    assert "sounds" in train_fails(from_folder(tmp_path / "sounds"))
    assert "nowhere" in train_fails(from_folder(tmp_path / "nowhere"))


def test_missing_captions(train_fails: Any, tmp_path: Path) -> None:
    assert "caption" in train_fails(from_folder(folder_of(tmp_path / "sounds", captions=False)))


def test_a_task_that_needs_questions_nobody_wrote(train_fails: Any, tmp_path: Path) -> None:
    assert "question" in train_fails(from_folder(folder_of(tmp_path / "sounds"), "{answer: 1}"))


def test_text_and_clips_beyond_the_budget_are_counted_with_an_example_and_the_rest_is_trained(
    tiny_spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "sounds", 6, seconds=0.2)
    (folder / "1.txt").write_text("much too long a text " * 60)
    soundfile.write(folder / "2.wav", np.zeros(8000 * 9), 8000)
    run = tmp_path / "run"
    arguments = ["train", "--config", str(tiny_spec), f"--train.run_dir={run}", from_folder(folder), "--train.log_every=1"]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "4 of 6 clips are used; left out: 2 longer than 256 tokens" in told and "such as '1.wav'" in told
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["refused"] >= 2 and last["samples"] > 0


def test_corrupt_audio_is_skipped_and_counted_and_too_much_of_it_stops_the_run(
    tiny_spec: Path, tmp_path: Path, fails: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "sounds", 12)
    flac = folder / "bad.flac"
    soundfile.write(flac, 0.1 * np.random.default_rng(0).standard_normal(8000), 8000)
    data = bytearray(flac.read_bytes())
    data[2000:2400] = os.urandom(400)
    flac.write_bytes(data)
    (folder / "bad.txt").write_text("broken")
    settings = ["--config", str(tiny_spec), from_folder(folder), "--train.steps=6", "--train.log_every=1"]
    run = tmp_path / "one"
    assert main(["train", *settings, f"--train.run_dir={run}", "--data.skip_limit=0.5"]) == 0
    assert "bad.flac" in caplog.text
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["unreadable"] >= 1
    line = fails("train", *settings, f"--train.run_dir={tmp_path / 'two'}", "--data.skip_limit=0.0", "--train.steps=60")
    assert "bad.flac" in line


def test_a_run_directory_that_cannot_be_written(tiny_spec: Path, tmp_path: Path, fails: Any) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in fails("train", "--config", tiny_spec, f"--train.run_dir={tmp_path / 'file' / 'run'}")


def test_resuming_into_a_changed_spec_names_what_changed_and_loses_nothing(tiny_spec: Path, tiny_run: Path, fails: Any) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tiny_run / "checkpoints").rglob("*"))
    line = fails("train", "--config", tiny_spec, "--train.optimizer.lr=0.5", "--train.steps=9")
    assert "train.optimizer.lr" in line and "0.5" in line
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tiny_run / "checkpoints").rglob("*")) == before


def test_a_corrupted_checkpoint_falls_back_to_the_one_before_and_says_so(
    tiny_spec: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--config", str(tiny_spec), f"--train.run_dir={run}"]
    assert main(arguments) == 0
    newest = run / "checkpoints" / "step-00000004"
    shard = next(newest.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert main([*arguments, "--train.steps=5"]) == 0
    assert "step-00000004" in caplog.text and "SHA-256" in caplog.text
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_a_run_without_an_intact_checkpoint_is_not_silently_started_anew(tiny_spec: Path, tmp_path: Path, fails: Any) -> None:
    run = tmp_path / "run"
    assert main(["train", "--config", str(tiny_spec), f"--train.run_dir={run}"]) == 0
    for manifest in run.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    assert "intact" in fails("train", "--config", tiny_spec, f"--train.run_dir={run}", "--train.steps=5")
    assert "intact" in fails("export", run, "--out", tmp_path / "model")


@pytest.mark.parametrize("name", ["dit", "dit-3"])
@pytest.mark.parametrize("size", ["hidden_dim", "num_layers", "condition_dim", "num_memory"])
def test_impossible_sizes_are_found_before_training(name: str, size: str, fails: Any) -> None:
    for value in ("1000000", "1000000000", "1000000000000000000", f"0x{5000 * 'f'}"):
        slot = f"--model.backbone={{class_path: {name}, init_args: {{{size}: {value}}}}}"
        line = fails("spec", "validate", "stable-audio-toy", "--no-data", slot)
        assert f"{size} is " in line and "; expected " in line and name in line and len(line) < 300


@pytest.mark.parametrize("value", [f"0x{5000 * 'f'}", 400 * "9", f"-{400 * '9'}"])
@pytest.mark.parametrize(
    "key",
    ["train.steps", "train.seed", "data.tokens_per_batch", "data.lookahead", "train.optimizer.lr", "sampler.num_steps", "guidance.scale"],
)
def test_numbers_without_end_are_cut(key: str, value: str, tiny_spec: Path, fails: Any) -> None:
    line = fails("spec", "validate", tiny_spec, "--no-data", f"--{key}={value}")
    assert "…; expected " in line and len(line) < 300


@pytest.mark.parametrize("command", [("export", "nano"), ("import", "dac", "nano"), ("plugins", "new", "codec", "mine")])
@pytest.mark.parametrize("out", ["", " ", 300 * "x", f"folder/{300 * 'x'}"])
def test_no_name_and_a_name_that_is_too_long_are_refused(
    command: tuple[str, ...], out: str, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(*command, "--out", out)
    long = "has 300 bytes; expected at most 255. Use a shorter name"
    assert (long if out.strip() else f"--out is {out!r}; expected the name of a file or folder") in line
    assert not list(tmp_path.iterdir())
