"""Running a model on clips: it generates, describes, answers, reconstructs, continues and varies, as asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soundomni.core.spec.clips import announced
from soundomni.evaluation.judges import NO_JUDGES, Judges
from soundomni.evaluation.observer import SILENT, Observer
from soundomni.evaluation.outcome import Outcome
from soundomni.evaluation.preparing import prepare
from soundomni.evaluation.tasks.answering import answer_questions
from soundomni.evaluation.tasks.continuation import continue_clips
from soundomni.evaluation.tasks.description import describe_clips
from soundomni.evaluation.tasks.generation import generate_clips
from soundomni.evaluation.tasks.reconstruction import reconstruct_clips
from soundomni.evaluation.tasks.variation import vary_clips

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.evaluation.settings import Settings


def run_model(
    model: SoundOmni | Chain, dataset: Dataset, settings: Settings, *, judges: Judges = NO_JUDGES, observer: Observer = SILENT
) -> Outcome:
    """Let a model do the tasks of the settings that the model and the clips allow.

    Generating, continuing and varying need captions, and clips whose attributes signal analysis can find (those of
    toy-sounds); with judges, clips can also be generated from other captions. Describing needs an encoder and captions,
    answering needs an encoder and questions. Clips that cannot be read, or that the model does not take, are left out
    and listed in the outcome's `failures`. All clips are prepared as in the model's training (`model.clips`), for every
    task.

    Args:
        model: the model to measure.
        dataset: the clips, from the first one up to the limit of the settings.
        settings: how the model is run, and the tasks.
        judges: networks that will judge the generated clips; they do not run here.
        observer: receives reports of what is going on.

    Raises:
        DataError: the dataset is empty, or none of its clips can be read and measured.
    """
    from soundomni.core.pretrained.chain import Chain
    from soundomni.data.prepared import Prepared

    if model.clips is not None:
        observer.note(announced(model.clips))
        dataset = Prepared(dataset, model.clips)
    outcome, tasks = prepare(model, dataset, settings, judges=judges, observer=observer)
    items, clips, size = outcome.items, outcome.clips, settings.batch_size
    observer.note(f"measuring on {len(clips)} clips: {', '.join(tasks)}")
    if "generate" in tasks:
        outcome.generated = generate_clips(model, items, settings, observer=observer)
    if isinstance(model, Chain):  # it does not describe, reconstruct or vary
        if "continue" in tasks:
            outcome.continued = continue_clips(model, items, clips, settings, observer=observer)
        return outcome
    if "describe" in tasks:
        outcome.described = describe_clips(model, clips, batch_size=size, observer=observer)
    if "answer" in tasks:
        outcome.answered = answer_questions(model, items, clips, batch_size=size, observer=observer)
    if "reconstruct" in tasks:
        outcome.reconstructed = reconstruct_clips(model, clips, of=settings.of, observer=observer)
    if "continue" in tasks:
        outcome.continued = continue_clips(model, items, clips, settings, observer=observer)
    if "vary" in tasks:
        outcome.varied = vary_clips(model, items, clips, settings, observer=observer)
    return outcome
