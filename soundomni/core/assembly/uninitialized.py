"""Building a network whose weights are about to be loaded, without the time and memory of drawing initial ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWS = frozenset(
    ("add_", "bernoulli_", "clamp_", "copy_", "erfinv_", "exponential_", "fill_", "log_normal_", "mul_", "normal_", "uniform_", "zero_")
)
"""Names of the in-place operations that initializers consist of."""
_INITIALIZERS = nn.init.__name__


class uninitialized(TorchFunctionMode):
    """Within this context, parameters keep whatever was in their memory: operations that would fill them in place do
    nothing.

    The system does not yet provide memory that nothing has written to, so a network costs its size only once, when it
    is loaded. Only use this if every parameter is then loaded. Buffers are computed as usual.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pass on every operation except those that fill a parameter."""
        given = kwargs or {}
        target = args[0] if args else given.get("tensor")
        if isinstance(target, nn.Parameter) and (
            getattr(func, "__module__", "") == _INITIALIZERS or getattr(func, "__name__", "") in DRAWS
        ):
            return target
        return func(*args, **given)


class _Imports(MetaPathFinder):
    """Runs newly imported modules with the CPU as the default device."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return what the other finders find, with a loader that ignores the default device; None if they find nothing."""
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader.exec_module = partial(_executed, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _executed(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    with torch.device("cpu"):
        execute(module)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on torch's meta device within this context: they have names, shapes and dtypes, but no values and
    no memory.

    Nothing is drawn either: drawing on the meta device takes no memory but much time: it imports torch's compiler. Modules that
    constructors import get real tensors.
    """
    with torch.device("meta"), uninitialized():  # torch.device itself imports a module, before the finder is there
        imports = _Imports()
        sys.meta_path.insert(0, imports)
        try:
            yield
        finally:
            sys.meta_path.remove(imports)
