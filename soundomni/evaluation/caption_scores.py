"""Scores of generated clips by a reference, next to those of real clips that were held out: the ceiling of each measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import DataError, amount
from soundomni.evaluation.observer import Observer, counted
from soundomni.evaluation.reference import Reference, class_of
from soundomni.evaluation.score import Score, Scores, share

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Item
    from soundomni.core.waveform import Audio
    from soundomni.metrics.caption_judge import Verdict

MEASURES = ("nearest", "classified")
"""Shares of clips that are heard as their caption: by the nearest clip of the reference, and by a classifier."""
OF_DATA = "_of_data"
"""End of the names of scores of the held-out clips themselves."""
MOST_NAMED = 5
"""How many confusions and copies a line of text names."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a reference says about generated clips.

    Args:
        scores: see `judge_captions`.
        report: plain data: "clips" and "captions", how many the reference has; "sample_rate" in Hz and "seconds", at
            which clips are compared; "judged", how many generated clips have a caption of the reference; "confusions",
            {"caption", "heard", "clips", "of"} for each caption that the classifier hears as another one, most frequent
            first; "copy_below", the novelty below which a clip counts as a copy, and "copies", {"clip", "of",
            "novelty"} for each generated clip that is a copy of a training clip; "saturated" and "notes", lines of
            text.
    """

    scores: Scores
    report: dict[str, Any]


def judge_captions(
    items: Sequence[Item], clips: Sequence[Audio], made: Sequence[Audio], reference: Reference, *, observer: Observer
) -> Judged:
    """Judge the clips made from the captions of held-out clips, and the held-out clips themselves, by a reference.

    Returns:
        as scores, each also as "…_of_data" for the held-out clips: "nearest", the share of clips whose nearest
        reference clip has the asked caption; "classified", the share to which a classifier gives it; "novelty", the
        median distance from the nearest reference clip, in units of that between reference clips of one caption;
        "copies", the share of clips with a novelty below COPY_BELOW; "bandwidth", the median in Hz. And "chance", the
        share of the most frequent of the asked captions. Without classes, "nearest", "classified" and "chance" are
        missing.

    Raises:
        DataError: a generated clip is not finite.
    """
    from soundomni.metrics.caption_judge import COPY_BELOW

    heard = reference.judge.judge(_pairs(items, made, "judging generated clips", observer))
    real = reference.judge.judge(_pairs(items, clips, "judging held-out clips", observer))
    asked = [class_of(item) for item in items]
    known = [] if reference.obstacle else [place for place, caption in enumerate(asked) if caption in reference.judge.classes]
    scores = _paired(_class_scores(asked, heard, known, reference), _class_scores(asked, real, known, reference))
    if known:
        scores["chance"] = Score(max(Counter(asked[place] for place in known).values()) / len(known), len(known))
    scores |= _paired(_sound_scores(heard), _sound_scores(real))
    copies = [
        {"clip": item.key, "of": reference.items[one.nearest].key, "novelty": one.novelty}
        for item, one in zip(items, heard, strict=True)
        if one.is_copy
    ]
    spectra = reference.judge.spectra
    report = {
        "clips": len(reference.items),
        "captions": len(reference.judge.classes),
        "sample_rate": spectra.sample_rate,
        "seconds": spectra.seconds,
        "judged": len(known),
        "confusions": _confusions([(asked[place], heard[place].classified) for place in known], _spelled(reference)),
        "copy_below": COPY_BELOW,
        "copies": copies,
        "saturated": saturated_lines(scores),
        "notes": _notes(items, known, real, reference),
    }
    return Judged(scores=scores, report=report)


def saturated_lines(scores: Scores) -> list[str]:
    """Return a line for each measure that cannot tell good models apart: its ceiling is less than halfway from chance
    to 100 %, or generated clips reach it.

    >>> scores = {"chance": Score(0.1, 20), "nearest": Score(0.8, 20), "nearest_of_data": Score(0.75, 20)}
    >>> saturated_lines(scores)
    ['nearest: generated clips reach 80.0 % and held-out clips 75.0 %, so it cannot show that a model gets better']
    """
    lines = []
    for name in MEASURES:
        if name not in scores:
            continue
        value, ceiling, chance = (scores[key].value for key in (name, f"{name}{OF_DATA}", "chance"))
        if ceiling < (1.0 + chance) / 2.0:
            lines.append(
                f"{name}: held-out clips only reach {_percent(ceiling)} (chance {_percent(chance)}), so it says little about a model"
            )
        elif value >= ceiling:
            reached = f"generated clips reach {_percent(value)} and held-out clips {_percent(ceiling)}"
            lines.append(f"{name}: {reached}, so it cannot show that a model gets better")
    return lines


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _pairs(items: Sequence[Item], clips: Sequence[Audio], what: str, observer: Observer) -> Iterator[tuple[np.ndarray, int]]:
    """Yield waveform and rate of one clip at a time. Raise DataError for one that is not finite."""
    import numpy as np

    for item, clip in counted(zip(items, clips, strict=True), what, total=len(items), observer=observer):
        if not np.isfinite(clip.waveform).all():
            raise DataError(f"the clip generated for '{item.key}' has samples that are not finite, as if training had diverged")
        yield clip.waveform, clip.sample_rate


def _paired(made: Scores, real: Scores) -> Scores:
    """Return scores of generated clips, each followed by that of held-out clips."""
    paired: Scores = {}
    for name in made | real:
        for key, scores in ((name, made), (f"{name}{OF_DATA}", real)):
            if name in scores:
                paired[key] = scores[name]
    return paired


def _class_scores(asked: Sequence[str], verdicts: Sequence[Verdict], known: Sequence[int], reference: Reference) -> Scores:
    """Score the clips whose caption the reference has."""
    if not known:
        return {}
    captions = reference.judge.captions
    return {
        "nearest": share([captions[verdicts[place].nearest] == asked[place] for place in known]),
        "classified": share([verdicts[place].classified == asked[place] for place in known]),
    }


def _sound_scores(verdicts: Sequence[Verdict]) -> Scores:
    """Score novelty and bandwidth, each over the clips for which it is defined."""
    new = [one.novelty for one in verdicts if one.novelty is not None]
    widths = [one.bandwidth for one in verdicts if one.bandwidth is not None]
    scores = {"novelty": Score(median(new), len(new)), "copies": share([one.is_copy for one in verdicts])} if new else {}
    return scores | ({"bandwidth": Score(median(widths), len(widths))} if widths else {})


def _spelled(reference: Reference) -> dict[str, str]:
    """Return how a caption of each class is written."""
    return {class_of(item): item.captions[0] for item in reversed(reference.items) if item.captions}


def _confusions(pairs: Sequence[tuple[str, str | None]], spelled: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return how often a caption was heard as another one, most frequent first."""
    total = Counter(caption for caption, _ in pairs)
    wrong = Counter((caption, heard) for caption, heard in pairs if caption != heard)
    ordered = sorted(wrong.items(), key=lambda row: (-row[1], row[0]))
    rows = ((spelled[caption], spelled[str(heard)], count, total[caption]) for (caption, heard), count in ordered)
    return [{"caption": caption, "heard": heard, "clips": count, "of": of} for caption, heard, count, of in rows]


def _notes(items: Sequence[Item], known: Sequence[int], real: Sequence[Verdict], reference: Reference) -> list[str]:
    """Return what is missing from the scores, and what makes the ceiling doubtful."""
    notes = []
    if reference.obstacle:
        notes.append(f"captions are not judged: {reference.obstacle}")
    elif len(known) < len(items):
        unknown = [item for place, item in enumerate(items) if place not in set(known)]
        names = sorted({class_of(item): f"'{item.captions[0]}'" for item in unknown}.values())
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        clips = amount(len(unknown), "clip")
        notes.append(
            f"nearest and classified leave out {clips} whose caption the reference does not have: {', '.join(names[:MOST_NAMED])}{more}"
        )
    if reference.judge.spread is None:
        notes.append("novelty is not measured: the reference has no two different clips to compare")
    same = sum(one.is_copy for one in real)
    if same:
        notes.append(
            f"as near to a training clip as copies: {same} of {amount(len(real), 'held-out clip')}, so the ceiling may be too high"
        )
    return notes
