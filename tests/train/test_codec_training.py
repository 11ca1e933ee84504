"""Training a codec with critics: two phases in the one loop, exact on any number of ranks and across a resume."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import tiny_codec
import torch
from safetensors.torch import load_file
from test_run import measured
from tiny_codec import Waves
from two_processes import run_in_two_processes

from soundomni.core.errors import SoundOmniError, SpecError
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.load import load_spec, resolve, spec_to_dict
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import CodecSpec, OptimizerSpec, PhaseSpec, Slot, TrainSpec
from soundomni.train.balancer import BALANCED
from soundomni.train.build_codec import build_codec
from soundomni.train.codec_training import CODEC, CRITICS, CodecTraining
from soundomni.train.export import load_run_codec
from soundomni.train.guards import PATIENCE, Guards
from soundomni.train.parallel import World
from soundomni.train.phases import build_optimizers, phases_of
from soundomni.train.run import RunResult, run_training
from soundomni.train.step import train_step

STARTS = 5
OOBLECK = {"sample_rate": 8000, "channels": 1, "base_channels": 2, "channel_multiples": [1, 2], "strides": [4, 8], "latent_dim": 4}


def train(run_dir: Path, *overrides: str) -> RunResult:
    return run_training(tiny_codec.tiny_codec(run_dir, *overrides), trust_class_paths=True)


def checkpoint(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"))


def trainable(*, critics: bool = True, seed: int = 0, section: dict[str, object] | None = None, **train: object) -> CodecTraining:
    torch.manual_seed(seed)
    slots: dict[str, Slot | None] = {"l1": Slot("l1")}
    if critics:
        slots["waves"] = Slot("tiny_codec.Waves")
    spec = CodecSpec(codec=Slot("oobleck", OOBLECK), critics=slots, **(section or {}))  # type: ignore[arg-type]
    return build_codec(spec, TrainSpec(run_dir=".", **train), trust_class_paths=True)  # type: ignore[arg-type]


def batch(*lengths: int, seed: int = 0) -> PackedBatch:
    """Returns a batch with clips of these lengths in samples, which are noise."""
    from soundomni.core.assembly.segment_writer import clip_writer
    from soundomni.core.spec.schema import SegmentTemplate
    from soundomni.core.tokenizer import TextTokenizer

    codec = build("codec", Slot("oobleck", OOBLECK))
    writer = clip_writer(codec.spec, tokenizer=TextTokenizer.train([], vocab_size=261))
    samples = []
    for place, length in enumerate(lengths):
        noise = 0.1 * torch.randn(1, length, generator=torch.Generator().manual_seed(seed + place))
        segment = writer.segment(SegmentTemplate(audio="target"), texts={}, num_samples=length)
        segment = dataclasses.replace(segment, waveform=noise.numpy())
        samples.append(Sample(key=str(place), segments=(segment,), seed=seed + place))
    return PackedBatch.from_samples(samples)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twenty steps, whose critics start after five."""
    run_dir = tmp_path_factory.mktemp("codec") / "run"
    assert train(run_dir).finished
    return run_dir


def test_a_phase_and_losses_begin_when_the_spec_says(run: Path) -> None:
    lines = measured(run)
    before, after = lines[:STARTS], lines[STARTS:]
    assert all("loss/waves.hinge" not in line and "loss/waves.adversarial" not in line for line in before)
    assert all({"loss/waves.hinge", "loss/waves.features", "lr/critics", "grad_norm/critics"} <= set(line) for line in after)
    assert {line["lr/critics"] for line in after} == {3e-3}
    for line in after:
        weighted = line["loss/l1"] + line["loss/kl"] + 0.1 * line["loss/waves.adversarial"] + line["loss/waves.features"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-5), "the critics' own losses are not among those of the codec"
    assert lines[-1]["loss/l1"] < 0.5 * lines[0]["loss/l1"]
    assert all(line["latent/power"] > 0 for line in lines)
    first, last = checkpoint(run, 3), checkpoint(run, 20)
    critics = [name for name in first if name.startswith("model/critics.")]
    assert critics and not any("critics" in name for name in first if name.startswith("optimizer/"))
    assert not all(torch.equal(first[name], last[name]) for name in critics)
    assert not any("critics" in name for name in last if name.startswith("ema/")), "critics are not used afterwards"


@pytest.mark.parametrize("step", [3, 12])
def test_resuming_before_and_after_the_critics_begin_is_bit_exact(step: int, run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    run_training(tiny_codec.tiny_codec(again), trust_class_paths=True, from_step=step)
    one, two = checkpoint(run, 20), checkpoint(again, 20)
    assert set(one) == set(two)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [line["loss"] for line in measured(again)[step:]] == [line["loss"] for line in measured(run)[step:]]


def test_two_ranks_are_one_and_one_goes_on_from_two(run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "two"
    run_in_two_processes(Path(tiny_codec.__file__), str(run_dir))
    for one, two in zip(measured(run), measured(run_dir), strict=True):
        names = [name for name in one if name.startswith(("loss", "grad_norm"))]
        assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-5, abs=1e-5)
    run_training(tiny_codec.tiny_codec(run_dir), trust_class_paths=True, from_step=12)
    expected = checkpoint(run, 20)
    for name, tensor in checkpoint(run_dir, 20).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_codec_of_a_run_is_its_averaged_weights_only(run: Path) -> None:
    found = load_run_codec(run, step=20, trust_class_paths=True)
    assert found is not None
    slot, codec = found
    assert slot.class_path == "oobleck"
    saved = checkpoint(run, 20)
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor, saved[f"ema/codec.{name}"])
    assert set(load_file(run / "codec.safetensors")) == set(codec.state_dict())


def gradients(module: CodecTraining, *batches: PackedBatch, shared: bool) -> dict[str, torch.Tensor]:
    """Returns the gradients of the codec's phase after the critics' phase on the same batches."""
    for one in batches:
        for total, _ in module(one, CRITICS, step=9, keep=shared).values():
            total.backward(retain_graph=True)
    module.zero_grad()
    for one in batches:
        sum(total / count for name, (total, count) in module(one, CODEC, step=9).items() if "/" not in name).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_estimates_that_both_phases_share_give_the_same_gradients() -> None:
    clips = batch(600, 320, 600)
    once, twice = (gradients(trainable(), clips, shared=shared) for shared in (True, False))
    assert set(once) == set(twice) and all(name.startswith("codec.") for name in once)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_critics_hear_each_clip_without_padding() -> None:
    module = trainable()
    lengths = (600, 320, 600, 64)
    together = module(batch(*lengths), CODEC)
    alone = [trainable()(batch(length, seed=place), CODEC) for place, length in enumerate(lengths)]
    for name in ("l1", "waves.adversarial", "waves.features"):
        for part in (0, 1):
            assert together[name][part].item() == pytest.approx(sum(one[name][part].item() for one in alone), rel=1e-5), name


def test_a_batch_without_clips_counts_nothing_and_gives_every_parameter_a_gradient() -> None:
    module = trainable()
    empty = PackedBatch.from_samples([])
    for phase, part in module.phases.items():
        losses = [total for name, (total, _) in module(empty, phase).items() if "/" not in name]
        assert all(loss.item() == 0 for loss in losses)
        module.zero_grad()
        sum(losses).backward()
        assert all(p.grad is not None and not p.grad.any() for p in part.parameters())


CODES_OF_AVERAGES = {
    **{"sample_rate": 8000, "base_channels": 4, "channel_multiples": [1, 2], "strides": [4, 8], "latent_dim": 16},
    "quantizer": {"method": "ema", "num_levels": 2, "codebook_size": 16},
}


def test_a_batch_without_clips_leaves_codebooks_and_averages_as_they_are() -> None:
    torch.manual_seed(0)
    critics: dict[str, Slot | None] = {"l1": Slot("l1")}
    spec = CodecSpec(codec=Slot("soundstream", CODES_OF_AVERAGES), critics=critics, balance=0.9)
    module = build_codec(spec, TrainSpec(run_dir="."))
    for seed in range(3):
        module(batch(600, seed=seed), CODEC)
        module.after_step(alone())
    before = {name: buffer.clone() for name, buffer in module.named_buffers() if not name.endswith("steps")}
    module(PackedBatch.from_samples([]), CODEC)
    module.after_step(alone())
    assert [name for name, buffer in module.named_buffers() if name in before and not torch.equal(buffer, before[name])] == []


def alone() -> World:
    return World(rank=0, size=1, device=torch.device("cpu"))


def test_a_phase_that_is_not_finite_leaves_its_weights_and_the_other_phase_goes_on() -> None:
    module = trainable()
    train = TrainSpec(run_dir=".", optimizer=OptimizerSpec(lr=1e-2, eps=1e-8))
    phases = phases_of(module, train)
    optimizer = build_optimizers(module, phases)
    before = {name: p.clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        module.critics["waves"].layers[1].bias.fill_(float("nan"))
    result = train_step(module, [batch(600)], train=train, optimizer=optimizer, world=alone(), phases=phases)
    assert result.skipped == 1.0
    assert not result.read(train).is_finite
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) or name == "critics.waves.layers.1.bias"


def test_frozen_parts_stay_and_the_rest_is_trained() -> None:
    module = trainable(section={"freeze": ["encoder"]})
    assert not any(p.requires_grad for p in module.codec.encoder.parameters())
    assert all(p.requires_grad for p in module.codec.decoder.parameters())
    with pytest.raises(SpecError, match=r"^codec.freeze\[0\] is 'encodr'; expected one of encoder, decoder. Did you mean 'encoder'\?"):
        trainable(section={"freeze": ["encodr"]})
    with pytest.raises(SpecError, match="^nothing to train: codec.freeze names every part of the codec"):
        trainable(section={"freeze": ["encoder", "decoder"]})


# --- the balancer


def test_balanced_losses_share_the_gradient_by_their_weights_whatever_their_units() -> None:
    weights = {"l1": 3.0, "waves.features": 1.0, "waves.adversarial": 0.0}
    module = trainable(section={"balance": 0.9}, loss_weights=weights)
    clips = batch(600, 600)
    first = module(clips, CODEC)
    assert first[BALANCED][0].item() == 0
    module.zero_grad()
    first[BALANCED][0].backward()
    assert not any(p.grad.any() for p in module.codec.parameters() if p.grad is not None), "the first step only measures"
    module.after_step(alone())
    norms = {}
    for name in ("l1", "waves.features"):
        estimate, _ = trainable().codec.reconstruct(clips.of("clip").waveform, clips.of("clip").lengths, generators(clips))
        judged = estimate.detach().requires_grad_()
        critic = module.critics[name.partition(".")[0]]
        total, count = critic.judge(clips.of("clip").waveform, judged)[name.partition(".")[2] or "distance"]
        norms[name] = torch.autograd.grad(total / count, judged)[0]
    expected = sum(weights[name] / 4.0 * gradient / gradient.flatten(1).norm(dim=1).mean() for name, gradient in norms.items())
    estimate, _ = module._estimated(clips.of("clip").waveform, clips.of("clip").lengths, clips.of("clip").seeds)
    held = estimate.detach().requires_grad_()
    module._estimate = (held, {})
    module(clips, CODEC)[BALANCED][0].backward()
    torch.testing.assert_close(held.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_loss_that_has_not_started_has_no_share() -> None:
    clips = batch(600)
    found = []
    for starts in ({"waves.adversarial": 5}, {"waves.adversarial": 0}):
        weights = {"waves.adversarial": 0.0 if not starts["waves.adversarial"] else 1.0}
        module = trainable(section={"balance": 0.9}, loss_weights=weights, loss_starts=starts)
        module(clips, CODEC, step=2)
        module.after_step(alone())
        module.zero_grad()
        module(clips, CODEC, step=2)[BALANCED][0].backward()
        found.append({name: p.grad.clone() for name, p in module.codec.named_parameters() if p.grad is not None})
    waiting, weightless = found
    assert all(torch.equal(waiting[name], weightless[name]) for name in waiting) and any(grad.any() for grad in waiting.values())


def generators(clips: PackedBatch) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in clips.of("clip").seeds]


def test_a_balanced_run_is_the_same_on_two_ranks_and_resumes_bit_exactly(tmp_path: Path) -> None:
    options = ("codec.balance=0.9", "train.steps=10", "train.save_every=7")
    train(tmp_path / "one", *options)
    run_in_two_processes(Path(tiny_codec.__file__), str(tmp_path / "two"), *options)
    for one, two in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5, abs=1e-5)
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    run_training(tiny_codec.tiny_codec(tmp_path / "again", *options), trust_class_paths=True, from_step=7)
    expected = checkpoint(tmp_path / "one", 10)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint(tmp_path / "again", 10).items())


# --- codes

CODES = (
    "codec.codec={class_path: soundstream, init_args: {sample_rate: 8000, base_channels: 4, channel_multiples: [1, 2], strides: [4, 8], "
    "latent_dim: 16, warmup_steps: 3, quantizer: {method: METHOD, num_levels: 2, codebook_size: 16}}}"
)


@pytest.mark.parametrize("method", ["ema", "gradient"])
def test_a_codec_of_codes_is_the_same_on_two_ranks_and_resumes_bit_exactly(method: str, tmp_path: Path) -> None:
    options = (CODES.replace("METHOD", method), "train.steps=12", "train.save_every=2")
    train(tmp_path / "one", *options)
    run_in_two_processes(Path(tiny_codec.__file__), str(tmp_path / "two"), *options)
    lines = measured(tmp_path / "one")
    assert ["usage/0" in line for line in lines] == [line["step"] > 3 for line in lines], "codes are in use after the warm-up"
    for one, two in zip(lines, measured(tmp_path / "two"), strict=True):
        names = [name for name in one if name.startswith(("loss", "usage"))]
        assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-5, abs=1e-5)
    expected = checkpoint(tmp_path / "one", 12)
    for step in (2, 8):
        shutil.copytree(tmp_path / "one", tmp_path / f"again-{step}")
        run_training(tiny_codec.tiny_codec(tmp_path / f"again-{step}", *options), trust_class_paths=True, from_step=step)
        again = checkpoint(tmp_path / f"again-{step}", 12)
        assert [name for name in expected if not torch.equal(again[name], expected[name])] == []


# --- guards


def guards() -> Guards:
    return Guards(learned=["waves.hinge"], judged=["l1", "waves.adversarial"], distances=["l1"])


HEALTHY = {"loss/l1": 0.1, "loss/waves.hinge": 1.2, "loss/waves.adversarial": 0.3, "usage/0": 0.8, "latent/power": 1.0}


def healthy(step: int) -> dict[str, float]:
    return {**HEALTHY, "loss/waves.hinge": 1.2 + 0.01 * (step % 3)}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"loss/waves.hinge": 0.001}, "the critic 'waves' tells every clip from its estimate: waves.hinge is 0.001"),
        ({"loss/waves.hinge": 1e5}, "the critic 'waves' has exploded: waves.hinge is 1e.05"),
        ({"loss/waves.adversarial": -1e5}, "the critic 'waves' has exploded: waves.adversarial is -1e.05"),
        ({"usage/0": 0.01}, "only 1.0% of the codes of level 0 are in use"),
        ({"latent/power": 1e8}, "the root mean square of the latents is 1e.04, outside 0.0001 to 1000"),
        ({"latent/power": 0.0}, "the root mean square of the latents is 0, outside"),
        ({"loss/l1": 4.0}, "l1 is 4, 40 times what it was at first"),
        ({"loss/l1": 4.0e6}, "l1 is 4e.06, 40000000 times what it was at first"),
    ],
)
def test_a_sign_of_failure_ends_the_run_once_it_holds(metrics: dict[str, float], words: str) -> None:
    watching = guards()
    watching(1, {**HEALTHY, "loss/waves.hinge": 1.3})
    watching.saved(1)
    for step in range(2, PATIENCE + 1):
        watching(step, {**healthy(step), **metrics})
        watching.saved(step)
    watching(PATIENCE + 1, HEALTHY)  # it was only for a while
    watching.saved(PATIENCE + 1)
    with pytest.raises(SoundOmniError, match=words) as caught:
        for step in range(100, 200):
            watching(step, {**healthy(step), **metrics})
            watching.saved(step)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"training has failed by step {99 + PATIENCE}: ")
    assert str(caught.value).endswith(f"continue with --from-step {PATIENCE + 1}")


def test_a_resumed_run_is_compared_with_how_the_run_began_and_not_with_an_easy_clip() -> None:
    watching = guards()
    watching.resumed(500, {"loss/l1": 0.4, "loss": 1.0})
    for step in range(501, 540):
        watching(step, {**healthy(step), "loss/l1": 0.01 if step == 501 else 0.2})
    with pytest.raises(SoundOmniError, match=r"l1 is 4\.4, 11 times what it was at first.* continue with --from-step 500$"):
        for step in range(540, 560):
            watching(step, {**healthy(step), "loss/l1": 4.4})


def test_a_critic_that_gives_every_clip_the_same_score_has_collapsed() -> None:
    watching = guards()
    with pytest.raises(SoundOmniError, match=r"the critic 'waves' has collapsed: waves.hinge is always 2, whatever it hears"):
        for step in range(100):
            watching(step, {**HEALTHY, "loss/waves.hinge": 2.0})
    watching = guards()
    for step in range(100):
        watching(step, {**HEALTHY, "loss/waves.hinge": 2.0 + 1e-3 * (step % 2)})


def test_a_run_that_diverges_keeps_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("train.keep_checkpoints=1", "train.save_every=1", "train.steps=60")
    train(run_dir, *options[:2], "train.steps=6")
    worse = ("train.optimizer.lr=0.5", "train.optimizer.clip=0")
    with pytest.raises(SoundOmniError, match=r"continue with --from-step (\d+)$") as caught:
        run_training(
            tiny_codec.tiny_codec(run_dir, *options, *worse), trust_class_paths=True, allow_change=["train.optimizer", "train.phases"]
        )
    assert "\n" not in str(caught.value)
    step = int(str(caught.value).rpartition(" ")[2])
    found = load_run_codec(run_dir, step=step, trust_class_paths=True)
    assert found is not None and all(p.isfinite().all() for p in found[1].parameters())


# --- specs


def test_a_run_of_an_earlier_version_that_trained_a_codec_is_read_with_the_losses_it_had() -> None:
    codec = {"class_path": "oobleck", "init_args": {**OOBLECK, "stft_windows": [64, 32]}}
    tree = {
        "model": {"backbone": "mot", "router": "dense", "codec": codec, "connectors": {"latent": "linear"}, "objective": "flow-matching"},
        "sampler": "euler",
        "train": {"run_dir": "x", "target": "codec"},
    }
    spec = load_spec([tree])
    assert spec.model is None and spec.codec is not None
    assert spec.codec.critics == {"stft": Slot("multi-stft", {"windows": [64, 32], "a_weighting": False}), "l1": Slot("l1")}
    assert "stft_windows" not in spec.codec.codec.init_args
    for written in (codec, {**codec, "class_path": "soundomni:oobleck"}):  # a model directory names it too
        short = load_spec([{**tree, "model": {**tree["model"], "codec": written}, "train": {"run_dir": "x"}}])  # type: ignore[dict-item]
        assert "stft_windows" not in short.of_model.codec.init_args
    tree["train"] = {"run_dir": "x", "target": "model"}
    tree["model"]["codec"] = "oobleck"  # type: ignore[index]
    assert load_spec([tree]).model is not None


def test_a_spec_has_a_model_or_a_codec() -> None:
    with pytest.raises(SpecError, match="^the spec has none of the sections model, codec and stages; expected one of them"):
        load_spec([{"train": {"run_dir": "x"}}])
    with pytest.raises(SpecError, match="^the spec has the sections model and codec; expected one of them"):
        load_spec(["demo", {"codec": {"codec": "oobleck"}}])
    spec = load_spec([{"codec": {"codec": "oobleck", "critics": {"a": "l1", "b": "l1"}}}, {"codec": {"critics": {"a": None}}}])
    assert spec.codec is not None and list(spec.codec.used) == ["b"]
    assert spec_to_dict(resolve(spec))["codec"]["critics"]["b"] == {"class_path": "l1", "init_args": {}}
    with pytest.raises(SpecError, match="^the spec trains a codec, and has no model"):
        _ = spec.of_model


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.loss_weights.waves.adverserial=1", "train.loss_weights names 'waves.adverserial'"),
        ("train.loss_starts={waves.hinges: 5}", "train.loss_starts names 'waves.hinges'"),
        ("train.phases.critic.starts=5", "train.phases names 'critic'; expected one of critics, codec. Did you mean 'critics'"),
        ("train.phases.critics.starts=-1", "train.phases.critics.starts is -1; expected at least 0"),
        ("train.phases.codec.starts=1", "train.phases.codec.starts is 1; expected 0"),
        ("train.phases.critics.optimizer.lr=-1", "train.phases.critics.optimizer.lr is -1"),
        ("codec.balance=1", "codec.balance is 1.0; expected at least 0"),
        ("codec.codec=mdct", "codec.codec is a MDCTCodec, which has nothing to train"),
        ("train.lora={streams: [und]}", "train.lora adapts expert streams, but the spec trains a codec"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        train(tmp_path / "run", override)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_phases_have_their_own_optimizer_schedule_and_start() -> None:
    module = trainable()
    own = PhaseSpec(optimizer=OptimizerSpec(lr=3e-4), starts=7)
    first, second = phases_of(module, TrainSpec(run_dir=".", optimizer=OptimizerSpec(lr=1e-4), phases={"critics": own}))
    assert (first.name, first.optimizer.lr, first.starts) == ("critics", 3e-4, 7)
    assert (second.name, second.optimizer.lr, second.starts) == ("codec", 1e-4, 0)
    assert isinstance(module.critics["waves"], Waves) and first.module is module.critics
    assert [phase.name for phase in phases_of(trainable(critics=False), TrainSpec(run_dir="."))] == ["codec"]
