"""Streaming packing: nothing lost, budgets kept, exact resumption, and the fill that is promised."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.data.packer import StreamPacker, best_subset

BUDGET = 40
lengths_of = st.lists(st.integers(1, BUDGET), max_size=80)
lookaheads = st.integers(1, 20)


@dataclass(frozen=True)
class Piece:
    name: int
    length: int


def pieces(lengths):
    return [Piece(i, int(length)) for i, length in enumerate(lengths)]


def pack_all(packer, stream):
    return list(iter(lambda: packer.next_batch(stream), []))


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_of, lookahead=lookaheads)
def test_every_sample_appears_once_within_the_budget(lengths, lookahead):
    batches = pack_all(StreamPacker(budget=BUDGET, lookahead=lookahead), iter(pieces(lengths)))
    assert sorted(piece.name for batch in batches for piece in batch) == list(range(len(lengths)))
    assert all(sum(piece.length for piece in batch) <= BUDGET for batch in batches)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_of, lookahead=lookaheads, stop=st.integers(0, 20))
def test_a_packer_made_from_the_pool_goes_on_exactly(lengths, lookahead, stop):
    whole = pack_all(StreamPacker(budget=BUDGET, lookahead=lookahead), iter(pieces(lengths)))
    stream = iter(pieces(lengths))
    first = StreamPacker[Piece](budget=BUDGET, lookahead=lookahead)
    before = [batch for batch in (first.next_batch(stream) for _ in range(stop)) if batch]
    resumed = StreamPacker(budget=BUDGET, lookahead=lookahead, pool=first.pool)
    assert before + pack_all(resumed, stream) == whole


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, BUDGET), min_size=1, max_size=80), lookahead=lookaheads)
def test_no_sample_waits_for_more_than_lookahead_batches(lengths, lookahead):
    drawn = []
    stream = iter([drawn.append(piece) or piece for piece in pieces(lengths)])
    packer = StreamPacker[Piece](budget=BUDGET, lookahead=lookahead)
    entered: dict[int, int] = {}
    for batch_number in itertools.count():
        batch = packer.next_batch(stream)
        if not batch:
            break
        for piece in packer.pool:
            entered.setdefault(piece.name, batch_number)
        for piece in batch:
            assert batch_number - entered.get(piece.name, batch_number) <= lookahead


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=9), space=st.integers(0, 60))
def test_best_subset_is_the_best_of_all_subsets(lengths, space):
    chosen = best_subset(lengths, space)
    sums = [sum(subset) for n in range(len(lengths) + 1) for subset in itertools.combinations(lengths, n)]
    assert sum(lengths[i] for i in chosen) == max(total for total in sums if total <= space)
    assert chosen == sorted(set(chosen))


def test_best_subset_prefers_the_oldest():
    assert best_subset([5, 5, 5, 10], 10) == [0, 1]


@pytest.mark.parametrize(
    ("budget", "low", "high", "lookahead", "least"),
    [(4096, 20, 300, 64, 0.9999), (4096, 20, 1500, 256, 0.9999), (32768, 100, 16384, 256, 0.999), (4096, 400, 3000, 256, 0.995)],
)
def test_fill(budget, low, high, lookahead, least):
    stream = iter(pieces(np.random.default_rng(0).integers(low, high, 100_000)))
    packer = StreamPacker[Piece](budget=budget, lookahead=lookahead)
    fill = np.mean([sum(piece.length for piece in packer.next_batch(stream)) for _ in range(300)]) / budget
    assert fill >= least


@pytest.mark.parametrize("length", [0, BUDGET + 1])
def test_samples_that_cannot_be_packed_are_refused_loudly(length):
    with pytest.raises(ValueError, match=f"{length} tokens does not fit a budget of {BUDGET}"):
        StreamPacker(budget=BUDGET, lookahead=2).next_batch(iter([Piece(0, length)]))


def test_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        StreamPacker(budget=0, lookahead=1)
    with pytest.raises(ValueError, match="at least 1"):
        StreamPacker(budget=1, lookahead=0)
