"""Scoring what a model made and said: plain data with a number for each score."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from soundomni.evaluation.caption_scores import Judged, judge_captions
from soundomni.evaluation.judges import NO_JUDGES, Judges, judge_scores
from soundomni.evaluation.observer import SILENT, Observer
from soundomni.evaluation.score import Scores
from soundomni.evaluation.tasks.answering import answer_scores
from soundomni.evaluation.tasks.continuation import continuation_scores
from soundomni.evaluation.tasks.description import description_scores
from soundomni.evaluation.tasks.generation import generation_scores
from soundomni.evaluation.tasks.reconstruction import reconstruction_scores
from soundomni.evaluation.tasks.variation import variation_scores
from soundomni.evaluation.toy_attributes import are_toys

if TYPE_CHECKING:
    from soundomni.evaluation.outcome import Outcome

RESULT_KEYS = {
    "generate": "generated",
    "describe": "described",
    "answer": "answered",
    "reconstruct": "reconstructed",
    "continue": "continued",
    "vary": "varied",
}
"""Keys of the tasks in a result."""


def score_outcome(outcome: Outcome, *, judges: Judges = NO_JUDGES, observer: Observer = SILENT) -> dict[str, Any]:
    """Score an outcome.

    Returns:
        plain data: "clips", "unreadable" and "unmeasurable", counts; "failures", a row for each clip that is left out;
        "rates" of codec and files in Hz, if clips went through the codec; for each task that ran {score: value}, see
        RESULT_KEYS; "details", a row for each score with its task, how many clips or verdicts it sums up and its
        interval, see `Score`; "not_measured", lines that say what is missing and why; "reference", what a reference
        says about generated clips besides scores, see `Judged`.
    """
    judged = _judged(outcome, judges, observer)
    found = _scores(outcome, judges, judged, observer)
    return {
        "clips": len(outcome.clips),
        "unreadable": outcome.unreadable,
        "unmeasurable": outcome.unmeasurable,
        "failures": [*outcome.failures, *(judges.reference.failures if judges.reference is not None else ())],
        **_rates(outcome),
        **({"reference": judged.report} if judged is not None else {}),
        **{task: {name: one.value for name, one in scores.items()} for task, scores in found.items()},
        "details": [{"task": task, "score": name, **asdict(one)} for task, scores in found.items() for name, one in scores.items()],
        "not_measured": [f"{RESULT_KEYS[task]}: {why}" for task, why in outcome.not_measured.items()],
    }


def _rates(outcome: Outcome) -> dict[str, Any]:
    """Return the rates of the reconstructions: the codec's, what it keeps, and how many files have which rate."""
    if not outcome.reconstructed:
        return {}
    first = outcome.reconstructed[0]
    files = Counter(one.file_rate for one in outcome.reconstructed)
    counts = {str(rate): count for rate, count in sorted(files.items())}
    return {"rates": {"codec": first.codec_rate, "codec_keeps_hz": [0, first.kept_hz], "files": counts}}


def _judged(outcome: Outcome, judges: Judges, observer: Observer) -> Judged | None:
    """Return what the reference says about generated clips, if there are both."""
    if judges.reference is None or not outcome.generated:
        return None
    return judge_captions(outcome.items, outcome.clips, outcome.generated, judges.reference, observer=observer)


def _scores(outcome: Outcome, judges: Judges, judged: Judged | None, observer: Observer) -> dict[str, Scores]:
    """Return the scores of each task that ran."""
    items = outcome.items
    found: dict[str, Scores] = {}
    if outcome.generated:
        found["generated"] = generation_scores(items, outcome.generated, observer=observer) if are_toys(items) else {}
        if judged is not None:
            found["generated"] |= judged.scores
        if judges.has_networks:
            prompts = [item.captions[0] for item in items]
            found["generated"] |= judge_scores(prompts, outcome.clips, outcome.generated, judges, observer=observer)
    if outcome.described:
        found["described"] = description_scores(items, outcome.described)
    if outcome.answered:
        found["answered"] = answer_scores(items, outcome.answered)
    if outcome.reconstructed:
        found["reconstructed"] = reconstruction_scores(outcome.reconstructed)
    if outcome.continued:
        found["continued"] = continuation_scores(outcome.continued)
    if outcome.varied:
        found["varied"] = variation_scores(outcome.varied)
    return found
