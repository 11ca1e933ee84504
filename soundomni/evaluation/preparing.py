"""What can be measured, decided before anything is made: the usable clips, and the tasks that the model and the clips
allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from soundomni.core.errors import DataError, SpecError, none_of
from soundomni.core.limits import check_seed
from soundomni.evaluation.judges import Judges
from soundomni.evaluation.lazy_clips import Clips
from soundomni.evaluation.left_out import left_out, unreadable_files
from soundomni.evaluation.observer import Observer, counted
from soundomni.evaluation.outcome import Outcome
from soundomni.evaluation.settings import TASKS
from soundomni.evaluation.unfit_clips import find_unfit

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset, Item
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.evaluation.settings import Settings


def prepare(
    model: SoundOmni | Chain, dataset: Dataset, settings: Settings, *, judges: Judges, observer: Observer
) -> tuple[Outcome, tuple[str, ...]]:
    """Return an outcome with clips but without results, and the tasks to do, in the order of TASKS.

    Clips that cannot be read, or that the model does not take, are left out and reported to the observer. Tasks that
    the model or the clips do not allow are in the outcome's `not_measured`.

    Raises:
        SpecError: the seed is too large to count up from it once for each clip, or none of the tasks can be measured.
        DataError: the dataset is empty, or none of its clips can be read and measured.
    """
    check_seed(settings.seed, count=settings.count(len(dataset)))
    outcome = _read(dataset, settings.count(len(dataset)), observer)
    refused = {task: _obstacle(task, model, outcome.items, judged=bool(judges)) for task in settings.tasks}
    outcome.not_measured = {task: why for task, why in refused.items() if why is not None}
    tasks = tuple(task for task in TASKS if task in settings.tasks and task not in outcome.not_measured)
    if not tasks:
        reasons = "; ".join(f"{task}: {why}" for task, why in outcome.not_measured.items())
        raise SpecError(f"there is nothing to measure ({reasons}). Choose other tasks, or other clips")
    count = len(outcome.items)
    pairs = counted(zip(outcome.items, outcome.clips, strict=True), "checking clips", total=count, observer=observer)
    _leave_out(outcome, find_unfit(model, pairs, tasks, judges, count=count, of=settings.of), observer)
    return outcome, tasks


def _read(dataset: Dataset, count: int, observer: Observer) -> Outcome:
    """Read every clip once, one by one, to find out which can be read."""
    from soundomni.core.errors import UnreadableAudioError

    if count == 0:
        raise DataError("there is nothing to evaluate on: the dataset is empty")
    clips = Clips(dataset, range(count))
    places, failures = [], unreadable_files(dataset, observer)
    for i in counted(range(count), "reading clips", total=count, observer=observer):
        try:
            clips[i]
        except UnreadableAudioError as error:
            failures.append(left_out(dataset.item(i).key, str(error), observer))
        else:
            places.append(i)
    if not places:
        raise DataError(f"there is nothing to evaluate on: {none_of(count, 'clip')} can be read")
    items = [dataset.item(i) for i in places]
    return Outcome(items=items, clips=clips.at(places), unreadable=len(failures), failures=failures)


def _leave_out(outcome: Outcome, unfit: Mapping[int, DataError], observer: Observer) -> None:
    """Remove clips that cannot be measured from an outcome, by place, and report them."""
    if not unfit:
        return
    assert isinstance(outcome.clips, Clips), "as _read made them"
    for place, error in unfit.items():
        key = outcome.items[place].key
        outcome.failures.append(left_out(key, str(error).removeprefix(f"'{key}': "), observer))
    places = [place for place in range(len(outcome.items)) if place not in unfit]
    outcome.items, outcome.clips = [outcome.items[place] for place in places], outcome.clips.at(places)
    outcome.unmeasurable = len(unfit)


def _obstacle(task: str, model: SoundOmni | Chain, items: Sequence[Item], *, judged: bool) -> str | None:
    """Return why a task cannot be measured with this model on these clips; None if it can."""
    from soundomni.core.pretrained.chain import Chain
    from soundomni.evaluation.toy_attributes import are_toys

    toys = are_toys(items)
    if isinstance(model, Chain):
        if task not in ("generate", "continue"):
            return "a chain of models only generates and continues"
    elif task in ("describe", "answer") and not model.model.all_heard:
        return "the model hears no clips in its sequence"
    if task in ("generate", "describe", "continue", "vary") and not all(item.captions for item in items):
        return "not every clip has a caption"
    if task == "answer" and not any(item.questions for item in items):
        return "no clip has a question"
    if task == "generate" and not (judged or toys):
        return "the clips are not toy sounds, and there is no reference, CLAP network or classifier to judge others"
    if task in ("continue", "vary") and not toys:
        return "the clips are not toy sounds, and signal analysis only understands those"
    return None
