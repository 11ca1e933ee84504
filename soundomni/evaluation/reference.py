"""The reference of an evaluation: real clips that the model was trained on, and a judge that knows only them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import DataError, SpecError, UnreadableAudioError, none_of
from soundomni.core.files.paths import at_home
from soundomni.core.spec.provenance import settled_name
from soundomni.core.spec.schema import Slot
from soundomni.evaluation.checksums import items_sha256
from soundomni.evaluation.evaluation_data import EvaluationData, open_data
from soundomni.evaluation.left_out import COMPARED, left_out, unreadable_files
from soundomni.evaluation.observer import SILENT, Observer, counted
from soundomni.evaluation.settings import REFERENCE_LIMIT

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Dataset, Item
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.metrics.caption_judge import CaptionJudge

LEAST_SECONDS, MOST_SECONDS = 0.02, 10.0
"""Least and most seconds of a clip that are compared."""
COVERED_PERCENT = 75.0
"""Percentage of reference clips that are compared up to their end, if they are not longer than MOST_SECONDS. With more,
most of what is compared would be the silence after short clips."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Clips that a model was trained on, heard by a judge.

    Args:
        data: the dataset that they come from.
        items: the clips that the judge has heard.
        judge: the judge; its places are those of `items`.
        failures: for each clip that cannot be read, its key as "file" and what is wrong with it as "error".
        obstacle: why captions are not judged; None if they are.
    """

    data: EvaluationData
    items: Sequence[Item]
    judge: CaptionJudge
    failures: Sequence[dict[str, str]]
    obstacle: str | None

    def identity(self) -> dict[str, Any]:
        """Return plain data that identifies the clips."""
        return {**self.data.identity(), "clips": len(self.items), "items_sha256": items_sha256(self.items)}


def open_reference(reference: object, measured: EvaluationData, *, trust_class_paths: bool = False) -> EvaluationData:
    """Open the dataset that a model was trained on.

    Args:
        reference: a dataset, its slot, or the result of `open_data`.
        measured: the clips that the model is measured on, which must be others.
        trust_class_paths: let a slot name its dataset by import path.

    Raises:
        SpecError: it is something else, or the same dataset as the measured clips.
        DataError: the dataset is empty, holds encoded clips, or cannot be read.
        PluginError: there is no dataset plugin of the slot's name.
    """
    from soundomni.core.inference.inputs import shown
    from soundomni.core.interfaces import Dataset

    if not isinstance(reference, (Slot, Dataset, EvaluationData)):
        raise SpecError(f"reference is {shown(reference)}; expected the Slot or Dataset of the clips that the model was trained on")
    opened = reference if isinstance(reference, EvaluationData) else open_data(reference, trust_class_paths=trust_class_paths)
    if opened.dataset is measured.dataset or (opened.slot is not None and measured.slot is not None and _same(opened.slot, measured.slot)):
        raise SpecError(
            "the reference is the dataset that is measured; expected two: clips that the model was trained on as the "
            "reference, and clips that were held out to measure on"
        )
    if len(opened.dataset) == 0:
        raise DataError("the reference is empty; expected the clips that the model was trained on")
    if opened.dataset.encoding is not None:
        raise DataError("the reference holds encoded clips; expected audio. Name the dataset that they were encoded from")
    return opened


def _same(one: Slot, other: Slot) -> bool:
    """Return whether two slots name the same dataset, if their paths may be spelled differently."""
    names = [settled_name("dataset", slot.class_path, None) for slot in (one, other)]
    return names[0] == names[1] and _with_real_paths(one.init_args) == _with_real_paths(other.init_args)


def _with_real_paths(value: Any) -> Any:
    """Return the arguments of a dataset with the texts that name a file or folder as absolute paths without links."""
    if isinstance(value, Mapping):
        return {key: _with_real_paths(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_real_paths(inner) for inner in value]
    if not isinstance(value, (str, PurePath)):
        return value
    try:
        return str(Path(at_home(str(value))).resolve(strict=True))
    except (OSError, ValueError):  # another text, or a name that no file can have
        return value


def read_reference(
    data: EvaluationData,
    model: SoundOmni | Chain,
    *,
    of: str | None = None,
    limit: int = REFERENCE_LIMIT,
    observer: Observer = SILENT,
) -> Reference:
    """Let a judge hear the clips of a reference, at the sample rate of the clips that the model makes, and prepared as
    in its training.

    Args:
        data: result of `open_reference`.
        model: the model whose clips will be judged.
        of: the modality that is generated; None for the first one.
        limit: most clips that are heard, from the first one.
        observer: receives reports of what is going on.

    Raises:
        DataError: none of the clips can be read.
    """
    from soundomni.data.prepared import Prepared
    from soundomni.metrics.caption_judge import CaptionJudge

    dataset = data.dataset if model.clips is None else Prepared(data.dataset, model.clips)
    count = min(limit, len(dataset))
    if count < len(dataset):
        observer.note(f"the reference has {len(dataset):,} clips; only the first {count:,} are compared")
    items = [dataset.item(i) for i in range(count)]
    seconds = _compared_seconds(items)
    read: list[Item] = []
    failures = unreadable_files(dataset, observer, role=COMPARED)

    def clips() -> Iterator[tuple[str, np.ndarray, int]]:
        for i in counted(range(count), "reading the reference", total=count, observer=observer):
            try:
                waveform, its_rate = _beginning(dataset, i, items[i], seconds)
            except UnreadableAudioError as error:
                failures.append(left_out(items[i].key, str(error), observer, role=COMPARED))
            else:
                read.append(items[i])
                yield class_of(items[i]), waveform, its_rate
        if not read:
            raise DataError(f"there is nothing to compare with: {none_of(count, 'clip')} of the reference can be read")

    judge = CaptionJudge(clips(), sample_rate=_made_rate(model, of), seconds=seconds)
    obstacle = judge.obstacle if model.takes_text else "the model does not take a text"
    return Reference(data=data, items=read, judge=judge, failures=failures, obstacle=obstacle)


def class_of(item: Item) -> str:
    """Return the first caption of an item, normalized so that spelling does not divide a class; "" without captions."""
    from soundomni.metrics.text import normalize

    return normalize(item.captions[0]) if item.captions else ""


def _compared_seconds(items: Sequence[Item]) -> float:
    """Return a length up to which most clips are compared as a whole."""
    import numpy as np

    covered = float(np.percentile([item.num_samples / item.sample_rate for item in items], COVERED_PERCENT))
    return round(min(max(covered, LEAST_SECONDS), MOST_SECONDS), 3)


def _made_rate(model: SoundOmni | Chain, of: str | None) -> int:
    """Return the rate in Hz of the clips that a model makes."""
    from soundomni.core.pretrained.chain import Chain

    return model.sample_rate if isinstance(model, Chain) else model.model.made(of).sample_rate


def _beginning(dataset: Dataset, index: int, item: Item, seconds: float) -> tuple[np.ndarray, int]:
    """Return the beginning of a clip `[C, S]`, as long as is compared, and its rate."""
    from soundomni.core.waveform import Audio

    longest = ceil(seconds * item.sample_rate)
    whole = item.num_samples <= longest
    clip = Audio(*(dataset.load(index) if whole else dataset.load_part(index, first=0, num_samples=longest)))
    return clip.waveform, clip.sample_rate
