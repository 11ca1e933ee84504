"""A diffusion transformer from end to end: it trains, resumes, is the same on two ranks, keeps parts of files and makes any length."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from real_footprint import real_step
from safetensors.torch import load_file
from test_run import measured
from tiny_spec import tiny_spec
from two_processes import run_in_two_processes

from soundomni import Audio, Kept
from soundomni.cli.main import main
from soundomni.core.assembly.build import build_model
from soundomni.core.errors import SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.load import resolve
from soundomni.train.export import load_run
from soundomni.train.memory.activations import MeasuredRun
from soundomni.train.parallel import World
from soundomni.train.preflight import check_spec
from soundomni.train.run import run_training

DIT = (
    "model.encoder=null",
    "model.backbone={class_path: dit, init_args: {hidden_dim: 16, num_layers: 2, num_heads: 2, conditioning: adaln, num_memory: 2}}",
    "model.router=dense",
    "model.tokenizer.vocab_size=261",
    "model.connectors.latent=residual-linear",
    "model.objective={class_path: v-prediction, init_args: {timesteps: uniform, shows_known: true}}",
    "sampler={class_path: dpmpp-3m-sde, init_args: {num_steps: 3}}",
    "guidance={scale: 2.0, rescale: 0.5}",
    "model.modalities.caption={encoder: {class_path: bytes, init_args: {feature_dim: 16}}, connector: identity, enters: cross}",
    "model.modalities.length={encoder: {class_path: number, init_args: {most: 4}}, connector: linear, enters: cross+global}",
    "model.prompt=[{text: '{caption}', of: caption}, {text: '{seconds}', of: length}]",
    "data.condition_dropout={features: 0.0, together: {caption+length: 0.3}}",
    "data.datasets.toys.tasks={generate: 2, continue: 1, fill: 1}",
    "data.datasets.toys.held_out=0.1",
    "train.validation={every: 15, prompts: [a C4 sine], seconds: 0.3}",
)
OPTIONS = (*DIT, "train.steps=30", "train.batches_per_step=1", "train.optimizer.lr=1e-2", "train.save_every=15")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thirty steps."""
    run_dir = tmp_path_factory.mktemp("dit") / "run"
    assert run_training(tiny_spec(run_dir, *OPTIONS)).finished
    return run_dir


@pytest.fixture(scope="module")
def saved(run: Path) -> Path:
    """The model that the run exports."""
    return load_run(run)[0].save_pretrained(run.parent / "model")


def test_the_held_out_loss_falls_and_resuming_is_bit_exact(run: Path, tmp_path: Path) -> None:
    values = [line["validation/loss"] for line in measured(run) if "validation/loss" in line]
    assert len(values) == 3 and values[-1] < values[0], values
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert run_training(tiny_spec(copy, *OPTIONS), from_step=15).step == 30
    expected, found = (load_file(path / "checkpoints" / "step-00000030" / "rank-00000.safetensors") for path in (run, copy))
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


def test_clips_of_any_length_and_parts_of_files(saved: Path) -> None:
    model = SoundOmni.from_pretrained(saved)
    together = model.generate(["a C4 sine", "two clicks"], seconds=[0.2, 0.5], seeds=3)
    assert [clip.waveform.shape for clip in together] == [(1, 1600), (1, 4000)]
    alone = model.generate("two clicks", seconds=0.5, seeds=4)[0]
    np.testing.assert_allclose(together[1].waveform, alone.waveform, atol=1e-5)
    tone = Audio(0.3 * np.sin(2 * np.pi * 262 * np.arange(4000) / 8000).astype(np.float32)[None], 8000)
    filled = model.generate("a C4 sine", seconds=0.5, known=Kept(tone, [(0.0, 0.2), (0.3, 0.5)]), seeds=1)[0].waveform
    kept = np.r_[128:1472, 2560:3840]  # away from the frames that a gap shares with its neighbors
    np.testing.assert_allclose(filled[0, kept], tone.waveform[0, kept], atol=1e-4)
    assert np.abs(filled[0, 1700:2300] - tone.waveform[0, 1700:2300]).max() > 0.05
    varied = model.generate("a C4 sine", seconds=0.5, vary=tone, strength=0.3)[0].waveform
    assert varied.shape == (1, 4000) and not np.allclose(varied, tone.waveform)


def test_the_command_line_makes_and_refuses(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(saved), "--prompt", "rain", "--no-pictures", "--out", str(tmp_path / "out")]
    assert main([*command, "--seconds", "0.3"]) == 0
    assert main([*command, "--seconds", "9"]) == 2
    assert "the number 9 is out of range; expected one from 0 to 4" in capsys.readouterr().err


@pytest.mark.long
def test_two_ranks_compute_what_one_process_does(tmp_path: Path) -> None:
    options = (*DIT, "train.steps=8", "train.optimizer.lr=1e-3", "train.save_every=0", "data.tokens_per_batch=192")
    run_training(tiny_spec(tmp_path / "one", *options))
    run_in_two_processes(Path(__file__).with_name("tiny_spec.py"), str(tmp_path / "two"), *options)
    one, two = ([line["loss/velocity"] for line in measured(tmp_path / name) if "loss/velocity" in line] for name in ("one", "two"))
    assert len(one) == 8 and two == pytest.approx(one, abs=1e-5)


def test_recomputing_layers_changes_nothing(tmp_path: Path) -> None:
    losses = []
    for recompute in ("false", "true"):
        name = tmp_path / recompute
        run_training(tiny_spec(name, *DIT, "train.steps=3", "train.save_every=0", f"train.activation_checkpointing={recompute}"))
        losses.append([line["loss/velocity"] for line in measured(name) if "loss/velocity" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_memory_of_a_step_is_that_of_a_real_one(tmp_path: Path) -> None:
    spec = resolve(tiny_spec(tmp_path / "run", *OPTIONS))
    found, batch = real_step(spec, World(rank=0, size=1, device=torch.device("cpu")))
    with torch.device("meta"):
        model = build_model(spec.model, vocab_size=spec.model.tokenizer.vocab_size)
    measured_run = MeasuredRun(model, batch, bf16=False, sharded=False, num_layers=len(model.backbone.layers))
    with measured_run.staged("cpu"):
        kept = measured_run.kept("cpu", recompute=False).total
    assert kept == pytest.approx(found["alive"], rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.router=modality",), "the router has the streams und, gen; expected a single one. Use the router dense"),
        (("model.modalities.caption.enters=prefix",), "enters is 'prefix', but backbone 'dit' can only hold clips that it makes"),
        (("model.prompt=[{text: '{caption}'}]",), "the model has no text in its sequence"),
        (("model.objective.shows_known=false",), "it keeps frames of its target, but the backbone cannot tell them"),
        (("model.modalities.caption.connector=codes",), "codes"),
        (
            ("model.backbone.condition_dim=12", "model.modalities.caption.connector=linear"),
            "condition_dim is 12; expected a divisor of hidden_dim, which is 16",
        ),
        (("guidance.rescale=2",), "guidance.rescale is 2"),
        (("data.condition_dropout.together={caption+lenght: 0.3}",), "the model has no modality 'lenght'.*Did you mean 'length'"),
        (("model.prompt=[{text: '{caption}', of: latent}]",), "'latent'"),
        (("data.datasets.toys.tasks={describe: 1}",), "task 'describe' understands audio, but the model has no encoder"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(tiny_spec(tmp_path / "run", *DIT, *options))
