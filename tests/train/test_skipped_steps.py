"""Steps that are not finite: skipped on the device as on the host, counted exactly, and told of when the loop reads them."""

import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_training import TinyLoader, TinyRun, alone, make_batch, settings
from torch import nn

from soundomni.core.errors import SoundOmniError
from soundomni.core.spec.schema import OptimizerSpec, Slot, ValidationSpec
from soundomni.train import loop
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.ema import EMA
from soundomni.train.loop import Hooks
from soundomni.train.optimizers.muon import Muon
from soundomni.train.optimizers.skipping import skips_on_device, step_unless

RULES = {rule: OptimizerSpec(rule=Slot(rule), lr=0.01, eps=1e-8, weight_decay=0.1) for rule in ("adamw", "muon")}
POISONED = (0, 8, 9, 21, 33)
"""Batches of steps 1, 3, 6 and 9; of the third, two."""


def a_run(rule: str = "adamw", *, on_device: bool = True, resume: Path | None = None, poisoned: tuple[int, ...] = POISONED, **changes):  # type: ignore[no-untyped-def]
    run = TinyRun(alone(), settings(optimizer=RULES[rule], **changes), resume=resume, poisoned=poisoned)
    assert skips_on_device(run.state.optimizer)
    if not on_device:
        run.state.optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return run


def same(first: TinyRun, second: TinyRun) -> bool:
    found, expected = first.tensors(), second.tensors()
    return found.keys() == expected.keys() and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("rule", RULES)
def test_skipping_on_the_device_is_skipping_on_the_host(rule: str) -> None:
    device, late, host = a_run(rule), a_run(rule, log_every=7), a_run(rule, on_device=False)
    for run in (device, late, host):
        run.run(20)
        assert run.state.progress.skipped_steps == 4
        assert run.state.ema is not None and run.state.ema.updates == 16
    assert same(device, host) and same(late, host)
    assert repr(device.losses) == repr(host.losses), "some are NaN, which is not equal to itself"
    assert late.losses == [host.losses[step - 1] for step in (7, 14, 20)]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_is_saved_after_a_skipped_step_resumes_with_the_same_bits(rule: str, tmp_path: Path) -> None:
    run, checkpointer = a_run(rule, log_every=100), Checkpointer(tmp_path, alone(), keep=1)
    run.run(3, checkpointer=checkpointer)
    checkpointer.wait()
    run.run(20)
    again = a_run(rule, resume=find_latest(tmp_path), log_every=100)
    assert (again.state.progress.skipped_steps, again.state.progress.skipped_in_a_row) == (2, 1)
    assert again.state.ema is not None and again.state.ema.updates == 1
    again.run(20)
    assert same(run, again)


def test_skipped_steps_are_named_when_they_are_read(caplog: pytest.LogCaptureFixture) -> None:
    run, told = a_run(log_every=5), []
    hooks = Hooks(log=lambda step, metrics: told.append((step, metrics["skipped_steps"], caplog.text.count("was skipped"))))
    with caplog.at_level(logging.WARNING, "soundomni"):
        run.run(20, hooks=hooks)
    assert told == [(5, 2, 2), (10, 4, 4), (15, 4, 4), (20, 4, 4)]
    assert [record.args[0] for record in caplog.records] == [1, 3, 6, 9]  # type: ignore[index]
    assert "gradient norm nan" in caplog.records[0].getMessage()


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize(
    ("changes", "stop"), [({"save_every": 3}, 0), ({"keep_every": 3}, 0), ({"validation": ValidationSpec(every=3)}, 3), ({}, 3)]
)
def test_what_is_saved_has_counted_every_skipped_step(changes: dict[str, object], stop: int, on_device: bool) -> None:
    run, saved = a_run(on_device=on_device, log_every=100, **changes), []
    hooks = Hooks(
        save=lambda progress: saved.append((progress.step, progress.skipped_steps, progress.skipped_in_a_row)),
        should_stop=lambda: run.state.progress.step == stop,
    )
    run.run(20, hooks=hooks)
    assert saved[0] == (3, 2, 1)
    assert saved[1:3] == ([] if stop else [(6, 3, 1), (9, 4, 1)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("log_every", "save_every", "told_at"), [(1, 0, 12), (8, 0, 16), (100, 13, 13), (100, 0, 15)])
def test_ten_in_a_row_stop_the_run_at_the_next_read_and_harm_nothing(
    rule: str, log_every: int, save_every: int, told_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a line or a checkpoint, what is read is full at some step, here 15."""
    monkeypatch.setattr(loop, "MAX_UNREAD", 15)
    run, saved = a_run(rule, poisoned=tuple(range(8, 100)), log_every=log_every, save_every=save_every), []
    whole = a_run(rule, poisoned=())
    whole.run(2)
    with pytest.raises(SoundOmniError, match=r"10 steps in a row were not finite, the last at step 12 \(.*gradient norm nan\)"):
        run.run(20, hooks=Hooks(save=saved.append))
    assert run.state.progress.step == told_at and not saved
    assert same(run, whole)


def test_a_loader_that_ends_early_leaves_nothing_unread() -> None:
    run = a_run(log_every=100)
    steps = islice(TinyLoader(poisoned=POISONED), 3)
    progress = run.state.progress
    loop.fit(
        run.state.model,
        steps,
        train=run.train,
        optimizer=run.state.optimizer,
        ema=None,
        world=alone(),
        progress=progress,
        hooks=Hooks(),
    )
    assert (progress.step, progress.skipped_steps) == (3, 2)


def test_what_the_optimizer_reads_is_there_in_a_step_only() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer, seen = torch.optim.AdamW([weight], fused=True), []
    optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.found_inf))
    weight.grad, skipped = torch.ones(3), torch.tensor(1.0)
    step_unless(skipped, optimizer)
    assert seen == [skipped] and not hasattr(optimizer, "found_inf")
    assert torch.equal(weight, torch.ones(3))


def test_muon_divides_by_the_scale_of_gradients() -> None:
    found = []
    for scale in (None, 8.0):
        weight = nn.Parameter(make_batch(1).inputs.new_tensor([[1.0, 2.0], [0.5, -1.0]]))
        optimizer = Muon(matrices=["*"]).build({"weight": weight}, RULES["muon"])
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
        for step in range(3):
            weight.grad = torch.tensor([[0.25, step], [1.0, 0.5]]) * (scale or 1.0)
            optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]["momentum_buffer"]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_skipped_step_moves_no_average_and_no_warm_up() -> None:
    """The bits are those of an update whose weight the host knows."""
    model = nn.Linear(7, 5)
    ema, expected, updates = EMA(model, decay=0.999), {n: p.detach().clone() for n, p in model.named_parameters()}, 0
    for step in range(20):
        skipped = step % 3 == 1
        if not skipped:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape))
            weight = 1.0 - min(0.999, (1 + updates) / (10 + updates))
            expected = {name: expected[name].lerp(p.detach(), weight) for name, p in model.named_parameters()}
            updates += 1
        ema.update(model, skipped=torch.tensor(float(skipped)))
    assert ema.updates == updates
    assert all(torch.equal(average, expected[name]) for name, average in ema.averages.items())
