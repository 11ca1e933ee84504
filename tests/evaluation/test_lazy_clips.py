"""Clips of an evaluation are read when they are needed, and only some of them stay in memory."""

import numpy as np

from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation.lazy_clips import Clips


def test_clips_are_read_when_they_are_needed() -> None:
    class Counting(ToySounds):
        """Toy sounds that count how often they are read."""

        reads = 0

        def load(self, index: int) -> tuple[np.ndarray, int]:
            self.reads += 1
            return super().load(index)

    data = Counting(size=6)
    size = data.load(0)[0].nbytes
    whole, few = Clips(data, range(6)), Clips(data, range(6), kept_bytes=2 * size)
    data.reads = 0
    for _ in range(3):
        assert len(list(whole)) == 6
    assert data.reads == 6
    for _ in range(3):
        assert len(list(few)) == 6 and few._bytes <= 2 * size
    assert data.reads == 6 + 18
    chosen = few.at([5, 3])
    assert [np.array_equal(chosen[i].waveform, ToySounds.load(data, k)[0]) for i, k in ((0, 5), (1, 3), (-1, 3))] == [True] * 3
    assert len(chosen) == 2 and len(chosen[:5]) == 2
