"""Runs of codes: what they hold, worked by hand and for any codes, what a known beginning leaves open, and what is drawn.

Shape letters: B clips, T frames, N tokens.
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec
from soundomni.flow import Autoregressive, AutoregressiveRuns, NextTokenSampler, SpeculativeSampler
from soundomni.flow.runs import collapse, expand, frames_before

SPEC = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=(3,))
E, H = EMPTY, HIDDEN


def clips(*rows, size=3, padding=0):
    spec, lengths = replace(SPEC, codebook_sizes=(size,)), tuple(map(len, rows))
    values = torch.zeros(len(rows), 1, max(lengths) + padding, dtype=torch.int64)
    for clip, row in enumerate(rows):
        values[clip, 0, : len(row)] = torch.tensor(row)
    return Representation(values, torch.tensor(lengths), spec, lengths)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + clip) for clip in range(count)]


def first_frames(clean, *counts):
    return torch.arange(clean.values.shape[-1]) < torch.tensor(counts)[:, None]


def corrupt(objective, clean, *known):
    every = torch.ones(len(clean.values), dtype=torch.bool)
    known = first_frames(clean, *(known or [0] * len(clean.values)))
    return objective.corrupt(clean, known=known, noise=every, generators=generators(len(clean.values)))


CODES = st.integers(2, 4).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.lists(st.integers(0, size - 1), min_size=1), min_size=1))
)


@settings(max_examples=150, deadline=None)
@given(codes=CODES, longest=st.integers(1, 5), padding=st.integers(0, 3))
def test_any_codes_come_back_from_their_runs(codes, longest, padding):
    size, rows = codes
    clean = clips(*rows, size=size, padding=padding)
    runs, counts = collapse(clean.values[:, 0], clean.lengths, longest)
    found, lengths = expand(runs, counts, longest)
    assert lengths.tolist() == list(map(len, rows)) == frames_before(runs, counts, longest).tolist()
    for clip, row in enumerate(rows):
        assert found[clip, : len(row)].tolist() == row and not found[clip, len(row) :].any()
        own, count = runs[clip].tolist(), int(counts[clip])
        assert own[count:] == [E] * (len(own) - count) and all(0 <= run < size * longest for run in own[:count])
        pairs = pairwise(own[:count])
        assert all(before // longest != after // longest or before % longest == longest - 1 for before, after in pairs), "no run divided"
    objective = AutoregressiveRuns(longest=longest)
    tokens = objective.start(clean, first_frames(clean, *map(len, rows)), generators(len(rows)))
    made = objective.made(tokens)
    assert made.spec == clean.spec and made.frame_counts == clean.frame_counts and not (tokens.values == HIDDEN).any()
    assert torch.equal(made.values, found[:, None])


def test_runs_worked_by_hand():
    """With runs of at most two frames, 0 0 0 2 is 0 twice, 0 once, 2 once; the end is class 6."""
    objective, clean = AutoregressiveRuns(longest=2), clips([0, 0, 0, 2], [1, 1])
    query = corrupt(objective, clean)
    assert query.targets.tolist() == [[[1, 0, 4, 6, H]], [[3, 6, H, H, H]]]
    assert query.inputs.tolist() == [[[H, 1, 0, 4, 6]], [[H, 3, 6, H, H]]] == objective.given(clean).tolist()
    assert query.levels == (7,) and objective.tokens(SPEC).inputs == (7,) and query.frames.tolist() == [5, 3]


@pytest.mark.parametrize(
    ("known", "start", "targets"),
    [
        (0, [H, H, H, H, 6], [1, 0, 4, 6, H]),
        (1, [H, H, H, H, 6], [1, 0, 4, 6, H]),  # the first run is cut: its code is known
        (2, [1, H, H, 6, E], [H, 0, 4, 6, H]),  # a run of two frames cannot go on
        (3, [1, H, H, 6, E], [H, 0, 4, 6, H]),
        (4, [1, 0, 4, 6, E], [H, H, 4, 6, H]),
    ],
)
def test_a_known_beginning_leaves_open_how_long_its_last_run_is(known, start, targets):
    objective, clean = AutoregressiveRuns(longest=2), clips([0, 0, 0, 2])
    tokens = objective.start(clean, first_frames(clean, known), generators(1))
    assert tokens.values[0, 0].tolist() == start and tokens.frame_counts == (start.index(6) + 1,)
    query = corrupt(objective, clean, known)
    assert query.targets[0, 0].tolist() == targets and query.frames.tolist() == [5 - known]
    assert objective.num_terms(SPEC, 4 - known) == 5 - known


def table(classes, places, seed=0):
    """Logits that depend on the place and on the run before it."""
    after = torch.randn(places, classes + 1, classes, generator=torch.Generator().manual_seed(seed))

    def predict(values, timesteps, *, first=0):
        place = torch.as_tensor(first).reshape(-1, 1) + torch.arange(values.shape[2])
        return after[place, values[:, 0] + 1].transpose(1, 2)

    return predict


def exact(objective, prefix, frames, predict):
    """The probability of every clip that begins with `prefix`, by the chain rule over its runs in float64."""
    size, longest = SPEC.codebook_sizes[0], objective.longest
    end = size * longest
    found = Counter()

    def go_on(runs, share):
        so_far = sum(run % longest + 1 for run in runs)
        shown = torch.tensor([[[HIDDEN, *runs]]])
        scores = predict(shown, torch.ones(1))[0, :, -1].double()
        codes = [run // longest for run in runs for _ in range(run % longest + 1)]
        able = [run for run in range(end) if so_far + run % longest < frames]
        known = prefix[so_far:]
        if known:
            able = [run for run in able if fits([run // longest] * (run % longest + 1), known, longest)]
        else:
            able += [end] if so_far else []
        if runs and runs[-1] % longest < longest - 1:  # the next run has another code, or both would be one
            able = [run for run in able if run // longest != runs[-1] // longest]
        shares = scores[able].softmax(0).tolist()
        for run, own in zip(able, shares, strict=True):
            if run == end:
                found[tuple(codes)] += share * own
            else:
                go_on([*runs, run], share * own)

    go_on([], 1.0)
    return found


def fits(run, known, longest):
    """Whether a run may come where the clip is known to go on with `known`."""
    least = next((i for i, code in enumerate(known) if code != known[0]), len(known))
    if least < len(known) or least >= longest:
        return run[0] == known[0] and len(run) == min(least, longest)
    return run[0] == known[0] and len(run) >= least


@pytest.mark.parametrize("prefix", [[], [1], [1, 1], [0, 2]])
@pytest.mark.parametrize("sampler", [NextTokenSampler(), SpeculativeSampler(ahead=2)])
def test_clips_follow_the_distribution_of_the_model_given_their_beginning(prefix, sampler):
    draws, frames, objective = 3000, 3, AutoregressiveRuns(longest=2)
    predict = table(7, 6)
    expected = exact(objective, prefix, frames, predict)
    assert sum(expected.values()) == pytest.approx(1.0)
    clean = clips(*[[*prefix, *[0] * (frames - len(prefix))]] * draws)
    start = objective.start(clean, first_frames(clean, *[len(prefix)] * draws), generators(draws))
    made = objective.made(sampler.sample(predict, start, generators=generators(draws)))
    rows = zip(made.values[:, 0].tolist(), made.frame_counts, strict=True)
    drawn = Counter(tuple(row[:count]) for row, count in rows)
    assert set(drawn) <= set(expected) and all(list(clip[: len(prefix)]) == prefix for clip in drawn)
    distance = 0.5 * sum(abs(drawn[clip] / draws - share) for clip, share in expected.items())
    assert distance < 0.07, distance


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    longest=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_a_clip_ends_within_its_length_keeps_its_beginning_and_does_not_depend_on_the_batch(rows, shares, longest, seed):
    objective, clean = AutoregressiveRuns(longest=longest), clips(*rows)
    known = [int(share * len(row)) for share, row in zip(shares, rows, strict=False)]
    predict = table(3 * longest + 1, 12, seed)
    start = objective.start(clean, first_frames(clean, *known), generators(len(rows)))
    tokens = NextTokenSampler().sample(predict, start, generators=generators(len(rows), seed))
    assert not (tokens.values == HIDDEN).any()
    made = objective.made(tokens)
    again = objective.start(made, first_frames(made, *made.frame_counts), generators(len(rows)))
    assert all(torch.equal(one, two) for one, two in zip(_up_to_end(tokens), _up_to_end(again), strict=True)), "no run is divided"
    for clip, (row, count) in enumerate(zip(rows, known, strict=True)):
        frames = made.frame_counts[clip]
        assert max(1, count) <= frames <= len(row)
        assert made.values[clip, 0, :count].tolist() == row[:count]
        own = clips(row)
        alone = objective.start(own, first_frames(own, count), generators(1))
        alone = objective.made(NextTokenSampler().sample(predict, alone, generators=generators(1, seed + clip)))
        assert alone.frame_counts == (frames,) and torch.equal(alone.values[0], made.values[clip, :, :frames])


def _up_to_end(tokens):
    return [clip[0, : int((clip[0] == tokens.end).int().argmax()) + 1] for clip in tokens.values]


def test_the_loss_is_that_of_the_codes_given_the_known_ones():
    """Against the chain rule over runs in float64, of which the first is cut and cannot be shorter than it is."""
    objective, clean = AutoregressiveRuns(longest=4), clips([1, 1, 1, 0, 2, 2], [0, 1, 1])
    query = corrupt(objective, clean, 2, 0)
    logits = torch.randn(2, 13, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, count = objective.loss(logits, query)["autoregressive"]
    nats = -logits.log_softmax(1)
    runs = [[1 * 4 + 2, 0, 2 * 4 + 1, 12], [0, 1 * 4 + 1, 12]]
    expected = sum(float(nats[clip, run, place]) for clip, row in enumerate(runs) for place, run in enumerate(row))
    expected -= float(nats[0, 6, 0]) + float(logits[0, 6, 0] - logits[0, 5:8, 0].logsumexp(0))
    for clip, place, code in [(0, 1, 1), (0, 2, 0), (0, 3, 2), (1, 1, 0), (1, 2, 1)]:  # a short run is not followed by its own code
        expected += float((-nats[clip, :, place]).exp()[[c for c in range(13) if c // 4 != code]].sum().log())
    assert int(count) == (4 + 1) + (3 + 1) and float(total) == pytest.approx(expected, rel=1e-5)
    parts = [objective.loss(logits[clip : clip + 1], query.clip(clip))["autoregressive"] for clip in range(2)]
    assert sum(float(own) for own, _ in parts) == pytest.approx(float(total)) and [int(own) for _, own in parts] == [5, 4]
    logits.requires_grad_()
    objective.loss(logits, query)["autoregressive"][0].backward()
    assert logits.grad[0, [0, 1, 2, 3, 4, 8, 12], 0].abs().max() == 0 and logits.grad.isfinite().all()


def test_with_runs_of_one_frame_it_is_autoregressive():
    clean = clips([1, 1, 0], [2, 2])
    runs, codes = (corrupt(objective, clean, 1, 0) for objective in (AutoregressiveRuns(longest=1), Autoregressive()))
    assert torch.equal(runs.inputs, codes.inputs) and torch.equal(runs.targets, codes.targets)
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    total, count = AutoregressiveRuns(longest=1).loss(logits, runs)["autoregressive"]
    same, number = Autoregressive().loss(logits, codes)["autoregressive"]
    assert torch.equal(total, same) and int(count) == int(number)


def test_wrong_arguments_are_refused_in_one_line():
    with pytest.raises(SpecError, match="longest is 0; expected at least 1"):
        AutoregressiveRuns(longest=0)
    with pytest.raises(SpecError, match="longest is 400000; expected at most 349525, so that there are no more than 1,048,576 runs"):
        AutoregressiveRuns(longest=400000).tokens(SPEC)
    with pytest.raises(SpecError, match="the codec has one code; expected at least 2"):
        AutoregressiveRuns().tokens(replace(SPEC, codebook_sizes=(1,)))
    with pytest.raises(SpecError, match="the codec has 2 levels of codes; expected one level to make runs. Use a codec"):
        AutoregressiveRuns().tokens(replace(SPEC, codebook_sizes=(3, 3)))
    with pytest.raises(ValueError, match="a clip does not end: no token of it is 6"):
        clean = clips([0, 0])
        objective = AutoregressiveRuns(longest=2)
        start = objective.start(clean, first_frames(clean, 0), generators(1))
        objective.made(replace(start, values=torch.zeros_like(start.values)))
