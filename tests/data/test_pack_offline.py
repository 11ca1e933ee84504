"""The fast best-fit decreasing against the textbook one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.data.best_fit import pack_offline


def textbook_loads(lengths, budget):
    """Best-fit decreasing by looking at every bin; returns the sorted loads."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=spaces.__getitem__)] -= length
        else:
            spaces.append(budget - length)
    return sorted(budget - space for space in spaces)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), budget=st.integers(1, 60))
def test_equals_the_textbook(data, budget):
    lengths = data.draw(st.lists(st.integers(1, budget), max_size=60))
    bins = pack_offline(np.asarray(lengths, dtype=np.int64), budget)
    assert bins.shape == (len(lengths),) and bins.dtype == np.int64
    if lengths:
        loads = np.bincount(bins, weights=lengths)
        assert sorted(loads.tolist()) == textbook_loads(lengths, budget)
        assert set(bins.tolist()) == set(range(bins.max() + 1))


@pytest.mark.parametrize("budget", [4096, 70_000])
def test_many_samples_are_within_a_thousandth_of_the_bound(budget):
    lengths = np.random.default_rng(0).gamma(2, budget / 50, 100_000).astype(np.int64) + 1
    lengths = np.minimum(lengths, budget)
    bins = pack_offline(lengths, budget)
    loads = np.bincount(bins, weights=lengths)
    assert loads.max() <= budget and loads.sum() == lengths.sum()
    assert len(loads) <= 1.001 * np.ceil(lengths.sum() / budget)


@pytest.mark.parametrize("length", [0, 11])
def test_lengths_out_of_range(length):
    with pytest.raises(ValueError, match="expected 1 to the budget, 10"):
        pack_offline(np.asarray([5, length]), 10)
