"""Reading of planned samples' clips ahead of time; clips that cannot be read are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from soundomni.core.errors import RejectedAudioError, UnreadableAudioError
from soundomni.core.sequence import Sample
from soundomni.data.batch_planner import Planned
from soundomni.data.mixture import Mixture
from soundomni.data.prepared import Prepared
from soundomni.data.reports import Reports
from soundomni.data.samples import SampleWriter, encoded_part

PendingSample = Callable[[], Sample]
"""Waits for a sample whose clip is being read, and gives it however often it is asked; raises UnreadableAudioError."""


class ClipReader:
    """Reads clips in threads: decoding and resampling release the interpreter.

    A sample whose clip cannot be read, or is rejected by a filter, is left out, named once in the log `soundomni.data`
    and counted; nothing replaces it. Whether there are too many is for the run to decide, which knows the counts of all
    ranks and of the time before it was resumed.

    Args:
        mixture, writer: where clips come from, and how they are written.
        workers: number of threads; 0 reads when a batch is asked for.
    """

    def __init__(self, *, mixture: Mixture, writer: SampleWriter, workers: int) -> None:
        self._mixture = mixture
        self._writer = writer
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="soundomni-read") if workers else None
        self.seen = 0
        self.unreadable = Reports("unreadable", kind="unreadable")
        self.rejected = Reports("rejected")

    def start(self, planned: Sequence[Planned]) -> list[tuple[Planned, PendingSample]]:
        """Begin to read the clips of a batch."""
        if self._threads is None:
            return [(one, _read_when_asked(partial(self._read, one))) for one in planned]
        return [(one, self._threads.submit(self._read, one).result) for one in planned]

    def finish(self, pending: Sequence[tuple[Planned, PendingSample]]) -> list[Sample]:
        """Wait for a batch and return its readable samples in order."""
        samples = []
        for planned, wait in pending:
            self.seen += 1
            try:
                samples.append(wait())
            except RejectedAudioError as error:
                self.rejected.add(planned.draw.key, partial(str, error))
            except UnreadableAudioError as error:
                self.unreadable.add(planned.draw.key, partial(str, error))
        return samples

    def close(self) -> None:
        """End the threads; clips that nobody waits for are not read."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _read(self, planned: Planned) -> Sample:
        dataset, crop = self._mixture.sources[planned.draw.source].dataset, planned.plan.crop
        if isinstance(dataset, Prepared):
            dataset = dataset.drawn(planned.draw.seed)
        if planned.augmenter is not None:
            waveform, rate = planned.augmenter.read(dataset, planned.draw.index, crop, planned.draw.seed)
            sample = self._writer.fill(planned.plan, waveform, rate, cut=True)
            return planned.augmenter.masked(sample, self._writer.feature_dims)
        if dataset.encoding is not None:
            first, count = encoded_part(crop, dataset.encoding.spec)
            values = dataset.load_encoded(planned.draw.index, first=first, num_frames=count)
            return self._writer.fill_encoded(planned.plan, values)
        if crop.num_samples < crop.total:
            waveform, rate = dataset.load_part(planned.draw.index, first=crop.offset, num_samples=crop.num_samples)
            return self._writer.fill(planned.plan, waveform, rate, cut=True)
        waveform, rate = dataset.load(planned.draw.index)
        return self._writer.fill(planned.plan, waveform, rate)


def _read_when_asked(read: Callable[[], Sample]) -> PendingSample:
    """Return a function that reads at its first call, and gives the same sample or error at every other."""
    outcome: Future[Sample] = Future()

    def wait() -> Sample:
        if not outcome.done():
            try:
                outcome.set_result(read())
            except UnreadableAudioError as error:
                outcome.set_exception(error)
        return outcome.result()

    return wait
