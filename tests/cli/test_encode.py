"""`soundomni encode`, and runs on what it writes: they give the losses of the same runs on audio, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from two_processes import run_in_two_processes

from soundomni.cli.main import main
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.data.encoded.dataset import EncodedClips

SPEC = """
model:
  backbone: {class_path: mot, init_args: {hidden_dim: 16, num_layers: 1, num_heads: 2}}
  router: modality
  codec: CODEC
  connectors: {latent: CONNECTOR}
  objective: OBJECTIVE
  tokenizer: {vocab_size: 300}
sampler: SAMPLER
data:
  datasets:
    sounds: {source: {class_path: audio-folder, init_args: {path: FOLDER}}, tasks: {generate: 1.0, continue: 1.0}, held_out: 0.2}
  tokens_per_batch: 160
  lookahead: 4
  workers: 1
train:
  run_dir: RUN
  steps: 4
  batches_per_step: 2
  optimizer: {lr: 1.0e-3, eps: 1.0e-8}
  ema_decay: 0.9
  validation: {every: 2}
  log_every: 1
  save_every: 2
  threads: 1
"""
SMALL = {"sample_rate": 8000, "channels": 1, "base_channels": 3, "channel_multiples": [1, 2], "strides": [8, 8], "latent_dim": 4}
FLOW = {"CONNECTOR": "linear", "OBJECTIVE": "flow-matching", "SAMPLER": "euler"}
MASKED = {"CONNECTOR": "codes", "OBJECTIVE": "masked", "SAMPLER": "{class_path: maskgit, init_args: {iterations: [3, 1]}}"}
MDCT = "{class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}"
CODES = (
    "{class_path: harmonic-codes, init_args: {sample_rate: 8000, num_harmonics: 2, num_codebooks: 2, codebook_size: 8, frame_size: 128, "
    "pitch_range: [125, 1000]}}"
)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips of many lengths, of two rates, with captions."""
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    for i in range(14):
        rate = (8000, 11025)[i % 2]
        length = int(rate * (0.1 + 0.35 * random.random()))
        tone = 0.3 * np.sin(2 * np.pi * (150 + 40 * i) * np.arange(length) / rate)
        soundfile.write(folder / f"clip-{i:02d}.wav", tone + 0.01 * random.standard_normal(length), rate, subtype="FLOAT")
        (folder / f"clip-{i:02d}.txt").write_text(f"tone {i}\nsound number {i}")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small autoencoder."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "codec.safetensors"
    save_file(build("codec", Slot("oobleck", SMALL)).state_dict(), file)
    return file


def oobleck(weights: Path, **more: Any) -> str:
    return json.dumps({"class_path": "oobleck", "init_args": {**SMALL, "weights": str(weights), **more}})


def spec_of(folder: Path, sounds: Path, codec: str = MDCT, *, name: str = "audio", **parts: str) -> Path:
    """Write the spec of a run in `folder`/`name`."""
    text = SPEC
    for key, value in {"CODEC": codec, **FLOW, **parts, "FOLDER": str(sounds), "RUN": str(folder / name)}.items():
        text = text.replace(key, value)
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return file


def encoded_source(folder: Path, name: str = "sounds") -> str:
    return f"--data.datasets.{name}.source={{class_path: encoded, init_args: {{path: '{folder}'}}}}"


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "loss" in key or key in ("step", "grad_norm")} for row in rows]


@pytest.mark.parametrize("kind", ["mdct", "oobleck", "codes"])
def test_a_run_on_encoded_clips_has_the_losses_of_the_run_on_audio(kind: str, tmp_path: Path, sounds: Path, weights: Path) -> None:
    codec = {"mdct": MDCT, "oobleck": oobleck(weights), "codes": CODES}[kind]
    spec = str(spec_of(tmp_path, sounds, codec, **(MASKED if kind == "codes" else FLOW)))
    assert main(["encode", "--config", spec, "--out", str(tmp_path / "encoded"), "--shard-mb", "1"]) == 0
    assert main(["train", "--config", spec]) == 0
    source = encoded_source(tmp_path / "encoded" / "sounds")
    assert main(["train", "--config", spec, source, f"--train.run_dir={tmp_path / 'run'}"]) == 0
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "audio")
    assert len(expected) >= 4 and any(row.get("validation/loss", 0) > 0 for row in expected)
    assert found == expected


def test_a_resumed_run_and_one_of_both_kinds_of_clips(tmp_path: Path, sounds: Path, weights: Path) -> None:
    """Batches that mix audio and encoded clips give the losses of audio, and a run that stopped goes on."""
    spec = str(spec_of(tmp_path, sounds, oobleck(weights)))
    assert main(["encode", "--config", spec, "--out", str(tmp_path / "encoded")]) == 0
    audio = f"{{class_path: audio-folder, init_args: {{path: '{sounds}'}}}}"
    both = [
        f"--data.datasets.more.source={audio}",
        "--data.datasets.more.tasks={generate: 1}",
    ]
    source = encoded_source(tmp_path / "encoded" / "sounds")
    assert main(["train", "--config", spec, *both]) == 0
    rest = ["--config", spec, *both, source, f"--train.run_dir={tmp_path / 'run'}"]
    assert main(["train", *rest, "--train.steps=2"]) == 0
    assert main(["train", *rest]) == 0
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "audio")
    by_step = {row["step"]: row for row in found if "loss" in row}
    assert [by_step[row["step"]]["loss"] for row in expected if "loss" in row] == [row["loss"] for row in expected if "loss" in row]


def test_crops_of_latents_train(tmp_path: Path, sounds: Path) -> None:
    spec = str(spec_of(tmp_path, sounds))
    assert main(["encode", "--config", spec, "--out", str(tmp_path / "encoded"), "--dtype", "float16"]) == 0
    source = encoded_source(tmp_path / "encoded" / "sounds")
    assert main(["train", "--config", spec, source, "--data.datasets.sounds.max_seconds=0.15", "--train.steps=2"]) == 0
    assert losses(tmp_path / "audio")[-1]["loss"] > 0


def test_the_codec_must_be_that_of_the_clips(tmp_path: Path, sounds: Path, weights: Path, fails: Any) -> None:
    spec = str(spec_of(tmp_path, sounds, oobleck(weights)))
    assert main(["encode", "--config", spec, "--out", str(tmp_path / "encoded")]) == 0
    source = encoded_source(tmp_path / "encoded" / "sounds")
    torch.manual_seed(4)
    save_file(build("codec", Slot("oobleck", SMALL)).state_dict(), tmp_path / "other.safetensors")
    line = fails("train", "--config", spec, source, f"--model.codec.weights={tmp_path / 'other.safetensors'}")
    assert "the clips of data.datasets.sounds were encoded by oobleck (" in line
    assert "the codec of 'latent' is oobleck (" in line and "Use that codec, or encode the clips again with this one" in line
    assert main(["train", "--config", spec, source, "--train.steps=2"]) == 0
    other = [f"--model.codec.weights={tmp_path / 'other.safetensors'}", "--out", str(tmp_path / "others")]
    assert main(["encode", "--config", spec, *other]) == 0
    others = encoded_source(tmp_path / "others" / "sounds")
    assert main(["train", "--config", spec, source, "--train.steps=3"]) == 0
    assert "were encoded by oobleck (" in fails("train", "--config", spec, others, "--allow-change", "data")
    line = fails("train", "--config", spec, source, "--model.codec.kl_weight=1", f"--train.run_dir={tmp_path / 'new'}")
    assert "with other arguments or weights" in line
    line = fails("train", "--config", spec, source, f"--model.codec={MDCT}", f"--train.run_dir={tmp_path / 'new'}")
    assert "were encoded by oobleck: latent_dim was 4, but it is 64 in the codec of 'latent'" in line
    assert "draws its encoding" in fails("encode", "--config", spec, "--model.codec.sample_latents=true", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_needs_audio_is_refused(tmp_path: Path, sounds: Path, weights: Path, fails: Any) -> None:
    spec = str(spec_of(tmp_path, sounds))
    assert main(["encode", "--config", spec, "--out", str(tmp_path / "encoded")]) == 0
    source = encoded_source(tmp_path / "encoded" / "sounds")
    heard = "--model.encoder={class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 128, hop_length: 100, feature_dim: 16}}"
    more = ["--model.connectors.features=linear", "--data.datasets.sounds.tasks={generate: 1, describe: 1}"]
    line = fails("train", "--config", spec, source, heard, *more)
    assert "task 'describe' hears clips as audio, but those of data.datasets.sounds are encoded" in line
    codec = tmp_path / "codec.yaml"
    codec.write_text(f"codec: {{codec: {oobleck(weights)}, critics: {{l1: l1}}}}\ntrain: {{run_dir: '{tmp_path / 'c'}', steps: 1}}\n")
    data = f"--data.datasets.sounds.source={{class_path: encoded, init_args: {{path: '{tmp_path / 'encoded' / 'sounds'}'}}}}"
    assert "holds clips that are encoded, but training a codec needs audio" in fails("train", "--config", codec, data)
    dataset = f"{{class_path: encoded, init_args: {{path: '{tmp_path / 'encoded' / 'sounds'}'}}}}"
    line = fails("encode", "--dataset", dataset, "--codec", MDCT, "--out", tmp_path / "x")
    assert "the clips are encoded already, by mdct. Give a dataset of audio" in line


def test_datasets_that_are_only_heard_are_left_out(tmp_path: Path, result: Any, fails: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small = [f"--data.datasets.{name}.source.size=6" for name in ("making", "editing", "hearing")]
    both = ["--config", "nano", *small, "--data.datasets.editing.tasks={fill: 1, describe: 1}"]
    found = result("encode", *both, "--out", tmp_path / "out")
    assert sorted(found["datasets"]) == ["editing", "making"] == sorted(folder.name for folder in (tmp_path / "out").iterdir())
    line = fails("encode", "--config", "nano", "--data.datasets.making=null", "--data.datasets.editing=null", "--out", tmp_path / "x")
    assert "no task of data.datasets makes or gives clips of 'latent'" in line


def test_a_folder_is_encoded_with_a_codec_a_model_and_a_run(
    tmp_path: Path, sounds: Path, tiny_model: Path, tiny_run: Path, result: Any, fails: Any
) -> None:
    codec = "{class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}"
    found = {}
    for name, option in (("codec", ["--codec", codec]), ("model", ["--model", tiny_model]), ("run", ["--model", tiny_run])):
        found[name] = result("encode", sounds, *option, "--out", tmp_path / name)
    assert "a run that trained a model. Give it as --model" in fails("encode", sounds, "--codec", tiny_run, "--out", tmp_path / "no")
    one = found["codec"]["datasets"][""]
    clips = EncodedClips(path=str(tmp_path / "codec"))
    assert one["clips"] == len(clips) == 14 and one["failures"] == [] and found["codec"]["codec"] == "mdct"
    assert one["frames"] == sum(clips.num_frames(i) for i in range(14)) and one["seconds"] == pytest.approx(3.6, abs=1.5)
    assert clips.item(0).key == "clip-00.wav" and clips.item(0).captions == ("tone 0", "sound number 0")
    assert len({one["fingerprint"] for one in found.values()}) == 1


def test_a_codec_on_the_command_line_is_never_taken_for_a_folder(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mdct").mkdir()
    short = "{class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}"
    long = short + " " * 5000  # longer than a path may be
    lines = "class_path: mdct\ninit_args:\n  sample_rate: 8000\n  frame_size: 64\n"
    found = [result("encode", sounds, "--codec", codec, "--out", tmp_path / str(i)) for i, codec in enumerate((short, long, lines))]
    assert len({one["fingerprint"] for one in found}) == 1
    line = result("encode", sounds, "--codec", "mdct", "--out", tmp_path / "plain")
    assert line["codec"] == "mdct"


def test_a_run_that_trained_a_codec_gives_its_codec(tmp_path: Path, sounds: Path, result: Any) -> None:
    text = json.dumps({"class_path": "oobleck", "init_args": SMALL})
    data = f"{{datasets: {{s: {{source: {{class_path: audio-folder, init_args: {{path: '{sounds}'}}}}}}}}, tokens_per_batch: 160}}"
    spec = tmp_path / "codec.yaml"
    train = f"{{run_dir: '{tmp_path / 'run'}', steps: 2, threads: 1, ema_decay: 0, optimizer: {{lr: 1.0e-3}}}}"
    spec.write_text(f"codec: {{codec: {text}, critics: {{l1: l1}}}}\ndata: {data}\ntrain: {train}\n")
    assert main(["train", "--config", str(spec)]) == 0
    run = result("encode", sounds, "--model", tmp_path / "run", "--out", tmp_path / "a")
    assert result("encode", sounds, "--codec", tmp_path / "run", "--out", tmp_path / "c")["fingerprint"] == run["fingerprint"]
    placed = json.dumps({"class_path": "oobleck", "init_args": {**SMALL, "weights": str(tmp_path / "run" / "codec.safetensors")}})
    weights = result("encode", sounds, "--codec", placed, "--out", tmp_path / "b")
    assert run["fingerprint"] == weights["fingerprint"]
    assert (tmp_path / "a" / "clips-00000.safetensors").read_bytes() == (tmp_path / "b" / "clips-00000.safetensors").read_bytes()


def test_clips_that_cannot_be_read_are_told_and_resume_keeps_what_is_there(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str], fails: Any
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("clip-00.wav", "clip-01.wav"):
        (folder / name).write_bytes((sounds / name).read_bytes())
    samples = np.full((3000, 1), 0.1)
    samples[1000] = np.nan
    soundfile.write(folder / "nan.wav", samples, 8000, subtype="FLOAT")
    command = ["encode", str(folder), "--codec", MDCT, "--out", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["datasets"][""]["clips"] == 2
    assert "nan.wav" in json.loads(out)["datasets"][""]["failures"][0]["error"]
    assert "soundomni: error: " in err and "samples that are not finite" in err
    written = (tmp_path / "out" / "clips-00000.safetensors").stat().st_mtime_ns
    assert "is not empty. Give a new or empty directory, or --resume" in fails(*command)
    assert main([*command, "--resume"]) == 1
    assert (tmp_path / "out" / "clips-00000.safetensors").stat().st_mtime_ns == written
    assert "cannot be continued: the codec differed" in fails("encode", folder, "--codec", "mdct", "--out", tmp_path / "out", "--resume")


def test_stable_audio_pairs_train(tmp_path: Path, sounds: Path, weights: Path) -> None:
    spec = str(spec_of(tmp_path, sounds, oobleck(weights)))
    assert main(["encode", "--config", spec, "--out", str(tmp_path / "pairs"), "--format", "stable-audio", "--max-seconds", "0.5"]) == 0
    files = sorted((tmp_path / "pairs" / "sounds").rglob("*.npy"))
    assert len(files) == 14 and {np.load(file).shape for file in files} == {(4, 63)}
    assert main(["train", "--config", spec, encoded_source(tmp_path / "pairs" / "sounds"), "--train.steps=2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codec", "mdct"], "there is nothing to encode. Give a FOLDER of audio, --dataset SLOT or --config SPEC"),
        (["FOLDER"], "there is no codec. Give --model MODEL, --codec SLOT or --config SPEC"),
        (["FOLDER", "--dataset", "toy-sounds", "--codec", "mdct"], "FOLDER and --dataset both name clips. Leave out one of them"),
        (["FOLDER", "--codec", "mdct", "--model", "nano"], "--model and --codec exclude each other"),
        (["FOLDER", "--codec", "mdct", "--model.codec.frame_size=3"], "--model.codec.frame_size only applies to the spec of --config"),
        (["FOLDER", "--codec", "mdtc"], "unknown codec 'mdtc'. Did you mean 'mdct'?"),
        (["FOLDER", "--codec", "oobleck"], "codec 'oobleck' has no weights, so they would be random"),
        (["FOLDER", "--codec", CODES], "codec 'harmonic-codes' has not measured its data. Take the codec of a trained model with --model"),
        (["FOLDER", "--codec", "mdct", "--batch", "0"], "--batch is 0; expected at least 1"),
        (["FOLDER", "--codec", "mdct", "--shard-mb", "0"], "--shard-mb is 0; expected at least 1"),
        (["FOLDER", "--codec", "mdct", "--max-seconds", "0"], "--max-seconds is 0; expected a number above 0"),
        (["nowhere", "--codec", "mdct"], "nowhere"),
        (["--config", "nano", "--of", "codse", "--train.run_dir=x"], "--of is 'codse'"),
        (["--dataset", "toy-sonds", "--codec", "mdct"], "unknown dataset 'toy-sonds'. Did you mean 'toy-sounds'?"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, tmp_path: Path, sounds: Path, fails: Any) -> None:
    given = [str(sounds) if argument == "FOLDER" else argument for argument in arguments]
    assert message in fails("encode", *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_two_processes_write_the_files_of_one(tmp_path: Path, sounds: Path) -> None:
    arguments = ["encode", "--dataset", "{class_path: toy-sounds, init_args: {size: 130}}", "--codec", MDCT]
    program = tmp_path / "program.py"
    program.write_text("import sys\nfrom soundomni.cli.main import main\nsys.exit(main(sys.argv[1:]))\n")
    arguments += ["--shard-mb", "1"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    run_in_two_processes(program, *arguments, "--out", str(tmp_path / "two"))
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len([name for name in names if name.endswith(".jsonl")]) > 3
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
