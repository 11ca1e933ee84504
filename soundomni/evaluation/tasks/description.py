"""The task "describe": a text for each clip, compared with the clip's captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soundomni.core.batches import batches
from soundomni.evaluation.observer import Observer
from soundomni.evaluation.score import Score, Scores, share
from soundomni.evaluation.toy_attributes import are_toys, attribute_scores

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio


def describe_clips(model: SoundOmni, clips: Sequence[Audio], *, batch_size: int, observer: Observer) -> list[str]:
    """Describe all clips, a batch at a time."""
    texts: list[str] = []
    with observer.begin("describing clips", total=len(clips)) as progress:
        for places in batches(range(len(clips)), batch_size):
            texts += model.describe([clips[i] for i in places], batch_size=batch_size)
            progress.advance(len(places))
    return texts


def description_scores(items: Sequence[Item], texts: Sequence[str]) -> Scores:
    """Compare texts with the captions of their clips.

    Returns:
        "exact", the share of texts that equal a caption; "wer" and "cer", error rates against the nearest caption;
        "cider_d", the consensus with all captions. For toy sounds, also the attributes that the texts name correctly;
        see `attribute_scores`.
    """
    from soundomni.data.toys.toy_language import parse_caption
    from soundomni.data.toys.toy_recipe import Recipe, agreement
    from soundomni.metrics.cider import cider_d
    from soundomni.metrics.text import cer, normalize, wer

    captions = [item.captions for item in items]
    scores: Scores = {}
    if are_toys(items):
        verdicts = [agreement(Recipe.from_json(i.attributes), parse_caption(t)) for i, t in zip(items, texts, strict=True)]
        scores |= attribute_scores(verdicts)
    scores["exact"] = share([normalize(text) in map(normalize, known) for known, text in zip(captions, texts, strict=True)])
    scores["wer"] = Score(wer(captions, texts), len(texts))
    scores["cer"] = Score(cer(captions, texts), len(texts))
    scores["cider_d"] = Score(cider_d(captions, texts), len(texts))
    return scores
