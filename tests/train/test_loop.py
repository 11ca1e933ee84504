"""The loop on one process: exact weighing, clipping, skipping, averaging, recomputation."""

import dataclasses
import logging
import math
from collections.abc import Mapping

import pytest
import torch
from tiny_training import TinyBatch, TinyModel, TinyRun, alone, make_batch, settings
from torch import nn

from soundomni.core.errors import SoundOmniError, SpecError
from soundomni.core.spec.schema import OptimizerSpec, ScheduleSpec, ValidationSpec
from soundomni.train.ema import EMA
from soundomni.train.gradient_clipping import clip_gradients
from soundomni.train.loop import Hooks
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.parallel import parallelize
from soundomni.train.step import train_step
from soundomni.train.trainable import as_trainable


def closed_form_loss(model: TinyModel, batches: list[TinyBatch], weight: float) -> torch.Tensor:
    """The loss of a step in float64, written without micro-batches: means over all elements; "size" averaged over batches."""
    terms = [model(batch) for batch in batches]
    everything = TinyBatch(torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches]))
    joint = model(everything)
    size = sum(term["size"][0] / term["size"][1] for term in terms) / len(terms)
    return joint["mse"][0] / joint["mse"][1] + weight * joint["positive"][0] / joint["positive"][1] + size


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    batches = [make_batch(i) for i in range(7)]
    assert {len(b.inputs) for b in batches} >= {0, 1}, "the batches must differ in size, and one must be empty"
    model, reference = TinyModel(), TinyModel().double()
    train = settings(optimizer=OptimizerSpec(lr=0.0, clip=0.0), loss_weights={"positive": 0.5})
    optimizer = build_optimizer(model, train.optimizer)
    gradients: dict[str, torch.Tensor] = {}
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    result = train_step(model, batches, train=train, optimizer=optimizer, world=alone())
    exact = [TinyBatch(b.inputs.double(), b.targets.double()) for b in batches]
    expected = closed_form_loss(reference, exact, 0.5)
    expected.backward()
    assert result.read(train).loss == pytest.approx(expected.item(), rel=1e-5)
    wanted = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-4, atol=1e-6)


def test_training_learns() -> None:
    run = TinyRun(alone(), settings(steps=150, optimizer=OptimizerSpec(lr=1e-2), schedule=ScheduleSpec(warmup_steps=3)))
    assert run.run(150)
    assert sum(run.losses[-30:]) < 0.7 * sum(run.losses[:30])


def test_frozen_parameters_do_not_move_and_biases_do_not_decay() -> None:
    run = TinyRun(alone(), settings())
    before = run.tensors()
    run.run(3)
    after = run.tensors()
    for name in ("model/codec.weight", "model/frozen.weight", "model/layers.0.norm.weight"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["model/enter.weight"], after["model/enter.weight"])
    decays = {p.ndim: g["weight_decay"] for g in run.state.optimizer.param_groups for p in g["params"]}
    assert decays == {1: 0.0, 2: 0.1}


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(SpecError, match="every parameter is frozen"):
        build_optimizer(TinyModel().requires_grad_(False), OptimizerSpec())


def test_clipping_is_by_the_global_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert clip_gradients(parameters, 0.0).item() == pytest.approx(5.0)
    assert parameters[0].grad[0] == 3.0
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    assert parameters[0].grad[0].item() == pytest.approx(0.6, rel=1e-4)
    assert parameters[1].grad[0, 1].item() == pytest.approx(0.8, rel=1e-4)


def test_a_step_that_is_not_finite_is_skipped_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    run = TinyRun(alone(), settings(), poisoned=(8,))
    run.run(2)
    before = run.tensors()
    with caplog.at_level(logging.WARNING, "soundomni"):
        run.run(3)
    for name, tensor in run.tensors().items():
        assert torch.equal(tensor, before[name]), f"{name} moved"
    assert (run.state.progress.step, run.state.progress.skipped_steps) == (3, 1)
    assert "step 3 was skipped" in caplog.text
    run.run(5)
    assert run.state.progress.skipped_in_a_row == 0
    assert all(math.isfinite(loss) for loss in run.losses[3:])


def test_ten_in_a_row_stop_the_run() -> None:
    run = TinyRun(alone(), settings(), poisoned=tuple(range(8, 100)))
    with pytest.raises(SoundOmniError, match="10 steps in a row were not finite, the last at step 12"):
        run.run(20)


def test_average_is_its_closed_form() -> None:
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.5)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for n in range(12):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape))
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * p.detach().double() for name, p in model.named_parameters()}
    for name, average in ema.averages.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_averages_are_swapped_in_and_out_even_after_an_error() -> None:
    run = TinyRun(alone(), settings())
    run.run(5)
    model, ema = run.state.model, run.state.ema
    assert ema is not None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    averages = {name: average.clone() for name, average in ema.averages.items()}
    assert "frozen.weight" not in averages
    with pytest.raises(RuntimeError, match="inside"), ema.swapped(model):
        for name, average in averages.items():
            assert torch.equal(model.get_parameter(name), average)
        raise RuntimeError("inside")
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    for name, average in ema.averages.items():
        assert torch.equal(average, averages[name])


def test_recomputation_changes_no_gradient() -> None:
    runs = [TinyRun(alone(), settings(activation_checkpointing=flag)) for flag in (False, True)]
    for run in runs:
        run.run(5)
    assert runs[0].losses == runs[1].losses
    for name, tensor in runs[0].tensors().items():
        assert torch.equal(tensor, runs[1].tensors()[name])


def test_recomputation_runs_the_layers_again() -> None:
    model = TinyModel()
    calls: list[int] = []
    for unit in model.units:
        unit.linear.register_forward_hook(lambda *_: calls.append(1))
    parallelize(model, alone(), settings(activation_checkpointing=True))
    model(make_batch(0))["mse"][0].backward()
    assert len(calls) == 2 * len(model.units)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights() -> None:
    run = TinyRun(alone(), settings(precision="bf16"))
    seen: set[torch.dtype] = set()
    run.state.model.enter.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    run.run(3)
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in run.state.model.parameters())
    exact = TinyRun(alone(), settings())
    exact.run(3)
    assert run.losses == pytest.approx(exact.losses, rel=0.05)


def test_hooks_are_called_at_their_steps() -> None:
    train = settings(steps=7, log_every=3, save_every=2, validation=ValidationSpec(every=5))
    run = TinyRun(alone(), train)
    calls: dict[str, list[int]] = {"log": [], "validate": [], "save": []}
    rows: list[Mapping[str, float]] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        calls["log"].append(step)
        rows.append(metrics)

    hooks = Hooks(log=log, validate=calls["validate"].append, save=lambda progress: calls["save"].append(progress.step))
    assert run.run(7, hooks=hooks)
    assert calls == {"log": [3, 6, 7], "validate": [5], "save": [2, 4, 6, 7]}
    assert {"loss", "loss/mse", "loss/positive", "loss/size", "lr", "grad_norm", "tokens", "tokens_per_second", "skipped_steps"} <= set(
        rows[0]
    )
    batches = [make_batch(i) for i in range(28)]
    assert rows[-1]["tokens"] == sum(len(batch.inputs) for batch in batches)


def test_saving_comes_before_validating_and_stopping_skips_it() -> None:
    run = TinyRun(alone(), settings(steps=7, save_every=2, validation=ValidationSpec(every=2)))
    calls: list[str] = []
    hooks = Hooks(
        save=lambda progress: calls.append(f"save {progress.step}"),
        validate=lambda step: calls.append(f"validate {step}"),
        should_stop=lambda: run.state.progress.step == 4,
    )
    assert not run.run(7, hooks=hooks)
    assert calls == ["save 2", "validate 2", "save 4"]


def test_a_request_to_stop_saves_and_returns_false() -> None:
    run = TinyRun(alone(), settings())
    saved: list[int] = []
    hooks = Hooks(save=lambda progress: saved.append(progress.step), should_stop=lambda: run.state.progress.step == 4)
    assert not run.run(20, hooks=hooks)
    assert saved == [4]


def test_a_finished_run_does_nothing_more() -> None:
    run = TinyRun(alone(), dataclasses.replace(settings(), steps=2))
    assert run.run(20)
    before = run.tensors()
    assert run.run(20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.tensors().items())


def test_what_cannot_be_trained_says_what_it_lacks() -> None:
    with pytest.raises(TypeError, match="Linear cannot be trained: it does not have units, count_terms"):
        as_trainable(nn.Linear(1, 1))
