"""CIDEr-D by hand, and its properties."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.metrics.cider import cider_d

caption = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8).map(" ".join)


def test_equal_captions_of_which_no_two_share_words_score_ten() -> None:
    references = [["one two three four"], ["five six seven eight nine"]]
    assert cider_d(references, [texts[0] for texts in references]) == pytest.approx(10.0)
    assert cider_d(references, ["Five six seven eight nine.", "one two three four"]) == 0.0


def test_a_caption_of_three_words_has_no_four_grams() -> None:
    assert cider_d([["a rising chirp"], ["low noise here"]], ["a rising chirp", "low noise here"]) == pytest.approx(7.5)


def test_by_hand() -> None:
    # Two clips share no word, so every n-gram weighs log 2, which the cosine cancels. "p q s" has one of two words' length more:
    # words 2 of (2, 3) → 2 / √6; pairs 1 of (1, 2) → 1 / √2; triples and quadruples: the reference has none → 0
    expected = 10 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider_d([["p q"], ["x y"]], ["p q s", "zzz"]) == pytest.approx(expected / 2)


def test_repetition_is_clipped_to_the_reference() -> None:
    # words: candidate (3), reference (1): min(3, 1) · 1 / (3 · 1) = 1/3; longer orders: the reference has none
    assert cider_d([["p"], ["x"]], ["p p p", "zzz"]) == pytest.approx(10 * (1 / 3) / 4 * math.exp(-4 / 72) / 2)


def test_words_that_every_clip_has_count_nothing() -> None:
    assert cider_d([["a tone"], ["a noise"]], ["a", "a"]) == 0.0
    # "a" weighs 0 but "tone" and "a tone" weigh log 2 and are all of their vectors
    assert cider_d([["a tone"], ["a noise"]], ["a tone", "a"]) == pytest.approx(10 * 2 / 4 / 2)


def test_weights_come_from_the_share_of_clips() -> None:
    # three clips; "p" is in two of them: log(3/2); "q" in one: log 3. Candidate "p", reference "p q"
    p, q = math.log(3 / 2), math.log(3)
    expected = 10 * p * p / (p * math.hypot(p, q)) / 4 * math.exp(-1 / 72)
    assert cider_d([["p q"], ["p"], ["x"]], ["p", "zzz", "zzz"]) == pytest.approx(expected / 3)


def test_several_references_are_averaged() -> None:
    one = cider_d([["p q r s", "u v w z"], ["x"]], ["p q r s", "zzz"])
    assert one == pytest.approx(10 * 1 / 2 / 2)


def test_a_single_clip_has_no_consensus_to_compare_with() -> None:
    assert cider_d([["a b c d"]], ["a b c d"]) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(caption, min_size=1, max_size=3), caption), min_size=1, max_size=4))
def test_is_between_zero_and_ten_and_the_order_of_clips_and_references_does_not_matter(pairs) -> None:
    references, candidates = [list(texts) for texts, _ in pairs], [text for _, text in pairs]
    score = cider_d(references, candidates)
    assert -1e-12 <= score <= 10.0 + 1e-9
    assert cider_d([texts[::-1] for texts in references[::-1]], candidates[::-1]) == pytest.approx(score)


def test_what_cannot_be_judged() -> None:
    for references, candidates in (([["a"]], []), ([], []), ([[]], ["a"]), (["a"], ["a"])):
        with pytest.raises(ValueError, match="expected"):
            cider_d(references, candidates)
