"""Evaluation lists: fixed sets of clips that a model is measured on, and proof that they have not changed.

A list is a YAML file, shipped in soundomni/lists or the user's own: what it measures (`description`), the `dataset` slot, the `tasks`, and
two SHA-256 sums, of the items (keys, captions, questions, attributes) and of their audio. All of it is checked whenever a list is opened,
so that numbers measured on a list of one name are always numbers on the same clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.folders import looked_for
from soundomni.core.errors import SoundOmniError, SpecError, did_you_mean, message_of
from soundomni.core.spec import yaml_text
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import convert
from soundomni.evaluation.settings import TASKS

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Dataset, Item

AUDIO_STEP = 2.0**-10
"""Samples are rounded to multiples of this before they are summed up: far above what libraries of other versions round differently."""

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ListFile:
    """What a list's file holds; the fields are the keys of the YAML."""

    description: str
    dataset: Slot
    tasks: list[str]
    items_sha256: str | None = None
    audio_sha256: str | None = None


@dataclass(frozen=True)
class EvaluationList:
    """A list that has been checked.

    Args:
        name: of a shipped list, or the path of a file.
        sha256: of the file.
        description: what it measures.
        slot: the dataset as the file names it.
        dataset: the dataset, built.
        tasks: what is measured on it, some of TASKS.
    """

    name: str
    sha256: str
    description: str
    slot: Slot
    dataset: Dataset
    tasks: tuple[str, ...]


def shipped_lists() -> tuple[str, ...]:
    """Returns the names of the lists that come with the library."""
    folder = resources.files("soundomni") / "lists"
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def open_list(name: str, *, trust_class_paths: bool = False) -> EvaluationList:
    """Reads a list, builds its dataset and checks that items and audio are those it was written for.

    Args:
        name: of a shipped list, or a path to a YAML file.
        trust_class_paths: whether the dataset may be named by import path.

    Raises:
        SpecError: there is no such list, its file is damaged, or its items or audio are not those of the sums.
        DataError: its dataset cannot be read.
    """
    from soundomni.cli.progress import tracked
    from soundomni.core.spec.discovery import OWN
    from soundomni.core.spec.provenance import settled_name
    from soundomni.core.spec.registry import build

    text = _read(name)
    given = _parse(name, text)
    if not Path(name).is_file():
        given = replace(given, dataset=Slot(settled_name("dataset", given.dataset.class_path, OWN), given.dataset.init_args))
    try:
        dataset = build("dataset", given.dataset, trust_class_paths=trust_class_paths)
        count = len(dataset)
        clips = tracked(map(dataset.load, range(count)), f"checking the list {name}", total=count)
        sums = {"items_sha256": items_sha256(map(dataset.item, range(count))), "audio_sha256": audio_sha256(clips)}
    except SoundOmniError as error:
        raise type(error)(f"list '{name}': {error}") from error
    for key, found in sums.items():
        expected = getattr(given, key)
        if expected is None:
            raise SpecError(f"list '{name}' has no {key}, so it could change unnoticed; that of its dataset now is {found}")
        if expected != found:
            what = key.partition("_")[0]
            raise SpecError(
                f"list '{name}': its {what} changed since it was written: {key} is {found}, expected {expected}; "
                "numbers measured on it would not compare with older ones"
            )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return EvaluationList(name, sha256, given.description, given.dataset, dataset, tuple(given.tasks))


def items_sha256(items: Iterable[Item]) -> str:
    """Sums up what is known of every item: key, length, rate, captions, questions and attributes."""
    total = hashlib.sha256()
    for item in items:
        known = [item.key, item.num_samples, item.sample_rate, item.captions, item.questions, dict(item.attributes)]
        total.update(json.dumps(known, sort_keys=True, default=str).encode())
    return total.hexdigest()


def audio_sha256(clips: Iterable[tuple[np.ndarray, int]]) -> str:
    """Sums up clips of a waveform `[C, S]` and a rate, in steps of AUDIO_STEP."""
    import numpy as np

    total = hashlib.sha256()
    for waveform, rate in clips:
        total.update(f"{waveform.shape} {rate}".encode())
        total.update(np.round(waveform / AUDIO_STEP).astype("<i4").tobytes())
    return total.hexdigest()


def _read(name: str) -> str:
    path = Path(name)
    shipped = shipped_lists()
    if path.is_file():
        source: Any = path
    elif name in shipped:
        source = resources.files("soundomni") / "lists" / f"{name}.yaml"
    else:
        near = did_you_mean(path.stem, shipped)
        raise SpecError(f"no list '{name}': not a file{looked_for(path)}.{near} Shipped lists: {', '.join(shipped)}")
    try:
        text: str = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the list '{name}' cannot be read: {message_of(error)}") from error
    return text


def _parse(name: str, text: str) -> ListFile:
    tree = yaml_text.parse(text, name)
    if not isinstance(tree, dict):
        keys = ", ".join(ListFile.__dataclass_fields__)
        raise SpecError(f"list '{name}' is {'empty' if tree is None else 'no mapping'}, expected the keys {keys}")
    try:
        given: ListFile = convert(tree, ListFile, "")
    except SpecError as error:
        raise SpecError(f"list '{name}': {error}") from error
    _check_tasks(name, given.tasks)
    return given


def _check_tasks(name: str, tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in TASKS:
            raise SpecError(f"list '{name}': unknown task '{task}', expected some of {', '.join(TASKS)}.{did_you_mean(task, TASKS)}")
    if not tasks:
        raise SpecError(f"list '{name}' measures no task, expected some of {', '.join(TASKS)}")
