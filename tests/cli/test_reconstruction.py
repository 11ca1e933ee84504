"""`reconstruct` and `evaluate` report how clips come back through a codec: at its rate, at the file's own, and for each level."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from codec_files import encodec_model, save
from two_processes import run_in_two_processes

from soundomni.cli.main import main
from soundomni.core.assembly.build import build_model
from soundomni.core.inference.round_trip import round_trip, round_trips
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.load import load_spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio, resampled_length
from soundomni.data.audio import read_audio
from soundomni.metrics.waveform_distances import mel_distance, multi_resolution_stft_distance, si_sdr
from soundomni.train.export import load_run_codec

LEVELS = 3
CODES = {
    "model.codec": "{class_path: harmonic-codes, init_args: {num_codebooks: 3, codebook_size: 64}}",
    "model.objective": "masked",
    "model.connectors.latent": "codes",
    "model.normalize": "none",
    "sampler": "maskgit",
}
CODEC_RUN = """
codec:
  codec:
    class_path: oobleck
    init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2], strides: [4, 8], latent_dim: 4}
  critics: {l1: l1}
data:
  datasets: {toys: {source: {class_path: toy-sounds, init_args: {size: 8, seconds: 0.4, events: [1, 1]}}}}
  tokens_per_batch: 256
  lookahead: 4
train: {run_dir: RUN, steps: 2, save_every: 1, optimizer: {lr: 1.0e-3, eps: 1.0e-8}, ema_decay: 0.9, threads: 1}
"""


def tones(rate: int, *parts: tuple[float, float], channels: int = 1, seconds: float = 0.5) -> Audio:
    """A sum of sines of (frequency, amplitude)."""
    time = np.arange(round(rate * seconds)) / rate
    waveform = sum(amplitude * np.sin(2 * np.pi * hertz * time) for hertz, amplitude in parts)
    return Audio(np.repeat(np.asarray(waveform, np.float32)[None], channels, axis=0), rate)


def sounds(count: int, seconds: float, rate: int = 8000) -> list[np.ndarray]:
    """Tones of several pitches in some noise, `[1, S]`."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    waves = [0.3 * np.sin(2 * np.pi * rng.uniform(150, 900) * time) + 0.01 * rng.standard_normal(time.shape) for _ in range(count)]
    return [wave.astype(np.float32)[None] for wave in waves]


@pytest.fixture(scope="module")
def codes_model(tiny_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose codec has three levels, measured on clips."""
    spec = load_spec([tiny_spec], list(CODES.items()))
    tokenizer = TextTokenizer.train(["a"], vocab_size=300)
    model = SoundOmni(build_model(spec.of_model, vocab_size=tokenizer.vocab_size), spec, tokenizer)
    clips = torch.from_numpy(np.stack(sounds(8, 0.5)))
    model.model.made().codec.fit([(clips, torch.full((8,), clips.shape[-1]))])
    folder = tmp_path_factory.mktemp("codes") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mel_model(tiny_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose codec keeps no phases."""
    codec = "{class_path: mel-magnitude, init_args: {sample_rate: 8000, rounds: 4}}"
    spec = load_spec([tiny_spec], [("model.codec", codec), ("model.normalize", "none")])
    tokenizer = TextTokenizer.train(["a"], vocab_size=300)
    folder = tmp_path_factory.mktemp("mel") / "model"
    SoundOmni(build_model(spec.of_model, vocab_size=tokenizer.vocab_size), spec, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips in several formats, rates, channels and odd lengths, with subfolders."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "b" / "c").mkdir(parents=True)
    for name, rate, channels, samples in (
        ("a.wav", 44100, 2, 9001),
        ("b/one.flac", 16000, 1, 5003),
        ("b/c/one.mp3", 22050, 1, 7777),
        ("b/two.ogg", 8000, 1, 3001),
        ("b/c/low.aiff", 6000, 2, 1999),
    ):
        clip = tones(rate, (440.0, 0.2), (1000.0, 0.1), channels=channels, seconds=samples / rate)
        soundfile.write(root / name, clip.waveform.T, rate)
    return root


def outputs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_reconstruct_reports_both_rates(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    for name, clip in (("high", tones(44100, (500.0, 0.2), (9000.0, 0.2))), ("low", tones(8000, (500.0, 0.2)))):
        soundfile.write(tmp_path / f"{name}.wav", clip.waveform.T, clip.sample_rate)
    paths = [tmp_path / "high.wav", tmp_path / "low.wav"]
    told = result("reconstruct", *paths, "--model", tiny_model, "--out", tmp_path / "out")
    high, low = told["files"]
    assert (high["file_sample_rate"], high["codec_sample_rate"], low["file_sample_rate"]) == (44100, 8000, 8000)
    assert high["si_sdr"] > 50 and abs(high["si_sdr_file"]) < 1 and high["energy_above"] == pytest.approx(0.5, abs=0.01)
    assert low["si_sdr"] == low["si_sdr_file"] and low["energy_above"] == 0.0
    assert high["bandwidth"] == pytest.approx(500, abs=10) and high["bandwidth_file"] == pytest.approx(9000, abs=50)
    (row,) = told["table"]
    assert (row["levels"], row["kbit_per_second"], row["clips"]) == (None, None, 2)
    for name in ("si_sdr_file", "stft_distance", "mel_distance_file", "bandwidth_file"):
        assert row[name] == pytest.approx((high[name] + low[name]) / 2, abs=0.01)


def test_evaluate_names_the_rates_and_what_the_codec_leaves_out(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, rate in enumerate((44100, 44100, 8000)):
        soundfile.write(tmp_path / f"{i}.wav", tones(rate, (500.0, 0.2), (0.4 * rate, 0.2)).waveform.T, rate)
    dataset = f"{{class_path: audio-folder, init_args: {{path: '{tmp_path}', captions: false}}}}"
    assert main(["evaluate", "--model", str(tiny_model), "--dataset", dataset]) == 0
    out = capsys.readouterr().out
    assert "the codec is at 8000 Hz and keeps 0-4000 Hz; files: 1 at 8000 Hz, 2 at 44100 Hz" in out
    rows = {row.split()[1]: row.split() for row in out.splitlines() if row.startswith("reconstructed  ")}
    assert float(rows["si_sdr"][2]) > 50 > float(rows["si_sdr_file"][2]) and rows["energy_above"][2:4] == ["33.3", "%"]


def test_a_codec_without_phases_is_measured_by_its_spectra(
    mel_model: Path, tmp_path: Path, result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, rate in enumerate((44100, 8000)):
        clip = tones(rate, (500.0, 0.2), seconds=0.9)
        soundfile.write(tmp_path / f"{i}.wav", clip.waveform.T, rate)
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    command = ("reconstruct", *paths, "--model", mel_model, "--format", "wav32f")
    whole, cut = (result(*command, "--out", tmp_path / name, "--chunk", chunk) for name, chunk in (("a", "9"), ("b", "0.3")))
    for one, other in zip(whole["files"], cut["files"], strict=True):
        made, again = (soundfile.read(row["out"])[0] for row in (one, other))
        np.testing.assert_allclose(again, made, atol=1e-6)
        assert one["si_sdr"] is None and one["si_sdr_file"] is None and one["mel_distance"] > 0
    assert not any(name.startswith("si_sdr") for name in whole["table"][0]) and whole["table"][0]["of"]["mel_distance"] == 2
    capsys.readouterr()
    assert main([str(word) for word in (*command, "--out", tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("SI-SDR n/a (no phases)") == 3 and "SI-SDR  " not in printed.splitlines()[-2]
    dataset = f"{{class_path: audio-folder, init_args: {{path: '{tmp_path}', captions: false}}}}"
    scores = result("evaluate", "--model", mel_model, "--dataset", dataset, "--tasks", "reconstruct")["reconstructed"]
    assert scores.keys() >= {"mel_distance", "stft_distance_file"} and not any(name.startswith("si_sdr") for name in scores)


@pytest.mark.parametrize("rate", ["codec", "file"])
def test_a_folder_is_mirrored_with_exact_lengths(tiny_model: Path, mixed: Path, tmp_path: Path, rate: str, result: Any) -> None:
    files = result("reconstruct", mixed, "--model", tiny_model, "--out", tmp_path / "out", "--rate", rate)["files"]
    assert [Path(row["file"]).relative_to(mixed).as_posix() for row in files] == sorted(outputs(mixed))
    for row in files:
        file, info = Path(row["file"]), soundfile.info(row["out"])
        assert Path(row["out"]) == (tmp_path / "out" / file.relative_to(mixed)).with_suffix(".wav")
        waveform, own = read_audio(file)
        assert info.samplerate == (8000 if rate == "codec" else own) and info.channels == 1
        assert info.frames == (resampled_length(waveform.shape[1], own, 8000) if rate == "codec" else waveform.shape[1])
        made, _ = read_audio(row["out"])
        wanted = waveform.mean(0, keepdims=True) if rate == "file" else None
        assert wanted is None or si_sdr(wanted, made) > 20


@pytest.mark.parametrize(("name", "error"), [("wav", 2.0**-16), ("wav24", 2.0**-24), ("wav32f", 0.0)])
def test_what_is_written_has_the_precision_of_its_format(tiny_model: Path, tmp_path: Path, name: str, error: float, result: Any) -> None:
    clip = tones(8000, (440.0, 0.3))
    soundfile.write(tmp_path / "a.wav", clip.waveform.T, 8000, subtype="FLOAT")
    (row,) = result("reconstruct", tmp_path / "a.wav", "--model", tiny_model, "--format", name, "--out", tmp_path / "out")["files"]
    exact = SoundOmni.from_pretrained(tiny_model).reconstruct(clip).waveform
    bits = {"wav": 15, "wav24": 23}.get(name)
    written = soundfile.read(row["out"], dtype="float64", always_2d=True)[0].T
    scaled = written * (2**bits / (2**bits - 1)) if bits else written
    difference = np.abs(scaled - exact).max()
    assert difference <= 1.01 * error and (error == 0 or difference > error / 4)


def test_levels_of_codes_have_a_row_each_and_improve(codes_model: Path, tmp_path: Path, result: Any) -> None:
    waves = sounds(3, 0.4)
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i}.wav", wave.T, 8000, subtype="FLOAT")
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    command = ("reconstruct", *paths, "--model", codes_model, "--format", "wav32f", "--out", tmp_path / "out")
    told = result(*command, "--levels", LEVELS)
    table, codec = told["table"], SoundOmni.from_pretrained(codes_model).model.made().codec
    assert [row["levels"] for row in table] == [1, 2, 3] and {row["clips"] for row in table} == {3}
    assert table[0]["si_sdr"] < table[1]["si_sdr"] < table[2]["si_sdr"]
    for worse in ("stft_distance", "mel_distance"):
        assert table[0][worse] > table[2][worse]
    assert [row["kbit_per_second"] for row in table] == pytest.approx([k * 6 * 8000 / 128 / 1000 for k in (1, 2, 3)])
    for row in table:  # against the codec and the measures themselves
        made = [decoded(codec, wave, row["levels"]) for wave in waves]
        assert row["si_sdr"] == pytest.approx(np.mean([si_sdr(a, b) for a, b in zip(waves, made, strict=True)]), abs=1e-6)
        distances = [multi_resolution_stft_distance(a, b) for a, b in zip(waves, made, strict=True)]
        assert row["stft_distance"] == pytest.approx(np.mean(distances), abs=1e-6)
        assert row["mel_distance"] == pytest.approx(np.mean([mel_distance(a, b, 8000) for a, b in zip(waves, made, strict=True)]), abs=1e-6)
    fewer = result(*command, "--levels", 2)
    assert fewer["table"] == table[:2]
    for whole, part, wave in zip(told["files"], fewer["files"], waves, strict=True):  # what is written has the last number of levels
        assert len(whole["levels"]) == 3 and part["levels"] == whole["levels"][:2]
        np.testing.assert_array_equal(read_audio(part["out"])[0], decoded(codec, wave, 2))
        np.testing.assert_array_equal(read_audio(whole["out"])[0], decoded(codec, wave, 3))
    assert result(*command)["table"] == table[2:]


def decoded(codec: Any, wave: np.ndarray, levels: int) -> np.ndarray:
    """What the codec makes of `[1, S]` from its first levels, whole."""
    codes = codec.encode(torch.from_numpy(wave)[None], torch.tensor([wave.shape[1]]))
    return codec.decode(codes.with_values(codes.values[:, :levels]))[0, :, : wave.shape[1]].numpy()


def test_levels_in_pieces_are_those_of_the_whole_clip(codes_model: Path) -> None:
    codec, (wave,) = SoundOmni.from_pretrained(codes_model).model.made().codec, sounds(1, 0.6)
    clip = Audio(wave, 8000)
    cut = list(round_trips(codec, clip, [1, 3], chunk_seconds=0.1))
    for levels, made in zip((1, 3), cut, strict=True):
        np.testing.assert_allclose(made.waveform, decoded(codec, wave, levels), atol=1e-5)
    assert np.abs(cut[0].waveform - cut[1].waveform).max() > 0.01
    np.testing.assert_array_equal(round_trip(codec, clip, chunk_seconds=0.1).waveform, cut[1].waveform)


def test_the_table_is_printed_below_the_files(codes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", sounds(1, 0.3)[0].T, 8000)
    capsys.readouterr()
    assert main(["reconstruct", str(tmp_path / "a.wav"), "--model", str(codes_model), "--levels", "2", "--out", str(tmp_path / "out")]) == 0
    file, blank, *rows = capsys.readouterr().out.splitlines()
    assert file.startswith(f"{tmp_path / 'out' / '000-a.wav'}  codec at 8000 Hz") and not blank
    assert rows[0].split() == ["levels", "kbit/s", "SI-SDR", "STFT", "mel", "bandwidth", "clips"]
    assert [row.split()[:2] for row in rows[1:]] == [["1", "0.375"], ["2", "0.75"]] and rows[1].endswith(" Hz  1")


def test_silence_is_left_out_of_the_means_for_which_it_is_undefined(codes_model: Path, tmp_path: Path, result: Any) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(2000), 8000)
    soundfile.write(tmp_path / "b.wav", sounds(1, 0.3)[0].T, 8000)
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    told = result("reconstruct", *paths, "--model", codes_model, "--out", tmp_path / "out")
    (row,) = told["table"]
    assert row["clips"] == 2 and row["of"]["si_sdr"] == 1 and row["of"]["mel_distance"] == 2
    assert row["si_sdr"] == pytest.approx(told["files"][1]["si_sdr"], abs=0.01)
    (row,) = result("reconstruct", paths[0], "--model", codes_model, "--out", tmp_path / "out")["table"]
    assert "si_sdr" not in row and "bandwidth_file" not in row and row["clips"] == 1


PROGRAM = """
import os, sys
from soundomni.cli.main import main
sys.stdout = open(f"{sys.argv[1]}-{os.environ['RANK']}.json", "w")
status = main(sys.argv[2:])
sys.stdout.close()
sys.exit(0 if status == (1 if os.environ["RANK"] == "0" else 0) else 9)
"""


def test_two_processes_share_the_files_and_report_as_one(codes_model: Path, mixed: Path, tmp_path: Path, result: Any) -> None:
    bad, program = mixed / "b" / "bad.wav", tmp_path / "program.py"
    bad.write_bytes(b"no audio")
    program.write_text(PROGRAM)
    command = ("reconstruct", str(mixed), "--model", str(codes_model), "--levels", "2", "--out")
    try:
        one = result(*command, tmp_path / "one", status=1)
        run_in_two_processes(program, str(tmp_path / "told"), "--json", *command, str(tmp_path / "two"))
    finally:
        bad.unlink()
    two = json.loads((tmp_path / "told-0.json").read_text())
    assert not (tmp_path / "told-1.json").read_text()
    assert two["table"] == one["table"] and two["failures"] == one["failures"] and len(two["files"]) == 5
    measured = [[{key: value for key, value in row.items() if key != "out"} for row in told["files"]] for told in (one, two)]
    assert measured[0] == measured[1]
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    for name in outputs(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_codec_directory_needs_no_model(tmp_path: Path, mixed: Path, result: Any) -> None:
    result("import", "encodec", save(encodec_model(), tmp_path / "source"), "--out", tmp_path / "codec")
    file = mixed / "b" / "two.ogg"
    told = result("reconstruct", file, "--codec", tmp_path / "codec", "--levels", 4, "--format", "wav32f", "--out", tmp_path / "out")
    assert [row["kbit_per_second"] for row in told["table"]] == pytest.approx([3.2, 6.4, 9.6, 12.8])
    network, wave = encodec_model(), torch.from_numpy(read_audio(file)[0])[None]
    with torch.no_grad():
        expected = network.decode(network.encode(wave, bandwidth=12.8).audio_codes, [None]).audio_values[0, :, : wave.shape[-1]]
    np.testing.assert_allclose(read_audio(told["files"][0]["out"])[0], expected.numpy(), atol=1e-4)


def test_a_run_that_trains_a_codec_needs_no_model(tmp_path: Path, tiny_run: Path, mixed: Path, result: Any, fails: Any) -> None:
    run, file = tmp_path / "run", mixed / "b" / "two.ogg"
    (tmp_path / "codec.yaml").write_text(CODEC_RUN.replace("RUN", str(run)))
    assert main(["train", "--config", str(tmp_path / "codec.yaml")]) == 0
    command = ("reconstruct", file, "--codec", run, "--format", "wav32f", "--out", tmp_path / "out")
    written = {}
    for step, option in ((1, ("--step", 1)), (2, ())):
        (row,) = result(*command, *option)["files"]
        found = load_run_codec(run, step=step)
        assert found is not None
        written[step] = read_audio(row["out"])[0]
        np.testing.assert_array_equal(written[step], round_trip(found[1], Audio(*read_audio(file))).waveform)
    assert np.abs(written[1] - written[2]).max() > 0
    assert "no checkpoint of step 7" in fails(*command, "--step", 7)
    assert "a run that trained a model" in fails("reconstruct", file, "--codec", tiny_run, "--out", tmp_path / "out")


def test_wrong_requests_end_in_one_line(codes_model: Path, tiny_model: Path, mixed: Path, tmp_path: Path, fails: Any) -> None:
    file, out = mixed / "b" / "two.ogg", tmp_path / "out"
    codes, latents = ("reconstruct", file, "--model", codes_model, "--out", out), ("reconstruct", file, "--model", tiny_model, "--out", out)
    assert "--levels is 4; expected a number from 1 to 3, the levels of this codec" in fails(*codes, "--levels", 4)
    assert "--levels is 0; expected at least 1" in fails(*codes, "--levels", 0)
    assert "--levels is 2, but this codec makes latents" in fails(*latents, "--levels", 2)
    assert "--rate is 'own'; expected one of codec, file" in fails(*codes, "--rate", "own")
    assert "--step only applies to run directories" in fails(*codes, "--step", 1)
    assert "--model or --codec is missing" in fails("reconstruct", file)
    assert "--codec and --model exclude each other" in fails(*codes, "--codec", tmp_path)
    assert "expected a directory with codec.yaml, or the directory of a run" in fails("reconstruct", file, "--codec", tmp_path)
    assert "--of only applies to --model" in fails("reconstruct", file, "--codec", tmp_path, "--of", "latent")
    override = fails("reconstruct", file, "--codec", tmp_path, "--model.codec.frame_size=32")
    assert "--model.codec.frame_size only applies to --model" in override


def test_folders_that_cannot_be_written_are_refused_before_anything_is_made(
    tiny_model: Path, mixed: Path, tmp_path: Path, fails: Any
) -> None:
    out, empty, twins = tmp_path / "out", tmp_path / "empty", tmp_path / "twins"
    for folder in (empty, twins):
        folder.mkdir()
    assert "no audio files in" in fails("reconstruct", mixed, empty, "--model", tiny_model, "--out", out)
    (empty / "a.wma").write_bytes(b"")
    assert "the first, 'a.wma': WMA files cannot be read" in fails("reconstruct", empty, "--model", tiny_model, "--out", out)
    assert not out.exists()
    for name in ("x.wav", "x.flac"):
        soundfile.write(twins / name, np.zeros(100), 8000)
    line = fails("reconstruct", twins, "--model", tiny_model, "--out", out)
    assert f"'{twins / 'x.flac'}' and '{twins / 'x.wav'}' would both be written to '{out / 'x.wav'}'" in line
    assert "would both be written to" in fails("reconstruct", twins / "x.wav", mixed, twins / "x.flac", "--model", tiny_model, "--out", out)
    before = (twins / "x.wav").read_bytes()
    (twins / "x.flac").unlink()
    assert f"'{twins / 'x.wav'}' already exists" in fails("reconstruct", twins, "--model", tiny_model, "--out", twins)
    assert (twins / "x.wav").read_bytes() == before and outputs(twins) == ["x.wav"]


def test_what_a_folder_has_besides_audio_is_named(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "good.wav", sounds(1, 0.1)[0].T, 8000)
    for name in ("bad.wav", "other.wma", "notes.txt"):
        (folder / name).write_bytes(b"no audio")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    told = result("reconstruct", folder, "--model", tiny_model, "--out", tmp_path / "out", status=1)
    assert [Path(one["file"]).name for one in told["failures"]] == ["other.wma", "bad.wav"] and len(told["files"]) == 1
    assert outputs(tmp_path / "out") == ["good.wav"] and math.isfinite(told["table"][0]["si_sdr"])
