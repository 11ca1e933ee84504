"""Packing, offline and streaming: `OMP_NUM_THREADS=1 pytest benchmarks/bench_packing.py`.

Offline: one million lengths, against best-fit decreasing with one sample at a time over a sorted list of spaces; the
bins of both must have the same loads before a timing counts. Streaming: fill and speed of a pool, against a greedy
buffer that drops samples once it is full.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from soundomni.data import StreamPacker, pack_offline

SAMPLES = 1_000_000
STREAMED = 50_000


@dataclass(frozen=True, slots=True)
class Piece:
    length: int


def lengths_of(budget: int, count: int) -> np.ndarray:
    """Return lengths from a gamma distribution, with a mean of 100 for a budget of 4096 and 1000 for 32768."""
    mean = {4096: 100, 32768: 1000}[budget]
    drawn = np.random.default_rng(0).gamma(5, mean / 5, count)
    return np.clip(drawn, 10, budget).astype(np.int64)


def sorted_list_bfd(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Return the bins of best-fit decreasing, one sample at a time, over a sorted list of (space, bin)."""
    spaces: list[tuple[int, int]] = []
    bins = np.empty(len(lengths), dtype=np.int64)
    count = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        place = bisect_left(spaces, (length, -1))
        space, number = spaces.pop(place) if place < len(spaces) else (budget, count)
        count = max(count, number + 1)
        bins[i] = number
        if space > length:
            insort(spaces, (space - length, number))
    return bins


def greedy_buffer(stream: Iterator[Piece], budget: int, lookahead: int) -> tuple[list[int], int]:
    """Pack samples in order; those that do not fit wait in a buffer, or are dropped if it is full."""
    fills, buffer, dropped, used = [], [], 0, 0
    for piece in stream:
        if used + piece.length <= budget:
            used += piece.length
        elif len(buffer) < lookahead:
            buffer.append(piece)
        else:
            dropped += 1
        if used > 0.95 * budget or len(buffer) == lookahead:
            fills.append(used)
            used = 0
            waiting, buffer = buffer, []
            for one in waiting:
                if used + one.length <= budget:
                    used += one.length
                else:
                    buffer.append(one)
    return fills, dropped


@pytest.mark.parametrize("budget", [4096, 32768])
@pytest.mark.parametrize("packer", [pack_offline, sorted_list_bfd])
def test_pack_offline(benchmark: Any, packer: Callable[[np.ndarray, int], np.ndarray], budget: int) -> None:
    """Measure sequences per second, and bins relative to the bound ceil(tokens / budget)."""
    few = lengths_of(budget, 20_000)
    ours, theirs = (np.sort(np.bincount(pack(few, budget), weights=few)) for pack in (pack_offline, sorted_list_bfd))
    np.testing.assert_array_equal(ours, theirs)
    lengths = lengths_of(budget, SAMPLES)
    bins = benchmark.pedantic(packer, (lengths, budget), rounds=3, warmup_rounds=1)
    loads = np.bincount(bins, weights=lengths)
    assert loads.max() <= budget and loads.sum() == lengths.sum()
    benchmark.extra_info["sequences_per_second"] = SAMPLES / benchmark.stats.stats.min
    benchmark.extra_info["bins_over_bound"] = len(loads) / np.ceil(lengths.sum() / budget)
    if packer is pack_offline:
        assert benchmark.extra_info["bins_over_bound"] <= 1.001


@pytest.mark.parametrize("budget", [4096, 32768])
@pytest.mark.parametrize("lookahead", [64, 256, 4096])
def test_pack_stream(benchmark: Any, budget: int, lookahead: int) -> None:
    """Measure samples per second, and the fill while the stream lasts; nothing may be dropped."""
    lengths = lengths_of(budget, STREAMED).tolist()

    def run() -> list[list[Piece]]:
        packer = StreamPacker[Piece](budget=budget, lookahead=lookahead)
        stream = iter([Piece(length) for length in lengths])
        return list(iter(lambda: packer.next_batch(stream), []))

    batches = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert sorted(piece.length for batch in batches for piece in batch) == sorted(lengths)
    fills = [sum(piece.length for piece in batch) / budget for batch in batches]
    steady = fills[: max(1, len(fills) - lookahead)]
    benchmark.extra_info["samples_per_second"] = STREAMED / benchmark.stats.stats.min
    benchmark.extra_info["fill"] = float(np.mean(steady))
    assert lookahead < 256 or np.mean(steady) >= 0.995


@pytest.mark.parametrize("budget", [4096, 32768])
def test_greedy_buffer(benchmark: Any, budget: int) -> None:
    """Measure the peer of the streaming packer: its fill, and how many samples it drops."""
    lengths = lengths_of(budget, STREAMED).tolist()
    fills, dropped = benchmark.pedantic(lambda: greedy_buffer(iter([Piece(x) for x in lengths]), budget, 50), rounds=3)
    benchmark.extra_info["fill"] = float(np.mean(fills)) / budget
    benchmark.extra_info["dropped"] = dropped
