"""Drawing token after token: exactness against a known distribution, and what each setting leaves, worked by hand.

Shape letters: B clips, K levels, N tokens.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_tokens import distance, exact, generators, start_of, table

from soundomni.core.errors import SpecError
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec
from soundomni.flow import Autoregressive, NextTokenSampler, next_token

DRAWS = 2000


@pytest.mark.parametrize("order", ["flat", "levels", "delay", "frames"])
def test_clips_follow_the_distribution_of_the_model_and_of_their_lengths(order):
    sizes, frames = (2, 2), 2
    predict = table(order, sizes, frames)
    expected = exact(order, sizes, frames, predict)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-5) and len(expected) == 4 + 16
    tokens = NextTokenSampler().sample(predict, start_of(order, sizes, *[frames] * DRAWS), generators=generators(DRAWS))
    assert distance(order, tokens, expected) < 0.06


def draws(logits, **settings):
    """The shares of the codes of one level that are drawn from constant logits `[V]`; the end never is."""
    scores = torch.cat([torch.tensor(logits), torch.tensor([-1e9])])
    start = start_of("frames", (len(logits),), *[1] * 2000)
    predict = lambda values, timesteps, *, first=0: scores[None, :, None].expand(len(values), -1, values.shape[2])  # noqa: E731
    made = NextTokenSampler(**settings).sample(predict, start, generators=generators(2000)).values[:, 0, 0]
    return (torch.bincount(made, minlength=len(logits)) / 2000).tolist()


def test_settings_cut_and_sharpen_the_distribution():
    shares = np.asarray([0.4, 0.3, 0.2, 0.1])
    logits = np.log(shares).astype(np.float32).tolist()
    for settings, left in (
        ({}, shares),
        ({"temperature": 0.5}, shares**2),
        ({"top_k": 2}, shares * [1, 1, 0, 0]),
        ({"top_k": 0.3}, shares * [1, 1, 0, 0]),  # ceil(0.3 · 5): the end is a class too
        ({"top_p": 0.75}, shares * [1, 1, 1, 0]),
        ({"temperature": 0.0}, shares * [1, 0, 0, 0]),
    ):
        np.testing.assert_allclose(draws(logits, **settings), left / left.sum(), atol=0.04, err_msg=str(settings))


@pytest.mark.parametrize(("window", "expected"), [(None, [0, 1, 2, 0, 0]), (1, [0, 1, 0, 1, 0])])
def test_codes_of_the_last_tokens_are_penalized(window, expected):
    """Logits 3, 2.9, 2.8, −1; a code that was had counts as 3/2, 1.45, 1.4, −2."""
    logits = torch.tensor([3.0, 2.9, 2.8, -1.0, -9.0])
    predict = lambda values, timesteps, *, first=0: logits[None, :, None].expand(len(values), -1, values.shape[2])  # noqa: E731
    sampler = NextTokenSampler(temperature=0.0, repetition_penalty=2.0, repetition_window=window)
    made = sampler.sample(predict, start_of("frames", (4,), 5), generators=generators(1))
    assert made.values[0, 0].tolist() == [*expected, 4]


def test_levels_are_penalized_apart_and_the_end_never_is():
    scores = torch.tensor([2.0, 1.9, 1.8, 3.0, 2.9])  # level 0: two codes and the end, level 1: two codes
    predict = lambda values, timesteps, *, first=0: scores[None, :, None].expand(len(values), -1, values.shape[2])  # noqa: E731
    made = NextTokenSampler(temperature=0.0, repetition_penalty=1.2).sample(
        predict, start_of("frames", (2, 2), 4), generators=generators(1)
    )
    assert made.values[0].tolist()[1][:2] == [0, 1] and made.values[0, 0].tolist()[:3] == [0, 1, 2], "ended, as both codes were had"
    assert made.frame_counts == (3,)


@pytest.mark.parametrize("order", ["flat", "levels", "delay", "frames"])
@pytest.mark.parametrize("kept", [0, 1, 90, 150])
def test_a_long_known_part_is_shown_in_pieces_that_change_nothing(order, kept, monkeypatch):
    sizes, frames = (3, 2), 160
    predict, asked = table(order, sizes, frames), []
    codes = torch.stack([torch.randint(0, size, (1, frames), generator=torch.Generator().manual_seed(1)) for size in sizes], 1)
    spec = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=sizes)
    given = Representation(codes, torch.tensor([frames]), spec, (frames,))
    start = Autoregressive(order=order).start(given, torch.arange(frames)[None] < kept, generators(1))

    def watched(values, timesteps, *, first=0):
        asked.append((first, values.shape[2]))
        return predict(values, timesteps, first=first)

    made = []
    for most in (40, 10_000):
        monkeypatch.setattr(next_token, "SHOWN_AT_ONCE", most)
        asked.clear()
        made.append(NextTokenSampler().sample(watched, start, generators=generators(1)))
        assert max(count for _, count in asked) <= most
        assert len(asked) <= NextTokenSampler().num_evaluations(start)
        assert [first for first, _ in asked] == [0, *np.cumsum([count for _, count in asked])[:-1]], "every token is shown once"
    assert torch.equal(made[0].values, made[1].values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1; expected a finite number from 0 up"),
        ({"temperature": float("nan")}, "temperature is nan; expected a finite number"),
        ({"top_k": 0}, "top_k is 0; expected a whole number of codes from 1 on, or a share of them, above 0 and at most 1.0"),
        ({"top_k": 1.5}, "top_k is 1.5; expected a whole number of codes from 1 on, or a share"),
        ({"top_p": 0.0}, "top_p is 0; expected a share of the probability, above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0; expected a number above 0"),
        ({"repetition_window": 0}, "repetition_window is 0; expected a number of tokens, at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments, message):
    with pytest.raises(SpecError, match=message):
        NextTokenSampler(**arguments)


def test_a_start_of_another_objective_is_refused():
    spec = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=(3,))
    start = Representation(torch.full((1, 1, 2), HIDDEN), torch.tensor([2]), spec)
    with pytest.raises(TypeError, match="expected the start of an objective that predicts the next token"):
        NextTokenSampler().sample(lambda values, timesteps, *, first=0: values, start, generators=generators(1))


class ByLevel:
    """A prediction whose levels depend on the token before and on the levels below: `PredictLevels`."""

    def __init__(self, sizes, seed=0):
        self.classes = (sizes[0] + 1, *sizes[1:])
        rng = torch.Generator().manual_seed(seed)
        self.before = torch.randn(self.classes[0] + 1, self.classes[1] + 1, sum(self.classes), generator=rng)
        self.below = torch.randn(self.classes[0] + 1, self.classes[1], generator=rng) * 2
        self.asked = []

    def __call__(self, values, timesteps, *, first=0):
        self.asked.append((first, values.shape[2]))
        self.last = self.before[values[:, 0] + 1, values[:, 1] + 1]
        return self.last.transpose(1, 2)

    def level(self, ids, level):
        own = self.last[:, -1].split(self.classes, 1)[level]
        return own + self.below[ids[:, 0] + 1] if level else own


@pytest.mark.parametrize("known", [0, 1])
def test_levels_that_depend_on_those_below_follow_their_joint_distribution(known):
    sizes, frames = (2, 3), 2
    predict, spec = ByLevel(sizes), start_of("frames", sizes, frames).spec
    expected = {}

    def go_on(clip, share):
        predict(torch.tensor([HIDDEN, HIDDEN] if not clip else clip[-1]).reshape(1, 2, 1), torch.ones(1))
        one = torch.full((1, 2), HIDDEN)
        first = predict.level(one, 0)[0].double()
        first = (first if clip else first[:-1]).softmax(0)
        for code, own in enumerate(first.tolist()):
            if code == sizes[0]:
                expected[tuple(clip)] = share * own
                continue
            predict(torch.tensor([HIDDEN, HIDDEN] if not clip else clip[-1]).reshape(1, 2, 1), torch.ones(1))
            for other, also in enumerate(predict.level(torch.tensor([[code, HIDDEN]]), 1)[0].double().softmax(0).tolist()):
                longer = [*clip, (code, other)]
                if len(longer) == frames:
                    expected[tuple(longer)] = share * own * also
                else:
                    go_on(longer, share * own * also)

    go_on([(1, 1)] * known, 1.0)
    assert sum(expected.values()) == pytest.approx(1.0) and spec.codebook_sizes == (3, 3)
    start = start_of("frames", sizes, *[frames] * DRAWS, known=[known] * DRAWS)
    predict.asked.clear()
    tokens = NextTokenSampler().sample(predict, start, generators=generators(DRAWS))
    assert predict.asked == ([(0, 2)] if known else [(0, 1), (1, 1)]), "a token is asked for once, whatever its levels are"
    made = Autoregressive(order="frames").made(tokens)
    drawn = Counter(tuple(map(tuple, one[:, :count].T.tolist())) for one, count in zip(made.values, made.frame_counts, strict=True))
    assert set(drawn) <= set(expected)
    distance = 0.5 * sum(abs(drawn[clip] / DRAWS - share) for clip, share in expected.items())
    assert distance < 0.08, distance
