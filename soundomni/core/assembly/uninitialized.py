"""Building a network whose weights are about to be loaded: no time and no memory goes into drawing initial ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWS = frozenset(
    ("add_", "bernoulli_", "clamp_", "copy_", "erfinv_", "exponential_", "fill_", "log_normal_", "mul_", "normal_", "uniform_", "zero_")
)
"""Names of the operations in place that initialisers consist of."""
_INITIALIZERS = nn.init.__name__


class uninitialized(TorchFunctionMode):
    """Within this context parameters keep whatever was in their memory: what would fill them in place is left out.

    Memory that nothing has written to is not yet taken from the system, so that a network costs its size once, when it is loaded.
    Only for networks of which every parameter is then loaded. Buffers are computed as ever.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Passes on all but what writes to a parameter."""
        given = kwargs or {}
        target = args[0] if args else given.get("tensor")
        if isinstance(target, nn.Parameter) and (
            getattr(func, "__module__", "") == _INITIALIZERS or getattr(func, "__name__", "") in DRAWS
        ):
            return target
        return func(*args, **given)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build what is built within on torch's meta device: it has names, shapes and dtypes, no values and no memory.

    Nothing is drawn either. Drawing on the meta device takes no memory but much time: it imports torch's compiler.
    """
    with torch.device("meta"), uninitialized():
        yield
