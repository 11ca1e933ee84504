"""A bound on the number of parts of a network while it is built: a spec of one line can ask for a billion layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook, register_module_parameter_registration_hook

from soundomni.core.errors import SpecError

MOST_TENSORS = 50_000
"""Parameters of a model, each of any size; a model of 7 billion numbers in two streams has about 800 of them."""
MODULES_PER_TENSOR, MODULES_TO_SPARE = 20, 1000
"""Layers without parameters are counted too."""


@contextmanager
def at_most(tensors: int = MOST_TENSORS, *, reason: str = "", cure: str = "Use fewer layers and experts") -> Iterator[None]:
    """Raise SpecError as soon as the networks that this thread builds within the context have more parameters than `tensors`.

    Args:
        tensors: the most parameters; each counts whenever it is put into a layer.
        reason: why more are not expected, for the error.
        cure: what to do, for the error.
    """
    thread = threading.get_ident()
    counts = {"parameters": 0, "layers": 0}
    limits = {"parameters": tensors, "layers": MODULES_PER_TENSOR * tensors + MODULES_TO_SPARE}

    def count(kind: str) -> None:
        if threading.get_ident() == thread:
            counts[kind] += 1
            if counts[kind] > limits[kind]:
                raise SpecError(f"the spec asks for more than {limits[kind]:,} {kind}{reason}. {cure}")

    def count_parameter(module: nn.Module, name: str, value: Any) -> None:
        if value is not None:
            count("parameters")

    hooks = [
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(lambda module, name, value: count("layers")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
