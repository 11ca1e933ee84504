"""CIDEr-D: how far a caption agrees with what several people wrote about the same clip.

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015), section 5 and the appendix on
CIDEr-D: tf-idf vectors of n-grams, n = 1 to 4, compared by a cosine that clips the candidate's weights to the
reference's, times a Gaussian of the difference in length (σ = 6), times 10. As in the authors' code the term
frequencies are counts. Words are those of `text.normalize`, not stemmed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from soundomni.metrics.text import normalize

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
FACTOR = 10.0

_Gram = tuple[str, ...]


def cider_d(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> float:
    """Return the mean CIDEr-D over clips.

    The document frequencies are those of the given references, so the value depends on the whole set, and is 0 for a
    single clip. A caption equal to its only reference scores 10 if that has at least four words and n-grams of every
    order that not all clips share, otherwise less.

    Args:
        references: at least one for each clip.
        candidates: one caption for each clip.

    Raises:
        ValueError: the lengths differ, nothing is given, or a clip has no reference.
    """
    if len(references) != len(candidates) or not candidates:
        raise ValueError(f"{len(references)} sets of references for {len(candidates)} captions; expected equal numbers, at least one")
    if any(isinstance(texts, str) or not texts for texts in references):
        raise ValueError("a clip's references are a text or empty; expected a list of at least one text")
    grams = [[_grams(text) for text in texts] for texts in references]
    seen = Counter(gram for texts in grams for gram in {gram for text in texts for gram in text})
    weights = {gram: math.log(len(references) / count) for gram, count in seen.items()}
    unseen = math.log(len(references))
    scores = []
    for candidate, texts in zip(candidates, grams, strict=True):
        found = _grams(candidate)
        scores.append(sum(_similarity(found, text, weights, unseen) for text in texts) / len(texts))
    return FACTOR * sum(scores) / len(scores)


def _grams(text: str) -> Counter[_Gram]:
    words = normalize(text).split()
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _similarity(candidate: Counter[_Gram], reference: Counter[_Gram], weights: Mapping[_Gram, float], unseen: float) -> float:
    """Return the mean over the orders of the clipped cosine, times the length penalty."""
    total = 0.0
    for n in ORDERS:
        one, other = (
            {gram: count * weights.get(gram, unseen) for gram, count in text.items() if len(gram) == n} for text in (candidate, reference)
        )
        norm = math.sqrt(sum(w * w for w in one.values())) * math.sqrt(sum(w * w for w in other.values()))
        if norm > 0.0:
            total += sum(min(one[gram], weight) * weight for gram, weight in other.items() if gram in one) / norm
    difference = _length(candidate) - _length(reference)
    return total / len(ORDERS) * math.exp(-(difference**2) / (2.0 * SIGMA**2))


def _length(grams: Counter[_Gram]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)
