"""A model that makes codes token after token, from end to end: it trains, resumes, continues files and ends its clips."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from real_footprint import real_step
from safetensors.torch import load_file
from test_run import measured
from tiny_spec import tiny_spec
from two_processes import run_in_two_processes

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

HARMONIC = "{sample_rate: 8000, frame_size: 128, num_harmonics: 3, pitch_range: [125, 1000], companding: 0.5, num_codebooks: 2, \
codebook_size: 16}"
CODES = (
    f"model.codec={{class_path: harmonic-codes, init_args: {HARMONIC}}}",
    "model.connectors.latent=codes",
    "model.objective={class_path: autoregressive, init_args: {order: delay, forget: 0.1}}",
    "sampler={class_path: next-token, init_args: {temperature: 0.9, top_k: 0.5}}",
    "guidance.scale=1.5",
    "data.datasets.toys.tasks={generate: 2, continue: 1}",
    "data.datasets.toys.held_out=0.1",
    "train.validation={every: 15, prompts: [a C4 sine], seconds: 0.3}",
)
OPTIONS = (*CODES, "train.steps=30", "train.batches_per_step=1", "train.optimizer.lr=1e-2", "train.save_every=15")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thirty steps."""
    run_dir = tmp_path_factory.mktemp("next-token") / "run"
    assert run_training(tiny_spec(run_dir, *OPTIONS)).finished
    return run_dir


@pytest.fixture(scope="module")
def saved(run: Path) -> Path:
    """The model that the run exports."""
    return load_run(run)[0].save_pretrained(run.parent / "model")


def test_the_loss_falls_and_resuming_is_bit_exact(run: Path, tmp_path: Path) -> None:
    values = [line["loss/autoregressive"] for line in measured(run) if "loss/autoregressive" in line]
    assert len(values) == 30 and np.mean(values[-6:]) < 0.8 * np.mean(values[:3]), values
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert run_training(tiny_spec(copy, *OPTIONS), from_step=15).step == 30
    expected, found = (load_file(path / "checkpoints" / "step-00000030" / "rank-00000.safetensors") for path in (run, copy))
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert measured(copy)[-15:] == measured(run)[-15:]


def test_clips_end_by_themselves_and_a_file_is_continued_from_the_command_line(saved: Path, tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    model = SoundOmni.from_pretrained(saved)
    clips = model.generate(["a C4 sine"] * 8, seconds=0.4, seeds=0)
    alone = model.generate("a C4 sine", seconds=0.4, seeds=5)[0]
    assert np.array_equal(alone.waveform, clips[5].waveform)
    lengths = [clip.waveform.shape[1] for clip in clips]
    assert all(length == 3200 or (0 < length < 3200 and length % 128 == 0) for length in lengths)
    tone = 0.3 * np.sin(2 * np.pi * 262 * np.arange(2400) / 8000).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", tone, 8000)
    command = ["--model", str(saved), "--prompt", "a C4 sine", "--no-pictures", "--out", str(tmp_path / "out")]
    continued = ["generate", *command, "--keep", str(tmp_path / "tone.wav"), "--seconds", "0.5", "--json"]
    assert main(continued) == 0
    (made,) = json.loads(capfd.readouterr().out)["clips"]
    waveform, rate = soundfile.read(made["files"][0], dtype="float32", always_2d=True)
    codec = model.model.made().codec
    with torch.no_grad():
        own = codec.decode(codec.encode(torch.from_numpy(tone)[None, None], torch.tensor([2400])))[0, 0].numpy()
    assert rate == 8000 and 2304 <= len(waveform) <= 4000
    np.testing.assert_allclose(waveform[: 2400 - 256, 0], own[: 2400 - 256], atol=2e-4, err_msg="the kept part, as the codec has it")
    for options, message in (
        (["--steps", "5"], "--steps is 5, but this model makes 'latent' token after token, as many as a clip has. Leave out --steps"),
        (["--keep", str(tmp_path / "tone.wav"), "--span", "0.1:0.3", "--seconds", "0.5"], "Keep one part that begins at 0 s"),
    ):
        assert main(["generate", *command, *options]) == 2
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1, error
    varied = model.generate("a C4 sine", seconds=0.3, vary=clips[0].__class__(tone[None], 8000), strength=0.5)[0].waveform
    np.testing.assert_allclose(varied[0, : 1200 - 256], own[: 1200 - 256], atol=2e-4, err_msg="it keeps the first half")


def test_the_memory_that_tokens_need_is_that_of_a_real_step(tmp_path: Path) -> None:
    sizes = "{sample_rate: 8000, encoder_dim: 2, decoder_dim: 8, strides: [8, 8], codebook_size: 16, codebook_dim: 2, total_codebooks: 2}"
    codec = f"model.codec={{class_path: dac, init_args: {sizes}}}"  # it need not be measured first
    spec = resolve(tiny_spec(tmp_path / "run", *OPTIONS, codec))
    found, batch = real_step(spec, World(rank=0, size=1, device=torch.device("cpu")))
    with torch.device("meta"):
        model = build_model(spec.model, vocab_size=spec.model.tokenizer.vocab_size)
    measured_run = MeasuredRun(model, batch, bf16=False, sharded=False, num_layers=len(model.backbone.layers))
    with measured_run.staged("cpu"):
        kept = measured_run.kept("cpu", recompute=False).total
    assert kept == pytest.approx(found["alive"], rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("levels", ["null", "[0, 1]", "[1, 2]"])
def test_two_ranks_compute_what_one_process_does(levels: str, tmp_path: Path) -> None:
    options = (
        *CODES,
        f"model.objective.levels={levels}",
        "train.steps=12",
        "train.optimizer.lr=1e-3",
        "train.save_every=0",
        "data.tokens_per_batch=96",
    )
    run_training(tiny_spec(tmp_path / "one", *options))
    run_in_two_processes(Path(__file__).with_name("tiny_spec.py"), str(tmp_path / "two"), *options)
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert [line["loss/autoregressive"] for line in two if "loss/autoregressive" in line] == pytest.approx(
        [line["loss/autoregressive"] for line in one if "loss/autoregressive" in line], abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("sampler=maskgit",),
            "takes logits of hidden codes; expected one that takes logits of the next token, .* Use a sampler such as next-token",
        ),
        (
            ("model.objective=masked",),
            "takes logits of the next token; expected one that takes logits of hidden codes, .* Use a sampler such as maskgit",
        ),
        (("model.objective.order=delays",), "order is 'delays'; expected one of flat, levels, delay, frames"),
        (("sampler.top_k=0",), "top_k is 0; expected a whole number of codes from 1 on, or a share of them"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(tiny_spec(tmp_path / "run", *CODES, *options))


def test_a_task_with_a_gap_is_refused(tmp_path: Path) -> None:
    message = "task 'fill': it leaves a gap in its target, but clips of 'latent' are made from beginning to end"
    with pytest.raises(SpecError, match=message):
        run_training(tiny_spec(tmp_path / "run", *CODES, "data.datasets.toys.tasks={fill: 1}"))


@pytest.mark.parametrize(("scale", "end", "doubted"), [(1.5, 0.9, True), (1.5, 1.0, False), (1.0, 0.9, False)])
def test_guidance_that_never_applies_is_doubted(scale: float, end: float, doubted: bool, tmp_path: Path) -> None:
    lines = check_spec(tiny_spec(tmp_path / "run", *CODES, f"guidance.scale={scale}", f"guidance.interval=[0.2, {end}]"))
    found = [line for line in lines if line.startswith("guidance.interval is [0.2, 0.9], but 'latent' is made token after token")]
    assert len(found) == doubted
