"""A packed batch as a spec's data would give it, made of equal clips and texts, so that nothing has to be read or
downloaded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Item, Skip
from soundomni.core.sequence import NO_LABEL, Conditioned, Role, Sample, Segment, SegmentTable, find_conditioned
from soundomni.core.spec.schema import DataSpec, DropoutSpec, MixtureEntry, ModelSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.tasks import Task, find_task
from soundomni.data.data_section import check_data
from soundomni.data.samples import PlannedSample, SampleWriter

SECONDS, TEXT_TOKENS = 10.0, 16
"""Length of a clip without a limit in the spec, and of a caption, a question or an answer."""


@dataclass(frozen=True)
class ClipSizes:
    """Clips of one modality: samples, frames and tokens of each, whether each is to be made, and to what the last ones are added."""

    samples: tuple[int, ...]
    frames: tuple[int, ...]
    tokens: tuple[int, ...]
    noise: tuple[bool, ...]
    added_to: tuple[tuple[str, int], ...] = ()

    @property
    def padded_samples(self) -> int:
        """Number of samples in all waveforms, one channel, padded to the longest."""
        return len(self.samples) * max(self.samples, default=0)


@dataclass(frozen=True)
class BatchSizes:
    """A packed batch without its contents.

    Args:
        table: its segments.
        num_labels: number of text tokens that are predicted.
        clips: the clips of each modality that the batch has, by its name.
        samples: number of samples of each task.
        seconds: length of the longest clip.
        text_tokens: tokens of each text.
        conditioned: as in PackedBatch.
    """

    table: SegmentTable
    num_labels: int
    clips: dict[str, ClipSizes]
    samples: dict[str, int]
    seconds: float
    text_tokens: int
    conditioned: tuple[Conditioned, ...] = ()

    def sizes(self, modality: str) -> ClipSizes:
        """Return the clips of a modality, none if the batch has none."""
        return self.clips.get(modality, ClipSizes((), (), (), ()))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all samples."""
        return self.table.num_tokens

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sample."""
        return int(np.bincount(self.table.document, weights=self.table.length).max())

    @classmethod
    def of(cls, samples: Sequence[Sample], *, tasks: dict[str, int], seconds: float, text_tokens: int) -> BatchSizes:
        """Return the sizes of samples whose clips need not have been read."""
        segments = [segment for sample in samples for segment in sample.segments]
        labels = [segment.labels for segment in segments if segment.labels is not None]

        placed: dict[str, list[Segment]] = {}
        added: dict[str, list[tuple[Segment, tuple[str, int]]]] = {}
        for segment in (one for one in segments if one.role != Role.TEXT):
            own = placed.setdefault(segment.modality, [])
            for other in segment.aligned:
                added.setdefault(other.modality, []).append((other, (segment.modality, len(own))))
            own.append(segment)

        def clips(name: str) -> ClipSizes:
            rest = added.get(name, [])
            chosen = [*placed.get(name, []), *(segment for segment, _ in rest)]
            return ClipSizes(
                samples=tuple(segment.num_samples for segment in chosen),
                frames=tuple(segment.num_frames for segment in chosen),
                tokens=tuple(segment.num_tokens for segment in chosen),
                noise=tuple(segment.is_made for segment in chosen),
                added_to=tuple(host for _, host in rest),
            )

        return cls(
            table=SegmentTable.from_samples([sample.segments for sample in samples]),
            num_labels=sum(int((one != NO_LABEL).sum()) for one in labels),
            clips={name: clips(name) for name in [*placed, *(name for name in added if name not in placed)]},
            samples=tasks,
            seconds=seconds,
            text_tokens=text_tokens,
            conditioned=find_conditioned([sample.segments for sample in samples]),
        )


def typical_batch(
    model: UnifiedModel, spec: ModelSpec, data: DataSpec, *, seconds: float | None = None, text_tokens: int = TEXT_TOKENS
) -> BatchSizes:
    """Fill the token budget with samples of all tasks, in the proportions of their weights.

    Args:
        model: determines the tokens of a clip; it may be on the meta device.
        spec: spec of the model.
        data: budget, datasets and their tasks.
        seconds: length of every clip; None means `clips.seconds` or `max_seconds` of its dataset, or SECONDS if neither
            is given. Clips are shorter if encoder or latent connector accept no more, or if a sample would be longer
            than `max_tokens_per_sample`.
        text_tokens: tokens of every caption, question and answer.

    Raises:
        SpecError: there is no dataset, or no sample fits.
    """
    # as in a run, except that it leaves out no conditions and writes bytes as tokens
    no_dropout = DropoutSpec(text=0.0, latent=0.0, features=0.0)
    writer = SampleWriter(segment_writer(model, spec, tokenizer=TextTokenizer.train([], vocab_size=0)), dropout=no_dropout)
    planned: dict[str, tuple[float, Sample, float]] = {}
    limit = data.max_tokens_per_sample or data.tokens_per_batch
    for name, entry, task, weight in _uses(data):
        writer.check(task)
        longest = seconds or entry.longest_seconds or SECONDS
        sample, taken = _longest_sample(writer, model.made().sample_rate, task, longest, text_tokens, limit)
        planned[f"{name}/{task.name}"] = (weight, sample, taken)
    if not planned:
        removed = ", ".join(f"'{name}'" for name in data.datasets)
        given = f"{removed} set to null" if removed else "none given"
        raise SpecError(f"data.datasets has no dataset to draw from ({given}); expected at least one")
    chosen: list[Sample] = []
    counts = dict.fromkeys(planned, 0)
    left = data.tokens_per_batch
    while True:  # the task that is furthest behind its share comes next
        fitting = [key for key, (_, sample, _) in planned.items() if sample.length <= left]
        if not fitting:
            break
        key = min(fitting, key=lambda key: (counts[key] + 1) / planned[key][0])
        counts[key] += 1
        chosen.append(planned[key][1])
        left -= planned[key][1].length
    longest_taken = max(taken for _, _, taken in planned.values())
    return BatchSizes.of(chosen, tasks=counts, seconds=longest_taken, text_tokens=text_tokens)


def _uses(data: DataSpec) -> Iterator[tuple[str, MixtureEntry, Task, float]]:
    """Yield the tasks of all datasets that are ever drawn, with their shares."""
    known = check_data(data)
    for name, entry in data.datasets.items():
        if entry is None or entry.weight <= 0:
            continue
        total = sum(entry.tasks.values())
        for task, weight in entry.tasks.items():
            if weight > 0:
                yield name, entry, find_task(task, known), entry.weight * weight / total


def _longest_sample(writer: SampleWriter, rate: int, task: Task, seconds: float, text_tokens: int, limit: int) -> tuple[Sample, float]:
    """Return a sample with a clip of `seconds` at `rate`, or the longest one that `limit` tokens hold, and the clip's
    length."""

    def written(num_samples: int) -> PlannedSample | Skip:
        # the tokenizer writes a space before a text, and a token for each byte
        text = "a" * max(0, text_tokens - 1)
        item = Item(key="clip", num_samples=num_samples, sample_rate=rate, captions=(text,), questions=((text, text),))
        return writer.plan(item, task, seed=0, key="clip")

    def length(num_samples: int) -> int:
        planned = written(num_samples)
        return limit + 1 if isinstance(planned, Skip) else planned.length

    longest = written(bisect_right(range(1, int(rate * seconds) + 1), limit, key=length) or 1)
    if isinstance(longest, Skip):
        raise SpecError(f"no clip suits task '{task.name}': {longest.reason}")
    if longest.length <= limit:
        return longest.sample, longest.crop.num_samples / rate
    raise SpecError(
        f"no sample of task '{task.name}' fits into {limit} tokens; one with {text_tokens} tokens per text needs "
        f"{longest.length}; raise data.max_tokens_per_sample or data.tokens_per_batch"
    )
