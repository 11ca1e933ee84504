"""Several ranks of a run as threads of one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class OneRank:
    """A run with one process."""

    def sum(self, values):
        return values

    def gather(self, values):
        return [values]


class _Rank:
    """One of the ranks; all of them must make the same calls in the same order."""

    def __init__(self, index, shelf, barrier):
        self.index, self.shelf, self.barrier = index, shelf, barrier

    def gather(self, values):
        self.shelf[self.index] = values
        self.barrier.wait(timeout=20)
        everyone = list(self.shelf)
        self.barrier.wait(timeout=20)
        return everyone

    def sum(self, values):
        return torch.stack(self.gather(values.clone())).sum(0)


def on_ranks(work, count):
    """Calls `work(rank index, ranks)` on `count` ranks at once, and returns their results."""
    shelf, barrier = [None] * count, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, index, _Rank(index, shelf, barrier)) for index in range(count)]
        return [future.result() for future in futures]
