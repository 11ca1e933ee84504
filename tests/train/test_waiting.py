"""A forward pass of training asks the device for nothing: what it needs to know of a batch is on the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_held_out import held_out
from tiny_training import alone
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.masked_select.default)


class Waiting(TorchDispatchMode):
    """Notes operators whose result has a shape or a value that the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("drawn", [False, True])
def test_a_forward_pass_waits_for_nothing(drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = held_out(alone(), tmp_path)
    batches = [batch.broken_down() for batch in measure.read(measure.batches[:3])]
    if drawn:
        for batch in batches:
            object.__setattr__(batch.of("latent"), "quantiles", None)

    def tolist(tensor: torch.Tensor) -> Any:
        raise AssertionError("a tensor was asked for its values")

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    with Waiting() as waiting:
        for batch in batches:
            measure.module(batch)
    assert waiting.found == []
