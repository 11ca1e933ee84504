"""The data that a model is measured on: a fixed list or a dataset, opened, and its identity in a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import SpecError
from soundomni.core.spec.schema import Slot
from soundomni.evaluation.fixed_lists import FixedList, open_list
from soundomni.evaluation.observer import SILENT, Observer
from soundomni.evaluation.settings import COMMON_TASKS, DATASET_LIMIT, check_tasks

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The clips to measure a model on.

    Args:
        dataset: the clips.
        slot: the plugin and arguments that `dataset` was built from; None for a dataset that was built in Python.
        fixed: the fixed list that the clips come from, if any.
    """

    dataset: Dataset
    slot: Slot | None = None
    fixed: FixedList | None = None

    @property
    def default_limit(self) -> int | None:
        """Number of clips that are measured without a limit; None for all."""
        return DATASET_LIMIT if self.fixed is None else None

    @property
    def plugin(self) -> Slot:
        """Slot of the dataset's plugin; for a dataset built in Python, its class by import path without arguments."""
        if self.slot is not None:
            return self.slot
        kind = type(self.dataset)
        return Slot(f"{kind.__module__}.{kind.__qualname__}")

    def choose_tasks(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        """Return the tasks to measure: those asked for, or those of the list, or the common ones.

        Raise SpecError if a task is unknown, or not one of the list's.
        """
        if asked is not None:
            check_tasks("tasks", asked)
        if self.fixed is None:
            return tuple(COMMON_TASKS if asked is None else asked)
        missing = [task for task in asked or () if task not in self.fixed.tasks]
        if missing:
            known = ", ".join(self.fixed.tasks)
            raise SpecError(f"the list '{self.fixed.name}' does not measure {', '.join(missing)}; expected some of {known}")
        return self.fixed.tasks if asked is None else tuple(asked)

    def identity(self) -> dict[str, Any]:
        """Return plain data that identifies the list or dataset."""
        listed = {} if self.fixed is None else {"list": self.fixed.name, "sha256": self.fixed.sha256}
        known = asdict(self.plugin) if self.slot is not None else {"class_path": self.plugin.class_path, "init_args": None}
        return {**listed, "dataset": known}


def open_data(data: str | Path | Slot | Dataset, *, trust_class_paths: bool = False, observer: Observer = SILENT) -> EvaluationData:
    """Open the data that a model is measured on.

    Args:
        data: the name of a fixed list or a path to its file, the slot of a dataset, or a dataset.
        trust_class_paths: let a list or slot name its dataset by import path.
        observer: receives how many clips of a list have been checked.

    Raises:
        SpecError: there is no such list, its clips changed, or the arguments of the dataset are wrong.
        PluginError: there is no dataset plugin of this name.
        DataError: the dataset cannot be read.
    """
    from soundomni.core.inference.inputs import shown
    from soundomni.core.interfaces import Dataset
    from soundomni.core.spec.registry import build

    if isinstance(data, (str, Path)):
        fixed = open_list(data, trust_class_paths=trust_class_paths, observer=observer)
        return EvaluationData(dataset=fixed.dataset, slot=fixed.slot, fixed=fixed)
    if isinstance(data, Slot):
        return EvaluationData(dataset=build("dataset", data, trust_class_paths=trust_class_paths), slot=data)
    if isinstance(data, Dataset):
        return EvaluationData(dataset=data)
    raise SpecError(f"data is {shown(data)}; expected the name of a fixed list, a path, a Slot or a Dataset")
