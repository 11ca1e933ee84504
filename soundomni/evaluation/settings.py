"""What is measured, and how the model is run for it. Importing this module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.limits import MOST_STEPS, check_scale

TASKS = ("generate", "describe", "answer", "reconstruct", "continue", "vary")
"""Tasks that can be measured."""
COMMON_TASKS = TASKS[:4]
"""Tasks that are measured on a dataset by default. Editing makes four more clips for each clip."""

DEFAULT_LIST = "new-combinations"
"""The fixed list that a model is measured on by default."""
DATASET_LIMIT = 100
"""How many clips of a dataset are measured by default."""
DEFAULT_BATCH_SIZE = 16
REFERENCE_LIMIT = 10_000
"""How many clips of a reference generated clips are compared with."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is run.

    Args:
        limit: measure on the first `limit` clips; None for all of them.
        seed: seed of the first generated clip; later clips use seed + 1, seed + 2, …
        batch_size: clips that the model takes at once.
        num_steps: sampling steps; None for the model's own number.
        guidance_scale: None for the model's own.
        of: the modality that is generated, continued, varied and reconstructed; None stands for the model's first one.
        tasks: some of TASKS.

    Raises:
        SpecError: a number is out of its range, there are no tasks, or one is unknown.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = DEFAULT_BATCH_SIZE
    num_steps: int | None = None
    guidance_scale: float | None = None
    of: str | None = None
    tasks: Sequence[str] = COMMON_TASKS

    def __post_init__(self) -> None:
        from soundomni.core.inference.inputs import as_count, as_number, as_seed  # here, as it imports numpy

        as_seed(self.seed)
        as_count("batch_size", self.batch_size)
        if self.limit is not None:
            as_count("limit", self.limit)
        if self.num_steps is not None:
            as_count("num_steps", self.num_steps, most=MOST_STEPS)
        if self.guidance_scale is not None:
            check_scale(as_number("guidance_scale", self.guidance_scale))
        check_tasks("tasks", self.tasks)

    def count(self, clips: int) -> int:
        """Return how many of `clips` clips are measured."""
        return clips if self.limit is None else min(self.limit, clips)


def check_tasks(name: str, tasks: Sequence[str]) -> None:
    """Raise SpecError if `tasks` is empty or has an unknown task; `name` says where the tasks come from."""
    known = ", ".join(TASKS)
    if not isinstance(tasks, (str, Sequence)):
        raise SpecError(f"{name} is {tasks!r} ({type(tasks).__name__}); expected a list of some of {known}")
    if isinstance(tasks, str):
        raise SpecError(f"{name} is the text '{tasks}'; expected a list of some of {known}. Write ['{tasks}']")
    if not tasks:
        raise SpecError(f"{name} is empty; expected some of {known}")
    for task in tasks:
        if task not in TASKS:
            raise SpecError(f"{name} has the unknown task '{task}'; expected some of {known}.{did_you_mean(str(task), TASKS)}")
