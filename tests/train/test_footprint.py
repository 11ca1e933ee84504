"""What the doctor says a step takes, against real steps on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from real_footprint import real_step
from torch import nn
from two_processes import run_in_two_processes

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.encoding import encode_clips
from soundomni.core.errors import SpecError
from soundomni.core.spec import registry
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.schema import OptimizerSpec, Slot, Spec
from soundomni.train.memory.activations import MeasuredRun, measure_step
from soundomni.train.memory.diagnosis import Diagnosis, Setting, diagnose, first_change
from soundomni.train.memory.footprint import FEW, list_parts, optimizer_state, resident_bytes, shard_numel
from soundomni.train.memory.live_memory import LiveMemory
from soundomni.train.memory.typical_batch import typical_batch
from soundomni.train.parallel import World

WORKER = Path(__file__).with_name("real_footprint.py")
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TEXT = """
model:
  backbone: {class_path: mot, init_args: {hidden_dim: 48, num_layers: 5, num_heads: 4, num_kv_heads: 2, qk_norm: gen, vocab_rows: 420}}
  router: modality
  codec: {class_path: oobleck, init_args: {sample_rate: 8000, channels: 1, base_channels: 2, channel_multiples: [1, 2], strides: [4, 8],
    latent_dim: 4}}
  encoder: {class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 200, hop_length: 80, num_mels: 16, feature_dim: 16}}
  connectors: {latent: linear, features: linear}
  objective: flow-matching
  tokenizer: {vocab_size: 300}
  latent_positions: advance
sampler: euler
data:
  datasets:
    toys:
      source: {class_path: toy-sounds, init_args: {size: 64, seconds: 0.4, events: [1, 1]}}
      tasks: {generate: 1.0, describe: 1.0}
  tokens_per_batch: 512
  lookahead: 8
  workers: 1
train:
  run_dir: unused
  optimizer: {lr: 1.0e-3, eps: 1.0e-8}
  batches_per_step: 2
  ema_decay: 0.9
"""
RECIPE = ("model.freeze", "[und, embedding, encoder]")
WIDER = [("model.backbone.hidden_dim", "80"), ("model.backbone.gen_intermediate_dim", "32"), ("data.tokens_per_batch", "1024")]


def measure_kept(model, sizes, *, bf16=False, recompute=False, device="cuda"):
    """Returns the bytes that the forward pass of one process keeps; see `measure_step`. "cpu" is for comparing with what runs here."""
    run = MeasuredRun(model, sizes, bf16=bf16, sharded=False, num_layers=len(model.backbone.layers))
    with run.staged("cuda"):
        encoder = run.encoder().total
    with run.staged(device):
        return run.kept(device, recompute=recompute).total + encoder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def read(config: Path, *overrides: tuple[str, str]) -> Spec:
    return resolve(load_spec([config], overrides))


def on_meta(spec: Spec) -> Any:
    with torch.device("meta"):
        return build_model(spec.model, vocab_size=spec.model.tokenizer.vocab_size)


@pytest.mark.parametrize("overrides", [[], [RECIPE], WIDER, [RECIPE, *WIDER], [RECIPE, ("train.optimizer.rule", "muon")]])
def test_bytes_are_those_of_a_real_run(config: Path, overrides: list[tuple[str, str]]) -> None:
    spec = read(config, *overrides)
    found, sizes = real_step(spec, ALONE)
    model = on_meta(spec)
    state = optimizer_state(model, spec.train.optimizer)
    resident = resident_bytes(model, state, shard=1, ema=True)
    assert vars(resident) == {name: found[name] for name in ("weights", "gradients", "optimizer", "ema")}
    kept = measure_kept(model, sizes, device="cpu")
    assert kept == pytest.approx(found["saved"], rel=0.1)
    assert kept == pytest.approx(found["alive"], rel=0.02)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("recompute", "precision"), [(True, "fp32"), (False, "bf16"), (True, "bf16")])
def test_activations_are_those_of_a_real_run_that_recomputes_or_rounds(config: Path, recompute: bool, precision: str) -> None:
    """Layers that recompute also hold the plan of attention, whose indices weigh something beside tokens as narrow as here."""
    given = [("train.activation_checkpointing", str(recompute).lower()), ("train.precision", precision)]
    spec = read(config, RECIPE, *WIDER, *given)
    found, sizes = real_step(spec, ALONE)
    kept = measure_kept(on_meta(spec), sizes, bf16=precision == "bf16", recompute=recompute, device="cpu")
    assert kept == pytest.approx(found["alive"], rel=0.1 if recompute else 0.02)


def test_layers_that_are_not_run_are_like_those_that_are(config: Path) -> None:
    """Of 5 layers that are alike 3 run; where one of them is frozen they differ, and all run. Nothing may depend on that."""
    spec = read(config, RECIPE)
    model = on_meta(spec)
    sizes = typical_batch(model, spec.model, spec.data, seconds=0.4)
    few = measure_kept(model, sizes)
    assert len(model.backbone.blocks) == 5
    model.backbone.blocks[4].register_module("mark", nn.Identity())
    assert measure_kept(model, sizes) == pytest.approx(few, rel=0.002)


def test_a_step_takes_more_with_more_tokens_and_less_when_layers_recompute(config: Path) -> None:
    spec = read(config, RECIPE)
    model = on_meta(spec)
    budgets = [read(config, ("data.tokens_per_batch", n)).data for n in ("512", "1024")]
    small, large = (typical_batch(model, spec.model, data, seconds=0.4) for data in budgets)
    kept = [measure_kept(model, sizes, bf16=True) for sizes in (small, large)]
    again = measure_step(model, large, bf16=True, sharded=False, recompute=True)
    assert kept[1] / kept[0] == pytest.approx(large.num_tokens / small.num_tokens, rel=0.15)
    layer = kept[1] / 5
    assert again.kept < kept[1] / 3 and layer / 2 < again.passing < 3 * layer


def test_a_codec_that_looks_at_values_takes_what_it_takes_of_tones(config: Path) -> None:
    harmonic = "{class_path: harmonic, init_args: {sample_rate: 8000, frame_size: 128, pitch_range: [125.0, 1000.0]}}"
    spec = read(config, ("model.codec", harmonic))
    model, real = on_meta(spec), build_model(spec.model, vocab_size=spec.model.tokenizer.vocab_size)
    sizes = typical_batch(model, spec.model, spec.data, seconds=0.4)
    count, num_samples = len(sizes.clips["latent"].samples), max(sizes.clips["latent"].samples)
    time = torch.arange(num_samples) / 8000
    tones = torch.stack([torch.sin(6.2832 * (200 + 50 * i) * time) for i in range(count)])[:, None]
    lengths = torch.full((count,), num_samples)
    with LiveMemory([*real.made().codec.parameters(), *real.made().codec.buffers(), tones, lengths]) as live:
        encode_clips(real.made().codec, tones, lengths)
    found = measure_step(model, sizes, bf16=False, sharded=False, recompute=False)
    assert found.encoding == pytest.approx(live.peak, rel=0.1)


@pytest.mark.long
def test_two_processes_hold_what_is_said_of_two_gpus(config: Path, tmp_path: Path) -> None:
    config.write_text(TEXT.replace("tokenizer:", "freeze: [und, embedding, encoder]\n  tokenizer:").replace("420", "421"))
    run_in_two_processes(WORKER, str(config), str(tmp_path), timeout=120)
    found = json.loads((tmp_path / "0.json").read_text())
    footprint = examined(read(config), gpus=2).footprint
    assert {name: getattr(footprint, name) for name in found} == found
    assert footprint.gathered > 0
    last = json.loads((tmp_path / "1.json").read_text())
    assert all(last[name] <= found[name] for name in found)


def examined(spec: Spec, *, gpus: int = 1, gpu_memory: int = 1 << 40) -> Diagnosis:
    return diagnose(spec, gpus=gpus, gpu_memory=gpu_memory, seconds=0.4)


def test_the_change_that_is_named_makes_it_fit(config: Path) -> None:
    spec = read(config, RECIPE, ("train.precision", "bf16"))
    whole = examined(spec)
    assert whole.fits and whole.change is None
    found = examined(spec, gpu_memory=whole.footprint.total - 100_000)
    assert not found.fits and found.change == Setting(1, True, 512)
    assert found.changed is not None and found.changed.total < whole.footprint.total


def test_adapters_are_what_is_trained_where_a_run_has_them(config: Path) -> None:
    found = examined(read(config, RECIPE, ("train.lora", "{rank: 4, streams: [gen]}")))
    trained = {part.name: part.trained for part in found.parts}
    assert trained["expert und"] == 0 and 0 < trained["expert gen"] < 20_000
    assert found.footprint.gradients == 4 * sum(trained.values()) and found.complete


def test_a_frozen_teacher_adds_its_weights_but_no_codec(config: Path) -> None:
    plain, taught = (examined(read(config, RECIPE, *more)) for more in ((), (("train.teacher", "{}"),)))
    parameters = sum(part.parameters for part in plain.parts if part.name != "codec")
    assert taught.footprint.weights - plain.footprint.weights == 4 * parameters
    assert all(getattr(taught.footprint, name) == getattr(plain.footprint, name) for name in ("gradients", "optimizer", "ema"))
    assert "the weights include the model's and its frozen teacher's" in taught.notes


def closed_form(setting: Setting) -> int:
    """1000 that GPUs share, 10 on each, and one for a token, or for ten tokens when layers recompute."""
    return 1000 // setting.gpus + 10 + setting.tokens // (10 if setting.recompute else 1)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (9010, Setting(1, True, 8192)),
        (1829, Setting(1, True, 8192)),
        (1828, Setting(2, True, 8192)),
        (831, Setting(334, True, 8192)),
        (800, None),
        (400, None),
        (100, None),
    ],
)
def test_the_first_change_that_fits_is_found(memory: int, expected: Setting | None) -> None:
    counts = range(2, 513)
    found = first_change(closed_form, Setting(1, False, 8192), memory, counts=counts, least=256)
    if expected is not None:
        assert found == expected
    elif memory > 10 + 1024 // 10:
        assert found is not None and found.tokens < 8192 and found.recompute and closed_form(found) <= memory
        assert closed_form(Setting(found.gpus, True, found.tokens + 1024)) > memory
    else:
        assert found is None
    assert first_change(closed_form, Setting(1, False, 8192), 1000, counts=[], least=256) is None


def test_gpus_alone_are_enough_where_what_is_shared_is_too_large() -> None:
    assert first_change(closed_form, Setting(2, False, 64), 90, counts=range(3, 100), least=64) == Setting(59, False, 64)


def test_what_an_optimizer_keeps_is_measured_or_unknown(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_meta(read(config))
    adamw = optimizer_state(model, OptimizerSpec())
    assert set(adamw.per_element.values()) == {8} and set(adamw.fixed.values()) == {4}
    muon = optimizer_state(model, OptimizerSpec(rule=Slot("muon")))
    assert muon.per_element["backbone.blocks.0.experts.und.qkv.weight"] == 4
    assert muon.per_element["backbone.embedding.weight"] == 8

    class Rows:
        """Keeps a number for each row and column, from which nothing follows where both grow."""

        def build(self, parameters: dict[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
            return torch.optim.Adafactor(parameters.values(), lr=settings.lr)

    class Halves:
        """Keeps a moment in half precision for parameters that are large."""

        def build(self, parameters: dict[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
            made = torch.optim.SGD(parameters.values(), lr=settings.lr)
            for p in parameters.values():
                made.state[p]["moment"] = torch.zeros_like(p, dtype=torch.float16 if p.numel() > FEW else torch.float32)
            return made

    for rule, reason in ((Rows(), "it keeps a tensor"), (Halves(), "it keeps others for larger parameters")):
        monkeypatch.setattr("soundomni.core.spec.registry.build", lambda *_, made=rule, **__: made)
        assert reason in str(optimizer_state(nn.Linear(512, 512, device="meta"), OptimizerSpec()).unknown)


def test_codes_of_8_bits_weigh_what_a_real_optimizer_keeps() -> None:
    """The tables of codes are as large for every parameter, the scales have a number for each block, and what is small stays float32."""
    settings = OptimizerSpec(rule=Slot("adamw-8bit"))
    real = nn.Linear(1000, 601)
    optimizer = registry.build("optimizer", settings.rule).build(dict(real.named_parameters()), settings)
    for parameter in real.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = {name: sum(t.nbytes for t in optimizer.state[p].values()) for name, p in real.named_parameters()}
    found = optimizer_state(nn.Linear(1000, 601, device="meta"), settings)
    assert found.unknown is None
    assert found.per_element["weight"] == pytest.approx(kept["weight"] / real.weight.numel(), rel=0.01)
    assert found.per_element["weight"] * real.weight.numel() + found.fixed["weight"] == pytest.approx(kept["weight"], rel=0.01)
    assert found.per_element["bias"] * 601 + found.fixed["bias"] == kept["bias"] == 8 * 601 + 4
    assert found.fixed["weight"] == 2 * 1024 + 4


def test_only_numbers_of_gpus_that_share_the_batches_are_named(config: Path) -> None:
    def read_with(batches_per_step: int) -> Spec:
        given = {"train.batches_per_step": str(batches_per_step), "train.activation_checkpointing": "true", "data.tokens_per_batch": "128"}
        return read(config, *given.items())

    memory = examined(read_with(12), gpus=5).footprint.total
    shared = examined(read_with(12), gpus=4, gpu_memory=memory)
    assert not shared.fits and shared.change == Setting(6, True, 128)
    none = examined(read_with(4), gpus=4, gpu_memory=memory)
    assert not none.fits and none.change is None
    assert "it would fit on 5 GPUs with train.batches_per_step=5" in none.notes


def test_every_parameter_is_in_one_part(config: Path) -> None:
    model = on_meta(read(config, RECIPE))
    parts = {part.name: part for part in list_parts(model)}
    assert sum(part.parameters for part in parts.values()) == sum(p.numel() for p in model.parameters())
    assert sum(part.trained for part in parts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parts["embedding and head"].parameters == 2 * 420 * 48
    assert parts["expert und"].trained == 0 and parts["expert gen"].trained == parts["expert gen"].parameters


def test_rows_are_shared_out_rounded_up() -> None:
    assert [shard_numel(torch.empty(5, 3), shard) for shard in (1, 2, 4, 8)] == [15, 9, 6, 3]


def test_live_memory_counts_storages_once_and_forgets_them() -> None:
    known = torch.zeros(8)
    with LiveMemory([known]) as live:
        a = torch.zeros(100)
        view = a[:50]
        known.add_(1)
        assert live.current == 400
        del a
        assert live.current == 400
        del view
        assert (live.current, live.peak) == (0, 400)


def test_a_batch_holds_the_tasks_in_their_shares_and_no_sample_that_is_too_long(config: Path) -> None:
    spec = read(config, ("data.tokens_per_batch", "4096"), ("data.datasets.toys.tasks", "{generate: 2, describe: 1}"))
    model = on_meta(spec)
    sizes = typical_batch(model, spec.model, spec.data, seconds=0.4, text_tokens=9)
    made, heard = sizes.samples["toys/generate"], sizes.samples["toys/describe"]
    assert abs(made - 2 * heard) <= 2 and 3900 < sizes.num_tokens <= 4096
    assert sizes.num_labels == heard * 10
    assert sizes.clips["latent"].frames == (100,) * made and sizes.clips["latent"].samples == (3200,) * made
    short = read(config, ("data.max_tokens_per_sample", "64"))
    assert typical_batch(model, short.model, short.data, seconds=60.0).seconds < 2
    places = read(config, ("model.connectors.latent", "fourier"))
    few = on_meta(places)
    longest = typical_batch(few, places.model, places.data, seconds=60.0)
    assert max(longest.clips["latent"].frames) == few.made().connector.max_frames
    none = read(config, ("data.max_tokens_per_sample", "12"))
    with pytest.raises(SpecError, match="no sample of task 'generate' fits into 12 tokens"):
        typical_batch(model, none.model, none.data)
