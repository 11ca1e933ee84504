"""Computation on tensors that have sizes but no values, so that what a step needs can be added up without its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


@contextmanager
def without_values() -> Iterator[None]:
    """Make tensors without values inside this context."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Unpinned():
        yield


class _Unpinned(TorchFunctionMode):
    """Pins nothing, which tensors without values cannot, and which needs no memory of the GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.pin_memory else func(*args, **(kwargs or {}))
