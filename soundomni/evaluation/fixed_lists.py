"""Fixed lists of clips that a model is measured on, and proof that they have not changed.

A list is a YAML file, shipped in soundomni/lists or written by the user. It holds a `description` of what it measures,
the `dataset` slot, the `tasks`, and two SHA-256 checksums: of the items (keys, captions, questions, attributes) and of
their audio. Both are checked whenever a list is opened, so that numbers measured on a list of one name are always
numbers on the same clips.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import SoundOmniError, SpecError, did_you_mean, message_of
from soundomni.core.spec import yaml_text
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import convert
from soundomni.evaluation.checksums import audio_sha256, items_sha256
from soundomni.evaluation.observer import SILENT, Observer, counted
from soundomni.evaluation.settings import check_tasks

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset


@dataclass(frozen=True)
class ListFile:
    """Contents of a list's file; the fields are the keys of the YAML."""

    description: str
    dataset: Slot
    tasks: list[str]
    items_sha256: str | None = None
    audio_sha256: str | None = None


@dataclass(frozen=True)
class FixedList:
    """A list that has been checked.

    Args:
        name: name of a shipped list, or path of a file.
        sha256: SHA-256 of the file.
        description: what the list measures.
        slot: the dataset as named in the file.
        dataset: the dataset itself.
        tasks: the tasks to measure on it, some of TASKS.
    """

    name: str
    sha256: str
    description: str
    slot: Slot
    dataset: Dataset
    tasks: tuple[str, ...]


def shipped_lists() -> tuple[str, ...]:
    """Return the names of the lists that come with the library."""
    folder = resources.files("soundomni") / "lists"
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def open_list(name: str | Path, *, trust_class_paths: bool = False, observer: Observer = SILENT) -> FixedList:
    """Read a list, build its dataset, and check that its items and audio have not changed.

    Args:
        name: name of a shipped list, or path to a YAML file.
        trust_class_paths: let the dataset be named by import path.
        observer: receives how many clips have been checked.

    Raises:
        SpecError: there is no such list, its file is damaged, or its items or audio do not match the checksums.
        DataError: its dataset cannot be read.
    """
    from soundomni.core.spec.discovery import OWN
    from soundomni.core.spec.provenance import settled_name
    from soundomni.core.spec.registry import build

    name = str(name)
    text = _read(name)
    given = _parse(name, text)
    if not Path(name).is_file():
        given = replace(given, dataset=Slot(settled_name("dataset", given.dataset.class_path, OWN), given.dataset.init_args))
    try:
        dataset = build("dataset", given.dataset, trust_class_paths=trust_class_paths)
        count = len(dataset)
        clips = counted(map(dataset.load, range(count)), f"checking the list {name}", total=count, observer=observer)
        sums = {"items_sha256": items_sha256(map(dataset.item, range(count))), "audio_sha256": audio_sha256(clips)}
    except SoundOmniError as error:
        raise type(error)(f"list '{name}': {error}") from error
    _check_sums(name, given, sums)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return FixedList(name, sha256, given.description, given.dataset, dataset, tuple(given.tasks))


def _check_sums(name: str, given: ListFile, sums: dict[str, str]) -> None:
    """Raise SpecError if a checksum is missing in the file, or differs from that of the dataset."""
    for key, found in sums.items():
        expected = getattr(given, key)
        if expected is None:
            raise SpecError(f"list '{name}' has no {key}, so it could change unnoticed. Set it: its value now is {found}")
        if expected != found:
            what = key.partition("_")[0]
            raise SpecError(
                f"list '{name}': its {what} changed since it was written: {key} is {found}; expected {expected}. "
                "Numbers measured on it could not be compared with older ones"
            )


def _read(name: str) -> str:
    path = Path(name)
    shipped = shipped_lists()
    if path.is_file():
        source: Any = path
    elif name in shipped:
        source = resources.files("soundomni") / "lists" / f"{name}.yaml"
    else:
        near = did_you_mean(path.stem, shipped)
        raise SpecError(f"there is no list '{name}': '{path.absolute()}' is not a file.{near} Shipped lists: {', '.join(shipped)}")
    try:
        text: str = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the list '{name}' cannot be read: {message_of(error)}") from error
    return text


def _parse(name: str, text: str) -> ListFile:
    tree = yaml_text.parse(text, name)
    if not isinstance(tree, dict):
        keys = ", ".join(ListFile.__dataclass_fields__)
        raise SpecError(f"list '{name}' is {'empty' if tree is None else 'not a mapping'}; expected the keys {keys}")
    try:
        given: ListFile = convert(tree, ListFile, "")
        check_tasks("tasks", given.tasks)
    except SpecError as error:
        raise SpecError(f"list '{name}': {error}") from error
    return given
