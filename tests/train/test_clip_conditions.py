"""A clip that conditions a diffusion transformer through CLAP, from a spec to files, as a user does it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from test_run import measured
from tiny_networks import CLAP_RATE, save_tiny_clap

from soundomni import Audio, SoundOmni
from soundomni.cli.main import main
from soundomni.core.errors import SpecError
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.writing.preparing import prepare
from soundomni.train.preflight import check_spec

SPEC = """
model:
  backbone: {class_path: BACKBONE, init_args: {hidden_dim: 16, num_layers: 2, num_heads: 2}}
  router: dense
  tokenizer: {vocab_size: 261}
  modalities:
    latent:
      codec: {class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}
      connector: residual-linear
      objective: {class_path: v-prediction, init_args: {timesteps: uniform}}
      sampler: {class_path: ddim, init_args: {num_steps: 3}}
      guidance: {scale: 3.0}
    caption: {encoder: {class_path: bytes, init_args: {feature_dim: 16}}, connector: identity, enters: cross}
    timbre: {encoder: {class_path: clap-audio, init_args: {name: CLAP}}, connector: linear, enters: ENTERS}
  prompt: [{text: "{caption}", of: caption}, {audio: features, of: timbre}]
data:
  datasets:
    toys: {source: {class_path: toy-sounds, init_args: {size: 32, seconds: 0.4, events: [1, 1]}}, tasks: {generate: 1}}
  condition_dropout: {features: 0.1, together: {caption+timbre: 0.2}}
  tokens_per_batch: 256
  lookahead: 8
  workers: 1
train: {steps: 2, optimizer: {lr: 1.0e-2, eps: 1.0e-8}, log_every: 1, save_every: 1, validation: null, threads: 1}
"""
WAYS = [("dit", "cross"), ("dit", "cross+global"), ("dit-3", "global")]


def written(folder: Path, *, backbone: str = "dit", enters: str = "cross", clap: Path | str | None = None) -> Path:
    """Write the spec, with a tiny CLAP of random weights next to it."""
    spec = folder / "spec.yaml"
    clap = save_tiny_clap(folder / "clap") if clap is None else clap
    spec.write_text(SPEC.replace("BACKBONE", backbone).replace("CLAP", str(clap)).replace("ENTERS", enters))
    return spec


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps, the model that it exports, and two files."""
    backbone, enters = request.param
    folder = tmp_path_factory.mktemp(f"{backbone}-clip")
    spec = written(folder, backbone=backbone, enters=enters)
    assert main(["train", "--config", str(spec), f"--train.run_dir={folder / 'run'}"]) == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "exported")]) == 0
    moved(SoundOmni.from_pretrained(folder / "exported")).save_pretrained(folder / "model")
    for name, seed in (("one", 1), ("two", 2)):
        soundfile.write(folder / f"{name}.wav", sound(seed).waveform.T, CLAP_RATE)
    return folder


def test_a_condition_is_prepared_as_in_training(folder: Path) -> None:
    model, plain = (SoundOmni.from_pretrained(folder / "model") for _ in range(2))
    spec = model.spec
    clips = ClipSpec(cut="onset", seconds=0.2, peak=0.9)
    model = SoundOmni(model.model, replace(spec, model=replace(spec.of_model, clips=clips)), model.tokenizer)
    late = Audio(np.pad(sound(1).waveform, ((0, 0), (700, 0))), CLAP_RATE)
    ready = Audio(prepare(late.waveform, CLAP_RATE, clips), CLAP_RATE)

    def made(by: SoundOmni, clip: Audio) -> np.ndarray:
        (found,) = by.generate(["rain"], seconds=0.3, seeds=0, given={"timbre": clip})
        return found.waveform

    np.testing.assert_array_equal(made(model, late), made(plain, ready))
    assert (made(model, late) != made(plain, late)).any()


def sound(seed: int, num_samples: int = 3000) -> Audio:
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * 200 * seed * np.arange(num_samples) / CLAP_RATE)
    return Audio((0.3 * tone + 0.05 * rng.standard_normal(num_samples)).astype(np.float32)[None], CLAP_RATE)


def moved(model: SoundOmni) -> SoundOmni:
    """Move all weights at random, because those of outputs begin at zero, so that two steps say little."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def made(folder: Path, capsys: pytest.CaptureFixture[str], *options: str, prompt: str = "rain") -> np.ndarray:
    command = ["generate", "--json", "--model", str(folder / "model"), "--prompt", prompt, "--seconds", "0.3", "--format", "wav32f"]
    assert main([*command, "--no-pictures", "--out", str(folder / "out"), *options]) == 0
    clip = json.loads(capsys.readouterr().out)["clips"][0]
    waveform: np.ndarray = soundfile.read(clip["files"][0], dtype="float32")[0]
    return waveform


def test_a_file_is_an_option_of_the_condition_s_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(folder, capsys, "--timbre", str(folder / "one.wav"))
    assert np.array_equal(first, made(folder, capsys, f"--timbre={folder / 'one.wav'}"))
    assert np.array_equal(first, made(folder, capsys, "--given", f"timbre={folder / 'one.wav'}"))
    other, without = made(folder, capsys, "--timbre", str(folder / "two.wav")), made(folder, capsys)
    assert len({clip.tobytes() for clip in (first, other, without)}) == 3


def test_a_grid_has_files_by_name(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(f"{{prompt: rain, seconds: 0.3, timbre: [{folder / 'one.wav'}, {folder / 'two.wav'}, null]}}")
    command = ["generate", "--json", "--model", str(folder / "model"), "--grid", str(tmp_path / "grid.yaml"), "--format", "wav32f"]
    assert main([*command, "--no-pictures", "--out", str(tmp_path / "out")]) == 0
    found = [soundfile.read(clip["files"][0], dtype="float32")[0] for clip in json.loads(capsys.readouterr().out)["clips"]]
    each = [
        made(folder, capsys, *options) for options in (["--timbre", str(folder / "one.wav")], ["--timbre", str(folder / "two.wav")], [])
    ]
    assert all(np.array_equal(one, other) for one, other in zip(found, each, strict=True))
    (tmp_path / "grid.yaml").write_text("{prompt: rain, timber: x.wav}")
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert (
        "has an unknown key 'timber'. Did you mean 'timbre'? Keys: prompt, seconds, seed, steps, guidance, negative, timbre"
        in capsys.readouterr().err
    )


def test_a_batch_equals_single_clips(folder: Path) -> None:
    model = SoundOmni.from_pretrained(folder / "model")
    clips, prompts = [sound(1), sound(2, 900), sound(3, 9000)], ["rain", "two clicks", ""]
    together = model.generate(prompts, seconds=[0.2, 0.5, 0.3], seeds=5, given={"timbre": clips})
    for i, (prompt, clip, seconds) in enumerate(zip(prompts, clips, [0.2, 0.5, 0.3], strict=True)):
        alone = model.generate(prompt, seconds=seconds, seeds=5 + i, given={"timbre": clip})[0]
        np.testing.assert_allclose(together[i].waveform, alone.waveform, rtol=0, atol=1e-5 * np.abs(alone.waveform).max())


def test_resuming_is_bit_exact(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "run", tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "step-00000002")
    assert main(["train", "--config", str(folder / "spec.yaml"), f"--train.run_dir={copy}"]) == 0
    expected, found = (load_file(run / "checkpoints" / "step-00000002" / "rank-00000.safetensors") for run in (folder / "run", copy))
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert not any("timbre.encoder" in name for name in expected), "CLAP is frozen, and not part of a checkpoint"
    assert any("timbre.connector" in name for name in expected)


def test_the_condition_is_what_transformers_hears(folder: Path) -> None:
    from transformers import ClapModel, ClapProcessor

    model = SoundOmni.from_pretrained(folder / "model")
    clips = [sound(1), sound(2, 900), sound(3, 9000)]
    (request,) = [model.requests(0.3).request("rain", seed=0, given={"timbre": clip}) for clip in clips[:1]]
    assert [segment.placed for segment in request.context] == [False, False] and request.context[1].num_tokens == 1
    peer, processor = ClapModel.from_pretrained(folder / "clap").eval(), ClapProcessor.from_pretrained(folder / "clap")
    modality = model.model.modality("timbre")
    for clip in clips:
        segment = model.requests(0.3).request("rain", seed=0, given={"timbre": clip}).context[1]
        heard = clip.waveform[0, :CLAP_RATE]
        shown = processor.feature_extractor(heard, sampling_rate=CLAP_RATE, return_tensors="pt")["input_features"]
        with torch.no_grad():
            wanted = peer.get_audio_features(input_features=shown.float(), is_longer=torch.zeros(1, 1, dtype=torch.bool)).pooler_output
            found = modality.encoder(torch.from_numpy(segment.waveform)[None], torch.tensor([segment.num_samples]))  # type: ignore
        torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)


def test_guidance_steers_away_from_no_clip(folder: Path) -> None:
    model = SoundOmni.from_pretrained(folder / "model")
    stays = model.spec.of_model.used["timbre"].enters == "cross+global"
    for avoided in (None, "wind"):
        request = model.requests(0.3, negative_prompt=avoided).request("rain", seed=0, given={"timbre": sound(1)})
        left = {segment.modality: segment.attended for segment in request.negative}
        assert left == ({} if avoided is None else {"caption": True}) | ({"timbre": False} if stays else {})
    alone = model.requests(0.3).request("rain", seed=0)
    assert [segment.modality for segment in alone.context] == ["caption"] and alone.negative == ()


def test_abilities_and_help_name_the_condition(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    able = SoundOmni.from_pretrained(folder / "model").abilities()
    assert able.made[0].taken == ("timbre",) and able.heard == ()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--timbre", "nowhere.wav"], "cannot read 'nowhere.wav': no such file; looked for"),
        (["--timbre", "SPEC"], "spec.yaml"),
        (["--timbre"], "--timbre needs a value; use --timbre=VALUE"),
        (["--timber", "x.wav"], "unknown option '--timber'. Did you mean '--timbre'?"),
        (["--timbre", "ONE", "--given", "timbre=ONE"], "--given names 'timbre' twice. Give one file for each modality"),
        (["--given", "timbr=ONE"], "given names 'timbr', but to make 'latent' the model takes clips of timbre. Did you mean 'timbre'?"),
    ],
)
def test_files_that_cannot_be_are_one_line(
    options: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = [one.replace("SPEC", str(folder / "spec.yaml")).replace("ONE", str(folder / "one.wav")) for one in options]
    command = ["generate", "--model", str(folder / "model"), "--prompt", "rain", "--out", str(tmp_path), "--no-pictures"]
    assert main([*command, *options]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and expected in told[0], told


def test_such_a_model_does_not_describe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--model", str(folder / "model"), str(folder / "one.wav")]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "this model only generates, because 'timbre' only conditions what the model makes" in told, told


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.modalities.timbre.enters": "prefix"}, "timbre.enters is 'prefix', but backbone 'dit' can only hold clips that it makes"),
        ({"model.modalities.timbre.encoder.name": "nowhere"}, "nowhere"),
        ({"data.datasets.toys.tasks": "{describe: 1}"}, "task 'describe' understands audio, but 'timbre' only conditions what the"),
        ({"model.prompt": "[{audio: features, of: tmbre}]"}, "'tmbre'.*Did you mean 'timbre'"),
    ],
)
def test_specs_that_cannot_be_are_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    spec = written(tmp_path)
    given = [*changes.items(), ("train.run_dir", str(tmp_path / "run"))]
    with pytest.raises(SpecError, match=expected) as raised:
        check_spec(load_spec([spec], given))
    assert "\n" not in str(raised.value)


def test_a_spec_is_valid_and_the_loss_counts_the_clip(tmp_path: Path) -> None:
    spec = written(tmp_path)
    assert main(["spec", "validate", "--config", str(spec), f"--train.run_dir={tmp_path / 'run'}"]) == 0
    assert main(["train", "--config", str(spec), f"--train.run_dir={tmp_path / 'run'}"]) == 0
    losses = [line["loss/velocity"] for line in measured(tmp_path / "run") if "loss/velocity" in line]
    assert len(losses) == 2 and all(np.isfinite(losses))
