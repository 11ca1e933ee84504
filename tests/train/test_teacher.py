"""A model learns from a frozen teacher to make clips in a few steps without guidance."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_dit_training import DIT
from test_run import measured
from tiny_spec import tiny_spec
from tiny_student import spec_from
from two_processes import run_in_two_processes

from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import CheckpointError, SoundOmniError, SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.interfaces import First
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import Representation
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.core.writing.prompts import PromptWriter
from soundomni.flow import EulerSampler, MidpointSampler
from soundomni.train.export import load_run
from soundomni.train.preflight import check_spec
from soundomni.train.run import run_training
from soundomni.train.teacher import Course, Teacher, straight_velocity

STUDENT = (
    *(option for option in DIT if option.startswith("data.")),
    "sampler={class_path: euler, init_args: {num_steps: 4}}",
    "guidance.scale=1",
    "train.teacher={steps: 1}",
    "train.batches_per_step=1",
    "train.schedule.warmup_steps=0",
)


def exported(base: Path, *options: str) -> Path:
    run_training(tiny_spec(base / "run", *options))
    return load_run(base / "run")[0].save_pretrained(base / "model")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion transformer that is guided, after thirty steps."""
    return exported(tmp_path_factory.mktemp("teacher"), *DIT, "train.steps=30", "train.batches_per_step=1", "train.optimizer.lr=1e-2")


@pytest.fixture(scope="module")
def run(teacher: Path) -> Path:
    """A run of six steps that learned from it."""
    run_dir = teacher.parent / "student"
    assert run_training(spec_from(teacher, run_dir, *STUDENT)).finished
    return run_dir


def checkpoint(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"))


def test_a_student_of_a_gaussian_takes_the_teachers_flow_in_eight_steps() -> None:
    mean, deviation = torch.tensor([[[0.5], [-1.0]]], dtype=torch.float64), 0.3

    def velocity(values: torch.Tensor, timesteps: torch.Tensor, *, first: First = 0) -> torch.Tensor:
        times = timesteps[:, None, None]
        variance = (1 - times) ** 2 * deviation**2 + times**2
        return -mean + (times - (1 - times) * deviation**2) / variance * (values - (1 - times) * mean)

    generator = torch.Generator().manual_seed(0)
    timesteps = EulerSampler(num_steps=8, shift=2.0).straight_steps()
    learned: list[tuple[torch.Tensor, torch.Tensor]] = []
    for begin, end in pairwise(timesteps):
        clean = mean + deviation * torch.randn(64, 2, 3, generator=generator, dtype=torch.float64)
        values = (1 - begin) * clean + begin * torch.randn(64, 2, 3, generator=generator, dtype=torch.float64)
        begins, ends = (torch.full((64,), time, dtype=torch.float64) for time in (begin, end))
        targets = straight_velocity(velocity, values, begins, ends, steps=16)
        inputs = torch.stack([values[:, 1].flatten(), torch.ones(192, dtype=torch.float64)], dim=1)
        learned.append(torch.linalg.lstsq(inputs, targets[:, 1].flatten()[:, None]).solution.flatten().unbind())

    def student(values: torch.Tensor, times: torch.Tensor, *, first: First = 0) -> torch.Tensor:
        slope, offset = learned[min(range(8), key=lambda step: abs(timesteps[step] - float(times[0])))]
        return slope * values + offset

    noise = torch.randn(1, 2, 100, generator=generator, dtype=torch.float64)[:, 1:]
    made, coarse = (
        EulerSampler(num_steps=8, shift=2.0).sample(predict, Representation.of_latents(noise)).values
        for predict in (student, lambda values, times, first=0: velocity(values.expand(1, 2, 100), times)[:, 1:])
    )
    truth = mean[:, 1:] + deviation * noise  # the flow of a Gaussian is the straight map between noise and data
    assert float((made - truth).abs().max()) < 2e-3
    assert float((coarse - truth).abs().max()) > 0.05, "which eight steps of the teacher itself do not reach"


class FromThese(MidpointSampler):
    """Starts from given values."""

    def __init__(self, values: torch.Tensor, num_steps: int) -> None:
        super().__init__(num_steps=num_steps)
        self._values = values

    def sample(self, predict, start, **others):  # type: ignore[no-untyped-def]
        return super().sample(predict, start.with_values(self._values), **others)


@pytest.mark.parametrize(
    ("options", "guidance"),
    [
        (DIT, GuidanceSpec(scale=2.5, rescale=0.5, interval=(0.2, 1.0))),
        (DIT, GuidanceSpec(scale=3.0, parallel=0.0, renormalize="global")),
        (("data.datasets.toys.tasks={generate: 1}",), GuidanceSpec()),
    ],
)
def test_from_noise_to_data_it_goes_where_sampling_goes(options: tuple[str, ...], guidance: GuidanceSpec, tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "run", *options, "train.steps=12", "train.optimizer.lr=1e-2"))
    omni = load_run(tmp_path / "run")[0]
    modality = omni.model.made()
    prompts = PromptWriter(segment_writer(omni.model, omni.spec.of_model, tokenizer=omni.tokenizer), max_tokens=None)
    samples, requests = [], []
    for i, (text, length) in enumerate((("a C4 sine", 3000), ("", 1500), ("two loud clicks", 4000))):
        waveform = 0.3 * np.random.default_rng(i).standard_normal((1, length)).astype(np.float32)
        slot = prompts.slot(length)
        context, negative = prompts.prompt(text, slot), prompts.without_prompt(slot, text=text)
        request = AudioRequest(context=context, negative=negative, slot=slot, seed=i)
        known = np.zeros(slot.num_frames, dtype=bool)
        if i == 2:  # a continuation
            known[:8] = True
            values = modality.encode(torch.from_numpy(waveform)[None], torch.tensor([length])).values[0]
            request = replace(request, known=values, known_mask=torch.from_numpy(known))
        target = replace(slot, known=known).with_waveform(waveform)
        samples.append(Sample(key=str(i), segments=(*context, target), seed=i))
        requests.append(request)
    batch = PackedBatch.from_samples(samples)
    query = Teacher(omni.model, courses={"latent": Course((1.0, 0.0), guidance)}, steps=3)(batch)["latent"]
    expected = sample_audio(omni.model, requests, sampler=FromThese(query.inputs, 3), guidance=guidance)
    found = query.inputs - query.targets
    for i, frames in enumerate(expected.frame_counts):
        torch.testing.assert_close(found[i, :, :frames], expected.values[i, :, :frames], rtol=1e-4, atol=1e-4)
    assert int(query.loss_mask.sum()) == sum(expected.frame_counts) - 8


def test_clips_begin_at_the_samplers_timesteps_and_end_at_the_next(teacher: Path) -> None:
    omni = SoundOmni.from_pretrained(teacher)
    prompts = PromptWriter(segment_writer(omni.model, omni.spec.of_model, tokenizer=omni.tokenizer), max_tokens=None)
    slot, waveform = prompts.slot(1500), 0.1 * np.ones((1, 1500), dtype=np.float32)
    segments = (*prompts.prompt("rain", slot), slot.with_waveform(waveform))
    timesteps = EulerSampler(num_steps=4, shift=3.0).straight_steps()
    lesson = Teacher(omni.model, courses={"latent": Course(timesteps, GuidanceSpec())}, steps=1)
    drawn = lesson(PackedBatch.from_samples([Sample(key=str(seed), segments=segments, seed=seed) for seed in range(64)]))["latent"]
    counts = [int((drawn.timesteps[:, 0] == torch.tensor(time)).sum()) for time in timesteps[:-1]]
    assert sum(counts) == 64 and min(counts) >= 8, counts
    alone = lesson(PackedBatch.from_samples([Sample(key="7", segments=segments, seed=7)]))["latent"]
    torch.testing.assert_close(alone.inputs[0], drawn.inputs[7])
    torch.testing.assert_close(alone.targets[0], drawn.targets[7], rtol=1e-4, atol=1e-5)
    placed = [Sample(key=str(i), segments=segments, seed=0, quantile=(i + 0.5) / 4) for i in range(4)]
    spread = lesson(PackedBatch.from_samples(placed))["latent"].timesteps[:, 0]
    assert sorted(spread.tolist(), reverse=True) == pytest.approx(timesteps[:-1])
    assert lesson(PackedBatch.from_samples([]))["latent"].targets.shape[0] == 0


def test_the_teacher_is_saved_nowhere_and_the_student_is_an_ordinary_model(run: Path, teacher: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    run_training(spec_from(teacher, plain, *STUDENT, "train.teacher=null"))
    assert checkpoint(run, 6).keys() == checkpoint(plain, 6).keys()
    original, learned = load_file(teacher / "model.safetensors"), checkpoint(run, 6)
    assert any(not torch.equal(tensor, learned[f"model/{name}"]) for name, tensor in original.items())
    saved = load_run(run)[0].save_pretrained(tmp_path / "model")
    assert load_file(saved / "model.safetensors").keys() == original.keys() and "teacher" not in (saved / "spec.yaml").read_text()
    student = SoundOmni.from_pretrained(saved)
    assert student.spec.model.made.sampler.init_args["num_steps"] == 4 and student.spec.model.made.guidance.scale == 1.0
    steps: list[int] = []
    clip = student.generate("a C4 sine", seconds=0.3, on_step=lambda index, values: steps.append(index))[0]
    assert clip.waveform.shape == (1, 2400) and len(steps) == 4


def test_the_student_learns_and_resuming_is_bit_exact(run: Path, teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert run_training(spec_from(teacher, copy, *STUDENT), from_step=3).step == 6
    expected, found = checkpoint(run, 6), checkpoint(copy, 6)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    longer = ("train.steps=60", "train.optimizer.lr=1e-2", "train.save_every=0", "data.datasets.toys.held_out=0.2")
    run_training(spec_from(teacher, tmp_path / "longer", *STUDENT, *longer, "train.validation={every: 60}"))
    values = [line["validation/loss/velocity"] for line in measured(tmp_path / "longer") if "validation/loss/velocity" in line]
    assert len(values) == 2 and values[1] < 0.8 * values[0], values


def test_a_run_goes_on_only_with_its_own_teacher(run: Path, teacher: Path, tmp_path: Path) -> None:
    start, copy = Path(shutil.copytree(teacher, tmp_path / "start")), tmp_path / "copy"
    run_training(spec_from(start, copy, *STUDENT, "train.steps=3"))
    with pytest.raises(CheckpointError, match="num_steps: 4 -> 2"):
        run_training(spec_from(start, copy, *STUDENT, "sampler.num_steps=2"))
    weights = load_file(start / "model.safetensors")
    name = next(name for name in weights if name.endswith("inward.weight"))
    save_file({**weights, name: weights[name] + 1.0}, start / "model.safetensors")
    with pytest.raises(CheckpointError, match="has changed since .* learned from it as train.teacher") as caught:
        run_training(spec_from(start, copy, *STUDENT))
    assert "\n" not in str(caught.value)
    shutil.rmtree(start)
    with pytest.raises(CheckpointError, match="still learns from model.start \\(train.teacher\\)"):
        run_training(spec_from(start, copy, *STUDENT))


def test_adapters_learn_from_the_model_that_they_adapt(teacher: Path, tmp_path: Path) -> None:
    lora = ("train.lora={streams: [dense], targets: [qkv], rank: 2}", "train.steps=2", "train.save_every=0")
    with pytest.raises(SoundOmniError) as caught:
        run_training(spec_from(teacher, tmp_path / "names", *STUDENT, "train.lora={streams: [none], targets: [qkv]}"))
    streams = str(caught.value).partition("Streams: ")[2]
    result = run_training(spec_from(teacher, tmp_path / "run", *STUDENT, lora[0].replace("dense", streams), *lora[1:]))
    assert result.finished and math.isfinite(result.metrics["loss"])


@pytest.mark.long
def test_two_ranks_learn_what_one_process_does(teacher: Path, tmp_path: Path) -> None:
    options = (*STUDENT, "train.steps=5", "train.save_every=0", "train.optimizer.lr=1e-3", "train.validation={every: 5}")
    options = (*options, "data.datasets.toys.held_out=0.2", "train.teacher.guidance={scale: 2.0, interval: [0.4, 0.6]}")
    options = tuple("train.batches_per_step=2" if option.startswith("train.batches_per_step") else option for option in options)
    run_training(spec_from(teacher, tmp_path / "one", *options))
    run_in_two_processes(Path(__file__).with_name("tiny_student.py"), str(teacher), str(tmp_path / "two"), *options)
    for key in ("loss/velocity", "validation/loss/velocity"):
        one, two = ([line[key] for line in measured(tmp_path / name) if key in line] for name in ("one", "two"))
        assert len(one) >= 2 and two == pytest.approx(one, rel=1e-4), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train.teacher.steps=0",), "train.teacher.steps is 0; expected at least 1"),
        (("sampler.num_steps=0",), "num_steps is 0; expected at least 1"),
        (("guidance.scale=2",), "guidance.scale is 2; expected 1, because only the teacher is guided"),
        (("sampler=heun",), "sampler is 'heun', whose steps a model cannot learn from a teacher; .* Use a sampler such as euler"),
        (("sampler={class_path: ddim, init_args: {eta: 0.5}}",), "sampler is 'ddim', whose steps a model cannot learn"),
        (("model.start_fresh=[latent.connector]",), "model.start_fresh is .*, but with train.teacher, a model begins as its teacher"),
        (("train.teacher.steps=10001",), "train.teacher.steps is 10001; expected at most 10,000"),
        (("train.teacher.steps=1000000000000",), "train.teacher.steps is 1000000000000; expected at most 10,000"),
        *(
            (
                (f"train.teacher.guidance.scale={value}",),
                r"train.teacher.guidance.scale is .*; expected a number from -1,000,000 to",
            )
            for value in (".nan", ".inf", "-.inf", "1e300", "-1e300", "1000001")
        ),
        (("train.teacher.guidance={scale: 2, rescale: 3}",), "train.teacher.guidance.rescale is 3"),
        (("train.teacher.guidance={interval: [.nan, 1]}",), "train.teacher.guidance.interval is "),
        (("train.teacher.guidance={norm_threshold: .nan}",), "train.teacher.guidance.norm_threshold is nan"),
        (("model.backbone.num_layers=3",), "the weights of .* do not fit .*num_layers: 2 -> 3"),
        (("model.objective.mean=0.5",), "train.teacher: the spec changes .*mean: 0.0 -> 0.5 .*Leave this key out"),
    ],
)
def test_bad_input_is_refused_before_training(teacher: Path, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        run_training(spec_from(teacher, tmp_path / "run", *STUDENT, *options))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_other_models_cannot_learn_from_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="train.teacher is set, but model.start is not. Set model.start to the teacher"):
        check_spec(tiny_spec(tmp_path / "none", "train.teacher={}"))
    text = exported(tmp_path, "train.steps=1", "guidance.scale=2")
    options = ("sampler={class_path: euler, init_args: {num_steps: 4}}", "guidance.scale=1", "train.teacher={}")
    with pytest.raises(
        SpecError, match="the guidance scale of the teacher is 2; expected 1, because backbone 'mot' has the prompts in its sequence"
    ):
        run_training(spec_from(text, tmp_path / "refused", *options))
    assert not (tmp_path / "refused").exists()
    with pytest.raises(SpecError, match="the guidance scale of the teacher is 3; expected 1"):
        check_spec(spec_from(text, tmp_path / "run", *options, "train.teacher.guidance.scale=3"))
    assert run_training(spec_from(text, tmp_path / "plain", *options, "train.teacher.guidance.scale=1", "train.steps=2")).finished
    codes = load_spec(["nano-codes"], [("model.start", "nano-codes"), ("train.teacher", "{}")], base={})
    with pytest.raises(SpecError, match="train.teacher teaches velocities, but the objective of 'codes' predicts codes"):
        check_spec(codes)
    with pytest.raises(SpecError, match="train.teacher only applies to models, but the spec trains a codec"):
        check_spec(tiny_spec(tmp_path / "codec", "train.teacher={}", codec=True))
