"""Word and character error rates of texts, by jiwer, after a stated normalization."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from soundomni.core.errors import DataError

References = Sequence[str | Sequence[str]]
"""One reference for each text, or several of which the nearest counts."""

_PUNCTUATION = re.compile(r"[.,;:!?\"()\[\]{}…“”„«»¿¡–—-]")


def normalize(text: str) -> str:
    """Return a text as it is compared: Unicode NFKC, lower case, punctuation replaced by spaces, single spaces.

    Apostrophes and `#` stay, because they distinguish words and notes.

    >>> normalize("A loud  tone at C#4, then: noise!")
    'a loud tone at c#4 then noise'
    """
    return " ".join(_PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).lower()).split())


def wer(references: References, hypotheses: Sequence[str]) -> float:
    """Return the word error rate: substitutions, deletions and insertions over the words of the references, all texts
    pooled.

    Args:
        references: for each hypothesis one text, or several of which the one with the lowest rate counts.
        hypotheses: the texts to judge.

    Returns:
        0 for equal texts; above 1 if more words are inserted than the reference has.

    Raises:
        DataError: a reference has no words.
        ValueError: the lengths differ, or nothing is given.
    """
    import jiwer

    def count(reference: str, hypothesis: str) -> tuple[int, int]:
        found = jiwer.process_words(reference, hypothesis)
        return found.substitutions + found.deletions + found.insertions, found.hits + found.substitutions + found.deletions

    return _rate(references, hypotheses, count)


def cer(references: References, hypotheses: Sequence[str]) -> float:
    """Return the character error rate, including spaces: `wer` on characters."""
    import jiwer

    def count(reference: str, hypothesis: str) -> tuple[int, int]:
        found = jiwer.process_characters(reference, hypothesis)
        return found.substitutions + found.deletions + found.insertions, found.hits + found.substitutions + found.deletions

    return _rate(references, hypotheses, count)


def _rate(references: References, hypotheses: Sequence[str], count: Callable[[str, str], tuple[int, int]]) -> float:
    """Pool (errors, units) of each hypothesis against its nearest reference."""
    if len(references) != len(hypotheses) or not hypotheses:
        raise ValueError(f"{len(references)} references for {len(hypotheses)} texts; expected equal numbers, at least one")
    errors = units = 0
    for given, hypothesis in zip(references, hypotheses, strict=True):
        options = [given] if isinstance(given, str) else list(given)
        found = [count(_words(option), normalize(hypothesis)) for option in options]
        nearest = min(found, key=lambda pair: pair[0] / pair[1])
        errors, units = errors + nearest[0], units + nearest[1]
    return errors / units


def _words(reference: str) -> str:
    normal = normalize(reference)
    if not normal:
        raise DataError(f"error rates: the reference {reference!r} has no words; expected at least one")
    return normal
