"""Models of codes with a token critic, heads of their own network or a network apart: training, resuming, generating, starting."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_next_token_training import HARMONIC
from test_run import measured
from tiny_spec import tiny_spec
from two_processes import run_in_two_processes

from soundomni.core.assembly.build import build_model, build_sampler
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.representation import HIDDEN, Representation
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.load import spec_to_dict
from soundomni.core.spec.schema import GuidanceSpec, Slot
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.segments import SegmentWriter
from soundomni.train.export import load_run
from soundomni.train.preflight import check_spec
from soundomni.train.run import run_training

CODES = (
    f"model.codec={{class_path: harmonic-codes, init_args: {HARMONIC}}}",
    "model.connectors.latent=codes",
    "model.objective=masked-critic",
    "sampler={class_path: maskgit-critic, init_args: {iterations: [4, 2]}}",
    "guidance.scale=1.5",
    "data.datasets.toys.tasks={generate: 2, continue: 1, describe: 1}",
)
APART = "model.critic={class_path: conformer, init_args: {hidden_dim: 24, num_layers: 1, num_heads: 2}}"
CRITICS = {"self": (), "apart": (APART,)}
OPTIONS = (*CODES, "train.steps=30", "train.batches_per_step=1", "train.optimizer.lr=1e-2", "train.save_every=15")
LOSSES = ("loss/masked", "loss/critic")


@pytest.fixture(scope="module", params=CRITICS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A run of thirty steps, and its options."""
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    options = (*OPTIONS, *CRITICS[request.param], "train.validation={every: 15, prompts: [a C4 sine], seconds: 0.3}")
    assert run_training(tiny_spec(run_dir, *options)).finished
    return run_dir, options


def random_model(folder: Path, *options: str) -> tuple[UnifiedModel, SegmentWriter]:
    """A model in float64 whose connectors are random, and what writes its segments."""
    spec = tiny_spec(folder / "run", *CODES, *options)
    tokenizer = TextTokenizer.train(["a sine"], vocab_size=300)
    model = build_model(spec.model, vocab_size=tokenizer.vocab_size, seed=1).double()
    torch.manual_seed(0)
    made = model.made()
    made.codec.fit([(0.3 * torch.randn(2, 1, 2000).double(), torch.tensor([2000, 2000]))])
    with torch.no_grad():
        for network in (model, *model.networks):
            for parameter in network.made().connector.parameters():
                parameter.normal_()
    return model, segment_writer(model, spec.model, tokenizer=tokenizer)


def test_both_losses_fall_and_resuming_is_bit_exact(run: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    run_dir, options = run
    for loss in LOSSES:
        values = [line[loss] for line in measured(run_dir) if loss in line]
        assert len(values) == 30 and np.mean(values[-6:]) < np.mean(values[:3]), (loss, values)
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    assert run_training(tiny_spec(copy, *options), from_step=15).step == 30
    expected, found = (load_file(path / "checkpoints" / "step-00000030" / "rank-00000.safetensors") for path in (run_dir, copy))
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert measured(copy)[-15:] == measured(run_dir)[-15:]


def test_a_saved_model_makes_the_same_clips_with_its_critic_and_without(run: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    model = load_run(run[0])[0]
    saved = model.save_pretrained(tmp_path / "model")
    names = list(load_file(saved / "model.safetensors"))
    assert len(names) == len({name.removeprefix("critic.") for name in names if "codec" in name} | set(names))
    assert any(name.startswith("critic.backbone.") for name in names) == (APART in run[1])
    assert not [name for name in names if name.startswith("critic.") and "codec" in name], "codecs are saved once"
    loaded = SoundOmni.from_pretrained(saved)
    first, again = (one.generate(["a C4 sine", "noise"], seconds=0.3, seeds=[3, 4]) for one in (model, loaded))
    assert all(np.array_equal(one.waveform, other.waveform) for one, other in zip(first, again, strict=True))
    plain = SoundOmni.from_pretrained(saved, overrides={"sampler": "{class_path: maskgit, init_args: {iterations: [4, 2]}}"})
    others = plain.generate(["a C4 sine", "noise"], seconds=0.3, seeds=[3, 4])
    assert not all(np.array_equal(one.waveform, other.waveform) for one, other in zip(first, others, strict=True))


@pytest.mark.parametrize("critic", CRITICS)
def test_losses_of_a_critic_are_counted_before_they_are_computed_and_add_up(critic: str, tmp_path: Path) -> None:
    model, writer = random_model(tmp_path, *CRITICS[critic])
    samples = []
    for seed, length in enumerate((1280, 700, 2000)):
        clip = np.random.default_rng(seed).normal(0, 0.3, (1, length)).astype(np.float32)
        segments = (writer.text("a sine"), writer.target(length).with_waveform(clip))
        samples.append(Sample(key=str(seed), segments=segments, seed=seed, group="few/generate" if seed else "one/generate"))
    batch = PackedBatch.from_samples(samples)
    losses, counts = model(batch), model.count_terms(batch)
    assert counts["critic"] == counts["masked"] == float(losses["critic"][1]) and "critic" in model.loss_names
    alone = [model(PackedBatch.from_samples([sample]))["critic"] for sample in samples]
    torch.testing.assert_close(losses["critic"][0], sum(total for total, _ in alone), rtol=1e-5, atol=1e-5)
    parts = model(batch.broken_down())
    torch.testing.assert_close(parts["critic/one/generate"][0], alone[0][0].detach().double(), rtol=1e-5, atol=1e-5)
    sum(total for total, _ in model(PackedBatch.from_samples([])).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None] == []


def test_the_loss_of_a_critic_apart_changes_nothing_in_the_generator(tmp_path: Path) -> None:
    model, writer = random_model(tmp_path, APART)
    clip = np.random.default_rng(0).normal(0, 0.3, (1, 1280)).astype(np.float32)
    sample = Sample(key="x", segments=(writer.text("a sine"), writer.target(1280).with_waveform(clip)), seed=3)
    model(PackedBatch.from_samples([sample]))["critic"][0].backward()
    moved = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert moved == {"critic"}


@pytest.mark.parametrize("critic", CRITICS)
def test_a_critic_of_some_levels_has_a_score_for_each_of_them(critic: str, tmp_path: Path) -> None:
    model, writer = random_model(tmp_path, *CRITICS[critic], "model.objective={class_path: masked-critic, init_args: {levels: [0, 1]}}")
    clip = np.random.default_rng(0).normal(0, 0.3, (1, 1280)).astype(np.float32)
    samples = [Sample(key="x", segments=(writer.text("a sine"), writer.target(1280).with_waveform(clip)), seed=seed) for seed in range(8)]
    sum(total for total, _ in model(PackedBatch.from_samples(samples)).values()).backward()
    for network in (model, *model.networks):
        heads = [weight for name, weight in network.made().connector.named_parameters() if "head" in name and weight.ndim == 2]
        assert heads and all(bool(weight.grad.abs().sum(1).gt(0).all()) for weight in heads), "no head is left out"


@pytest.mark.parametrize("critic", CRITICS)
def test_a_clip_is_made_the_same_in_a_batch_guidance_steers_and_known_frames_stay(critic: str, tmp_path: Path) -> None:
    model, writer = random_model(tmp_path, *CRITICS[critic])
    rng = np.random.default_rng(0)
    requests = []
    for clip, frames in enumerate((9, 5, 12)):
        known = torch.from_numpy(np.stack([rng.integers(0, 16, frames) for _ in range(2)])) if clip == 1 else None
        mask = torch.arange(frames) < 2 if clip == 1 else None
        slot = writer.target((frames - model.made().codec.spec.extra_frames) * 128)
        requests.append(AudioRequest(context=(writer.text("a sine"),), negative=(), slot=slot, seed=clip, known=known, known_mask=mask))
    assert [request.num_frames for request in requests] == [9, 5, 12]
    seen: list[torch.Tensor] = []

    def make(requests: list[AudioRequest], scale: float) -> Representation:
        sampler, guidance = build_sampler(Slot("maskgit-critic", {"iterations": [4, 2]})), GuidanceSpec(scale=scale)
        return sample_audio(model, requests, sampler=sampler, guidance=guidance, on_step=lambda _, values: seen.append(values.clone()))

    together = make(requests, 2.5)
    assert not (together.values == HIDDEN).any()
    for row, request in enumerate(requests):
        made = together.values[row, :, : request.num_frames]
        assert torch.equal(make([request], 2.5).values[0], made)
    mask, codes = requests[1].known_mask, requests[1].known
    assert mask is not None and codes is not None
    for values in seen[:6]:
        assert torch.equal(values[1, :, :5][:, mask], codes[:, mask]), "given frames stay in every step"
    assert not torch.equal(make(requests, 40.0).values, together.values)


def test_a_critic_apart_starts_from_a_trained_generator_which_stays(tmp_path: Path) -> None:
    options = (*OPTIONS, "model.objective=masked", "sampler=maskgit", "train.steps=4", "train.save_every=0", "train.ema_decay=0")
    run_training(tiny_spec(tmp_path / "generator", *options))
    generator = load_run(tmp_path / "generator")[0].save_pretrained(tmp_path / "model")
    told = (
        ("model.start", str(generator)),
        ("model.objective", "masked-critic"),
        ("sampler", "maskgit-critic"),
        *((key, value) for key, _, value in [APART.partition("=")]),
        ("model.freeze", "[und, gen, embedding, encoder, connectors]"),
    )
    whole = tiny_spec(tmp_path / "critic", *OPTIONS, "train.steps=4", "train.save_every=0")
    rest = {name: tree for name, tree in spec_to_dict(whole).items() if name in ("data", "train")}
    run_training(load_spec_with_start([rest], list(told)))
    trained = load_run(tmp_path / "critic")[0].save_pretrained(tmp_path / "both")
    before, after = load_file(generator / "model.safetensors"), load_file(trained / "model.safetensors")
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []
    assert all(name.startswith("critic.") for name in after.keys() - before.keys()) and len(after) > len(before)
    assert SoundOmni.from_pretrained(trained).generate("a C4 sine", seconds=0.3)[0].waveform.shape == (1, 2400)


@pytest.mark.long
@pytest.mark.parametrize("critic", CRITICS)
def test_two_ranks_compute_what_one_process_does(critic: str, tmp_path: Path) -> None:
    options = (*CODES, *CRITICS[critic], "train.steps=12", "train.optimizer.lr=1e-3", "train.save_every=0", "data.tokens_per_batch=96")
    run_training(tiny_spec(tmp_path / "one", *options))
    run_in_two_processes(Path(__file__).with_name("tiny_spec.py"), str(tmp_path / "two"), *options)
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    for loss in LOSSES:
        values = [[line[loss] for line in lines if loss in line] for lines in (one, two)]
        assert len(values[0]) == 12 and values[1] == pytest.approx(values[0], abs=1e-5), loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.objective=masked",), "sampler is 'maskgit-critic', which needs scores .* Use an objective such as masked-critic, or"),
        (("model.objective=masked", "sampler=maskgit", APART), "model.critic is 'conformer', but no objective asks for scores"),
        (
            (
                "model.router=dense",
                "model.backbone=conformer",
                "model.objective=masked-critic",
                "sampler=maskgit-critic",
                "model.critic={class_path: dit, init_args: {hidden_dim: 32, num_layers: 1, num_heads: 2}}",
            ),
            "model.critic is 'dit', which needs timesteps; critics do not have any",
        ),
        (("model.start_fresh=[critics]", APART), "model.start_fresh.0. is 'critics'; expected one of .*Did you mean 'critic'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(tiny_spec(tmp_path / "run", *CODES, *options))
