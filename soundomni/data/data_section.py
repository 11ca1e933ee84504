"""Checks of a spec's `data` section that do not need its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from soundomni.core.errors import SpecError
from soundomni.core.limits import LONGEST_SECONDS
from soundomni.core.spec.clips import check_clips
from soundomni.core.spec.schema import DataSpec, DropoutSpec, MixtureEntry
from soundomni.core.writing.tasks import Task, build_tasks, find_task

MOST_TOKENS_PER_BATCH = 1 << 20
"""Largest number of tokens of a packed batch on one process; no accelerator holds more."""
MOST_LOOKAHEAD, MOST_WORKERS, MOST_BALANCE = 1_000_000, 1024, 1000


class Use(Protocol):
    """How a dataset is used: the common fields of `MixtureEntry` and `Source`."""

    @property
    def tasks(self) -> Mapping[str, float]: ...
    @property
    def weight(self) -> float: ...
    @property
    def num_used(self) -> int: ...
    @property
    def held_out(self) -> float: ...
    @property
    def max_seconds(self) -> float | None: ...
    @property
    def balance(self) -> int: ...


def check_data(spec: DataSpec) -> dict[str, Task]:
    """Check the numbers and tasks of a section, and return the tasks that it knows.

    Raises:
        SpecError: a value is out of range or unknown; the message names the dotted key of the first one.
    """
    check_packing(spec)
    check_loading(spec)
    check_dropout(spec.condition_dropout)
    known = build_tasks(spec.tasks)
    for name, entry in spec.datasets.items():
        if entry is not None:
            check_use(name, entry, known)
            _check_clips(f"data.datasets.{name}", entry)
    return known


def used_tasks(spec: DataSpec) -> list[Task]:
    """Return the tasks that any dataset is used for. Raise SpecError for an unknown one."""
    known = build_tasks(spec.tasks)
    used = [name for entry in spec.datasets.values() if entry is not None for name, weight in entry.tasks.items() if weight > 0]
    return [find_task(name, known) for name in dict.fromkeys(used)]


def check_packing(spec: DataSpec) -> None:
    """Raise SpecError unless the budget, the limit and the lookahead fit together."""
    if spec.tokens_per_batch < 1:
        raise SpecError(f"data.tokens_per_batch is {spec.tokens_per_batch}; expected at least 1")
    limit = spec.max_tokens_per_sample if spec.max_tokens_per_sample is not None else spec.tokens_per_batch
    if not 1 <= limit <= spec.tokens_per_batch:
        raise SpecError(f"data.max_tokens_per_sample is {limit}; expected 1 to data.tokens_per_batch, which is {spec.tokens_per_batch}")
    if spec.tokens_per_batch > MOST_TOKENS_PER_BATCH:
        raise SpecError(f"data.tokens_per_batch is {spec.tokens_per_batch}; expected at most {MOST_TOKENS_PER_BATCH:,}")
    if not 1 <= spec.lookahead <= MOST_LOOKAHEAD:
        raise SpecError(f"data.lookahead is {spec.lookahead}; expected 1 to {MOST_LOOKAHEAD:,}")


def check_loading(spec: DataSpec) -> None:
    """Raise SpecError for a number of workers or a limit of skipped items that is out of range."""
    if not 0 <= spec.workers <= MOST_WORKERS:
        raise SpecError(f"data.workers is {spec.workers}; expected 0 to {MOST_WORKERS} threads")
    if not 0.0 <= spec.skip_limit <= 1.0:
        raise SpecError(f"data.skip_limit is {spec.skip_limit}; expected a number from 0 to 1")


def check_dropout(dropout: DropoutSpec) -> None:
    """Raise SpecError for a share that is out of range."""
    shares = {name: getattr(dropout, name) for name in ("text", "latent", "features")}
    shares |= {f"modalities.{name}": share for name, share in dropout.modalities.items()}
    shares |= {f"together.{names}": share for names, share in dropout.together.items()}
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise SpecError(f"data.condition_dropout.{name} is {share}; expected a number from 0 to 1")


def _check_clips(where: str, entry: MixtureEntry) -> None:
    """Raise SpecError if the clips of a dataset cannot be prepared like that, or would then be cut again."""
    check_clips(entry.clips, f"{where}.clips")
    seconds, limit = entry.longest_seconds, entry.max_seconds
    if seconds is not None and limit is not None and limit < seconds:
        raise SpecError(
            f"{where}.max_seconds is {limit:g}, but clips.seconds makes every clip {seconds:g} s long. Set max_seconds to null, or "
            f"clips.seconds to {limit:g}"
        )


def check_use(name: str, use: Use, known: Mapping[str, Task]) -> list[tuple[Task, float]]:
    """Check how the dataset `name` is used, and return its tasks with their weights. Raise SpecError."""
    where = f"data.datasets.{name}"
    if not 0 < use.weight < math.inf:
        raise SpecError(f"{where}.weight is {use.weight}; expected a finite number above 0 (to leave a dataset out, remove it)")
    if use.num_used == 0 or use.num_used < -1:
        raise SpecError(f"{where}.num_used is {use.num_used}; expected a number of items, or -1 for all")
    if not 0 <= use.held_out <= 1:
        raise SpecError(f"{where}.held_out is {use.held_out}; expected a share from 0 to 1")
    if use.max_seconds is not None and not 0 < use.max_seconds <= LONGEST_SECONDS:
        limit = f"{LONGEST_SECONDS:,.0f}"
        raise SpecError(f"{where}.max_seconds is {use.max_seconds}; expected more than 0 and at most {limit}, or null for no limit")
    if not 1 <= use.balance <= MOST_BALANCE:
        raise SpecError(f"{where}.balance is {use.balance}; expected 1, which turns it off, to {MOST_BALANCE:,}")
    if not all(0 <= weight < math.inf for weight in use.tasks.values()) or not 0 < sum(use.tasks.values()) < math.inf:
        raise SpecError(f"{where}.tasks is {dict(use.tasks)}; expected weights of 0 or more that are not all 0")
    try:
        return [(find_task(task, known), weight) for task, weight in use.tasks.items()]
    except SpecError as error:
        raise SpecError(f"{where}.tasks: {error}") from error
