"""Guessing ahead: whatever the draft guesses, clips follow the model's distribution, and take fewer predictions.

Shape letters: B clips, K levels, N tokens, P classes of all levels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokens import distance, exact, generators, start_of, table

from soundomni.core.errors import SpecError
from soundomni.core.inference.places_ahead import PlacesAhead
from soundomni.core.representation import EMPTY, HIDDEN
from soundomni.flow import NextTokenSampler, PromptLookup, SpeculativeSampler
from soundomni.flow.speculative import accepted

ORDERS = ("flat", "levels", "delay", "frames")
DRAWS = 2000
SIZES, FRAMES = (2, 2), 2


class Counted:
    """A prediction that counts its calls."""

    def __init__(self, predict):
        self.calls = 0
        self._predict = predict

    def __call__(self, values, timesteps, *, first=0):
        self.calls += 1
        return self._predict(values, timesteps, first=first)


def model_draft(predict, start):
    """A draft that guesses what a prediction says."""
    ask = PlacesAhead(predict, start.values, 1.0)
    return lambda values, tokens: ask(values, tokens)[..., 0]


def blind_draft(classes):
    """A draft that guesses from logits of its own, level by level, and sometimes not at all."""
    logits = 2 * torch.randn(sum(classes), generator=torch.Generator().manual_seed(5))

    def guess(values, tokens):
        found = logits.repeat(len(values), 1)
        found[tokens % 3 == 2, : classes[0]] = -torch.inf
        return found

    return guess


def drafts(order, start):
    """Each kind of draft by its name."""
    classes = start.spec.codebook_sizes
    return {
        "perfect": model_draft(table(order, SIZES, FRAMES), start),
        "other": model_draft(table(order, SIZES, FRAMES, seed=1), start),
        "blind": blind_draft(classes),
        "lookup": None,
        "wrong": lambda values, tokens: torch.zeros(len(values), sum(classes)).index_fill_(1, torch.tensor([0, 3]), -torch.inf),
    }


@pytest.mark.parametrize("kind", ["perfect", "other", "blind", "lookup", "wrong"])
@pytest.mark.parametrize("order", ORDERS)
def test_clips_follow_the_distribution_of_the_model_whatever_the_draft_guesses(order, kind):
    predict = table(order, SIZES, FRAMES)
    start = start_of(order, SIZES, *[FRAMES] * DRAWS)
    tokens = SpeculativeSampler(ahead=3).sample(predict, start, generators=generators(DRAWS), draft=drafts(order, start)[kind])
    assert distance(order, tokens, exact(order, SIZES, FRAMES, predict)) < 0.06


@settings(max_examples=50, deadline=None)
@given(
    target=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    draft=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    certain=st.booleans(),
)
def test_kept_and_redrawn_codes_amount_to_the_distribution_of_the_model(target, draft, certain):
    p, q = (torch.tensor(one, dtype=torch.float64) + 1e-3 for one in (target, draft))
    p, q = p / p.sum(), q / q.sum()
    if certain:
        q = torch.nn.functional.one_hot(q.argmax(), 4).double()
    guess = torch.tensor([0, 1, 2, 3, HIDDEN])
    shares = torch.stack([q, q, q, q, torch.zeros(4, dtype=torch.float64)])
    weights = accepted(p.expand(5, 4), shares, guess)
    np.testing.assert_allclose(weights.sum(1)[q[[0, 1, 2, 3, 3]] > 0], 1.0)
    np.testing.assert_allclose((q[:, None] * weights[:4]).sum(0), p)
    np.testing.assert_allclose(weights[4], p)
    kept = sum(float(q[i] * weights[i, i]) for i in range(4))
    assert kept == pytest.approx(float(torch.minimum(p, q).sum())), "no way of keeping guesses keeps more of them"
    if certain:
        np.testing.assert_allclose(weights[int(q.argmax())], p)


LONG = (3, 2)
SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "repetition_window": 2},
    {"temperature": 0.7, "top_k": 0.6, "top_p": 0.9, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("arguments", SETTINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_certain_guesses_and_greedy_choices_give_the_clips_of_next_token_bit_for_bit(order, arguments):
    predict, start = table(order, LONG, 7), start_of(order, LONG, 7, 3, 6, 7, known=(0, 2, 1, 3))
    expected = NextTokenSampler(**arguments).sample(predict, start, generators=generators(4))
    given = [None]
    if arguments.get("temperature") == 0.0:
        given += [model_draft(predict, start), model_draft(table(order, LONG, 7, seed=3), start), blind_draft(start.spec.codebook_sizes)]
    for draft in given:
        for ahead in (1, 4, 50):
            made = SpeculativeSampler(ahead=ahead, **arguments).sample(predict, start, generators=generators(4), draft=draft)
            assert torch.equal(made.values, expected.values) and made.frame_counts == expected.frame_counts


@pytest.mark.parametrize("order", ORDERS)
def test_a_clip_does_not_depend_on_the_others_and_keeps_what_is_known(order):
    predict, frames, known = table(order, LONG, 7), (7, 3, 6, 7), (0, 2, 1, 3)
    start = start_of(order, LONG, *frames, known=known)
    other = table(order, LONG, 7, seed=3)
    sampler = SpeculativeSampler(temperature=1.2, top_p=0.95)
    together = sampler.sample(predict, start, generators=generators(4), draft=model_draft(other, start))
    fixed = (start.values >= 0) & (together.values != EMPTY)
    assert torch.equal(together.values[fixed], start.values[fixed])
    assert not (together.values == HIDDEN).any()
    for clip, (count, length) in enumerate(zip(known, frames, strict=True)):
        alone = start_of(order, LONG, length, known=(count,))
        made = sampler.sample(predict, alone, generators=[generators(4)[clip]], draft=model_draft(other, alone))
        assert made.frame_counts[0] == together.frame_counts[clip]
        assert torch.equal(made.values[0, :, : made.frame_counts[0]], together.values[clip, :, : made.frame_counts[0]])


@pytest.mark.parametrize("order", ORDERS)
def test_good_guesses_save_predictions_and_bad_ones_cost_none(order):
    model, start = table(order, LONG, 12), start_of(order, LONG, 12)

    def endless(values, timesteps, *, first=0):
        return model(values, timesteps, first=first).index_fill(1, torch.tensor([LONG[0]]), -torch.inf)

    def calls(sampler, **given):
        counted = Counted(endless)
        sampler.sample(counted, start, generators=generators(1), **given)
        return counted.calls

    every = int((start.values == HIDDEN).any(1).sum())
    assert calls(NextTokenSampler()) == every <= NextTokenSampler().count_steps(start)
    for ahead in (1, 3, 100):
        sampler = SpeculativeSampler(ahead=ahead)
        assert calls(sampler, draft=model_draft(endless, start)) == -(-every // (ahead + 1)), "each call settles a token more than guessed"
        wrong = lambda values, tokens: torch.full((len(values), sum(LONG) + 1), -torch.inf)  # noqa: E731
        assert calls(sampler, draft=wrong) == every


def test_what_came_before_is_looked_up_by_most_tokens_then_by_own_level_then_latest():
    rows = [[0, 1, 2, 0, 1, 2, 2, 0, 1, HIDDEN], [3, 3, 4, 3, 3, 5, 3, 3, 3, HIDDEN], [HIDDEN] * 10]
    values, tokens = torch.tensor([rows, rows]), torch.tensor([9, 5])
    logits = PromptLookup((3, 6, 2), compared=3)(values, tokens).split((3, 6, 2), 1)
    guesses = [[int(one.argmax()) if (one == 0).any() else None for one in row] for row in zip(*logits, strict=True)]
    assert guesses == [[2, 5, None], [2, 4, None]], "0 1 was followed by 2, and 3 3 with it by 5 and 4"
    assert all(int((one == 0).sum()) <= len(one) for one in logits)
    flat = torch.tensor([[[0, EMPTY, 1, EMPTY, 0, EMPTY, 1, EMPTY], [EMPTY, 4, EMPTY, 5, EMPTY, 4, EMPTY, HIDDEN]]])
    assert int(PromptLookup((3, 6), compared=2)(flat, torch.tensor([7]))[0, 3:].argmax()) == 5
    assert not (PromptLookup((3,), compared=2)(torch.full((1, 1, 4), HIDDEN), torch.tensor([0])) == 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ahead": 0}, "ahead is 0; expected at least 1"),
        ({"compared": 0}, "compared is 0; expected at least 1"),
        ({"ahead": 1000}, "ahead is 1000; expected at most 256"),
        ({"compared": 1000}, "compared is 1000; expected at most 256"),
        ({"top_k": 1.5}, "top_k is 1.5; expected a whole number of codes from 1 on, or a share"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments, message):
    with pytest.raises(SpecError, match=message):
        SpeculativeSampler(**arguments)
