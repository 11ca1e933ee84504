"""The task "answer": all questions of all clips; an answer is right if it is the known one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soundomni.core.batches import batches
from soundomni.evaluation.observer import Observer
from soundomni.evaluation.score import Score, Scores, mean, share

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio

MOST_QUESTIONS = 20
"""With more different questions than this, single questions do not get scores."""


def answer_questions(
    model: SoundOmni, items: Sequence[Item], clips: Sequence[Audio], *, batch_size: int, observer: Observer
) -> list[list[str]]:
    """Ask all questions of every clip, the same question of many clips at once; return the answers of each clip."""
    places: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        for question, _ in item.questions:
            places.setdefault(question, []).append(i)
    given: dict[tuple[str, int], str] = {}
    with observer.begin("answering questions", total=sum(map(len, places.values()))) as progress:
        for question, every in places.items():
            for those in batches(every, batch_size):
                answers = model.describe([clips[i] for i in those], question=question, batch_size=batch_size)
                given |= {(question, i): answer for i, answer in zip(those, answers, strict=True)}
                progress.advance(len(those))
    return [[given[question, i] for question, _ in item.questions] for i, item in enumerate(items)]


def answer_scores(items: Sequence[Item], answered: Sequence[Sequence[str]]) -> Scores:
    """Return "right", the share of questions answered right, and the same for each question asked about many clips."""
    from soundomni.metrics.text import normalize

    verdicts: dict[str, list[bool]] = {}
    for item, answers in zip(items, answered, strict=True):
        for (question, truth), given in zip(item.questions, answers, strict=True):
            verdicts.setdefault(question, []).append(normalize(given) == normalize(truth))
    every = [right for rights in verdicts.values() for right in rights]
    scores = {"right": Score(mean(every), len(every))}
    if len(verdicts) <= MOST_QUESTIONS:
        scores |= {question: share(rights) for question, rights in verdicts.items()}
    return scores
