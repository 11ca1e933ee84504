"""How a model is run when it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TASKS = ("generate", "describe", "answer", "reconstruct", "continue", "vary")
"""What can be measured."""
COMMON_TASKS = TASKS[:4]
"""What is measured on a dataset unless more is asked for. Editing takes four clips to make for each clip."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is run: on the first `limit` clips, clip i generated with the seed `seed` + i, `batch` clips at once.

    `steps` and `guidance` of the sampler are the model's own where they are None.
    """

    limit: int
    seed: int
    batch: int
    steps: int | None = None
    guidance: float | None = None
    tasks: Sequence[str] = COMMON_TASKS
