"""Keeps executors out of torch.compile without importing the compiler, which takes as long as the rest of torch.

`torch.compiler.disable` would import all of it. Instead, executors are marked, and whoever compiles a model makes the
marks take effect.
"""

from __future__ import annotations

import sys
from typing import TypeVar

import torch

Executor = TypeVar("Executor", bound=type)

_marked: list[type] = []


def uncompiled(executor: Executor) -> Executor:
    """Mark a class whose calls must not be compiled, because they depend on numbers that differ in every batch."""
    _marked.append(executor)
    if "torch._dynamo" in sys.modules:
        exempt_executors()
    return executor


def exempt_executors() -> None:
    """Make the compiler skip all marked classes.

    Call this before a model is compiled; calling it again does no harm.
    """
    while _marked:
        executor = _marked.pop()
        executor.__call__ = torch.compiler.disable(executor.__call__)  # type: ignore[method-assign, no-untyped-call]
