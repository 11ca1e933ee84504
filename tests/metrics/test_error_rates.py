"""Word and character error rates against an edit distance, after the stated normalisation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError
from soundomni.metrics.text import cer, normalize, wer

words = st.lists(st.sampled_from(["a", "loud", "tone", "c#4"]), min_size=1, max_size=6).map(" ".join)


def edits(one: list[str], other: list[str]) -> int:
    """Levenshtein distance by its recursion."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_rates_are_pooled_edit_distances(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [a for a, _ in pairs], [b for _, b in pairs]
    assert wer(references, hypotheses) == pytest.approx(
        sum(edits(a.split(), b.split()) for a, b in pairs) / sum(len(a.split()) for a in references)
    )
    assert cer(references, hypotheses) == pytest.approx(sum(edits(list(a), list(b)) for a, b in pairs) / sum(map(len, references)))


def test_by_hand() -> None:
    assert wer(["a loud sine tone"], ["a quiet tone"]) == 0.5  # one substitution and one deletion of four words
    assert wer(["one"], ["one two three"]) == 2.0
    assert wer(["one two"], [""]) == cer(["one two"], [""]) == 1.0
    assert cer(["abc", "d"], ["abd", "d"]) == 0.25


def test_the_nearest_reference_counts() -> None:
    references = [["a rising chirp", "a rising sweep"], "noise"]
    assert wer(references, ["a rising sweep", "noise"]) == 0.0
    assert wer(references, ["the rising sweep", "noise"]) == 0.25


def test_normalization() -> None:
    assert normalize("  A LOUD, tone — at C#4. It's “on”!") == "a loud tone at c#4 it's on"
    assert wer(["A tone, then noise."], ["a tone then NOISE"]) == 0.0
    assert wer(["a tone at C#4"], ["a tone at C4"]) == 0.25


def test_what_cannot_be_judged() -> None:
    with pytest.raises(DataError, match="'...' has no words"):
        wer(["..."], ["a"])
    with pytest.raises(ValueError, match="expected equal numbers"):
        cer(["a"], [])
