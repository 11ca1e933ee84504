"""A forward pass of training asks the device for nothing, and a step only if its optimizer cannot skip on the device."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_held_out import held_out
from tiny_training import TinyModel, TinyStep, alone, make_batch, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soundomni.core.spec.schema import OptimizerSpec, Slot
from soundomni.train.ema import EMA
from soundomni.train.loop import Hooks, Progress, fit
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.step import part_means, train_step

aten = torch.ops.aten
WAITS = (aten.nonzero.default, aten.is_nonzero.default, aten.masked_select.default, aten._local_scalar_dense.default)
READS = ("tolist", "numpy", "cpu")


class Waiting(TorchDispatchMode):
    """Notes where the host needs a value or a shape that follows from some tensors: if they were on a GPU, it would wait.

    Args:
        tensors: what would be on the device.
        monkeypatch: lets it note calls of methods that are not operators.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        self._kept = list(tensors)  # so that no other tensor gets their memory
        self._storages = {tensor.untyped_storage()._cdata for tensor in self._kept}
        for name in READS:
            self._note_calls(name, monkeypatch)

    def _note_calls(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        method = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._follows(tensor):
                self.found.append(name)
            return method(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, noted)

    def _follows(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        masks = [index for index in args[1] if index is not None] if func is aten.index.Tensor else []
        follows = any(self._follows(tensor) for tensor in given)
        if follows and (func in WAITS or any(index.dtype in (torch.bool, torch.uint8) for index in masks)):
            self.found.append(str(func))
        out = func(*args, **(kwargs or {}))
        if follows:
            made = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
            made += given if func._schema.is_mutable else []
            self._kept += made
            self._storages |= {tensor.untyped_storage()._cdata for tensor in made}
        return out


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: (2.0 * tensor).tolist(),
        lambda tensor: float(tensor[0]),
        lambda tensor: bool(tensor.sum() > 0),
        lambda tensor: tensor[tensor > 1],
        lambda tensor: tensor.nonzero(),
        lambda tensor: torch.zeros(3).add_(tensor).numpy(),
    ],
)
def test_what_reads_a_tensor_is_noted(read: Callable[[torch.Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, on_host = torch.arange(3.0), torch.arange(3.0)
    with Waiting([on_device], monkeypatch) as waiting:
        read(on_host)
        assert waiting.found == []
        read(on_device)
    assert len(waiting.found) == 1


@pytest.mark.parametrize("drawn", [False, True])
def test_a_forward_pass_waits_for_nothing(drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = held_out(alone(), tmp_path)
    batches = [batch.broken_down() for batch in measure.read(measure.batches[:3])]
    if drawn:
        for batch in batches:
            object.__setattr__(batch.of("latent"), "quantiles", None)
    module = measure.module
    module(batches[0])  # whether the latents were measured is read once
    tensors = [*module.parameters(), *module.buffers(), *(tensor for batch in batches for tensor in tensors_of(batch))]
    with Waiting(tensors, monkeypatch) as waiting:
        for batch in batches:
            module(batch)
    assert waiting.found == []


def test_a_step_of_a_whole_model_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, world = held_out(alone(), tmp_path), alone()
    module, train = measure.module, measure.train
    batches = [batch.broken_down() for batch in measure.read(measure.batches[:3])]
    module(batches[0])
    optimizer = build_optimizer(module, train.optimizer)
    with Waiting([*module.parameters(), *module.buffers()], monkeypatch) as waiting:
        result = train_step(module, batches, train=train, optimizer=optimizer, world=world)
        assert waiting.found == []
        part_means(result, world)
    assert result.parts and waiting.found == ["tolist"]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of a batch, which are moved to the device."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for inner in value.values() for tensor in tensors_of(inner)]
    return [tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name))] if is_dataclass(value) else []


@pytest.mark.parametrize(("rule", "skips", "waits"), [("adamw", True, 0), ("muon", True, 0), ("adamw", False, 1), ("muon", False, 1)])
def test_a_step_waits_only_when_it_is_read(rule: str, skips: bool, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 4, 8 and 10 are logged, and 6 is saved."""
    model = TinyModel()
    train = settings(steps=10, log_every=4, save_every=6, optimizer=OptimizerSpec(rule=Slot(rule)))
    optimizer = build_optimizer(model, train.optimizer)
    if not skips:
        monkeypatch.setattr(optimizer, "_step_supports_amp_scaling", False)
    steps = [TinyStep((make_batch(2 * i), make_batch(2 * i + 1, poisoned=i == 2)), {}, {"tokens": 1.0}) for i in range(10)]
    before: list[int] = []

    def loader() -> Iterator[TinyStep]:
        for step in steps:
            before.append(len(waiting.found))
            yield step

    ema, progress = EMA(model, decay=0.9), Progress()
    with Waiting(model.parameters(), monkeypatch) as waiting:
        fit(model, loader(), train=train, optimizer=optimizer, ema=ema, world=alone(), progress=progress, hooks=Hooks())
    before.append(len(waiting.found))
    found = [after - earlier for earlier, after in pairwise(before)]
    assert found == [waits + (step in (4, 6, 8, 10)) for step in range(1, 11)]
    assert progress.skipped_steps == 1 and ema.updates == 9
