"""Bytes of tensors that are alive while code runs, found from their storages; also works for tensors without memory.

It does not count what an allocator rounds up or caches, nor memory that a kernel takes and frees again within one
operator.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, counts the storages that operators make, from their creation until the last tensor over them
    is gone.

    Args:
        ignored: tensors whose storages are counted elsewhere; they must outlive the context.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        """Bytes alive now."""
        self.peak = 0
        """Peak of bytes alive at once."""
        self._known = {tensor.untyped_storage()._cdata: None for tensor in ignored}
        self._watched: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._watched:
            return
        self._watched[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.current += size
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int, size: int, _: weakref.ref[Any]) -> None:
        self._watched.pop(key, None)
        self.current -= size
