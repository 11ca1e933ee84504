"""Prepared clips in training: the same bytes on any number of ranks and after a run resumes, known lengths, and balance.

Shape letters: C audio channels, S samples.
"""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError, UnreadableAudioError
from soundomni.core.interfaces import Dataset, Item
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import ClipSpec, DataSpec, MixtureEntry, SegmentTemplate, Slot
from soundomni.core.writing.preparing import prepare
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.balance import repeats
from soundomni.data.clip_usage import describe_clips
from soundomni.data.data_section import check_data
from soundomni.data.held_out_batches import plan_held_out, read_in_turn
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture, Source
from soundomni.data.prefetch import ClipReader
from soundomni.data.prepared import Prepared, unprepared
from soundomni.testing import DatasetSuite

BOTH = {"generate": 1.0, "describe": 1.0}
ONSET = ClipSpec(cut="onset", seconds=0.05, peak=0.9)
RANDOM = ClipSpec(cut="random", seconds=0.03, trim=30.0)
LEVEL = ClipSpec(peak=0.5)


def mixture_of(dataset: Dataset, *, clips: ClipSpec | None = None, **use: Any) -> Mixture:
    prepared = dataset if clips is None else Prepared(dataset, clips)
    return Mixture(sources={"main": Source(**({"dataset": prepared, "tasks": BOTH} | use))}, seed=5)


def of_kinds(ramps: Any, lengths: list[int], **counts: int) -> Any:
    """Clips of these lengths, the first ones with the first name as caption, and so on."""
    names = [name for name, count in counts.items() for _ in range(count)]

    class Kinds(ramps):  # type: ignore[misc]
        def item(self, index: int) -> Item:
            return replace(super().item(index), captions=(names[index],))

    return Kinds(lengths=lengths)


def steps_of(mixture: Mixture, writer: Any, count: int, **arguments: Any) -> list[Any]:
    spec = DataSpec(datasets={}, tokens_per_batch=96, lookahead=8, workers=2)
    with PackedLoader(mixture=mixture, writer=writer, spec=spec, batches_per_step=2, **arguments) as loader:
        return list(islice(loader, count))


def content(batch: Any) -> list[Any]:
    """Everything random about a batch."""
    parts = [batch.keys, batch.text_ids.tolist()]
    for name in ("latent", "features"):
        parts += [batch.of(name).seeds, batch.of(name).waveform.numpy().tobytes()]
    return parts


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.integers(0, 3),
    world_size=st.sampled_from([1, 2]),
    clips=st.sampled_from([ONSET, RANDOM, LEVEL, None]),
    balance=st.sampled_from([1, 5]),
    faster=st.booleans(),
)
def test_a_run_resumes_exactly_on_any_number_of_ranks(
    ramps: Any, make_writer: Any, stop: int, world_size: int, clips: ClipSpec | None, balance: int, faster: bool
) -> None:
    data = of_kinds(ramps, [*range(200, 1500, 70)], a=9, b=6, c=2, d=2)
    speed = {"speed": build("augmentation", Slot("speed", {"factors": [0.7, 1.4]}))} if faster else {}
    mixture = mixture_of(data, clips=clips, balance=balance, augmentations=speed)
    whole = steps_of(mixture, make_writer(), 5)
    state = json.loads(json.dumps(whole[stop].state))
    parts = [steps_of(mixture, make_writer(), 4 - stop, state=state, rank=rank, world_size=world_size) for rank in range(world_size)]
    for i, expected in enumerate(whole[stop + 1 :]):
        found = [parts[g % world_size][i].batches[g // world_size] for g in range(2)]
        assert [content(batch) for batch in found] == [content(batch) for batch in expected.batches]


def test_options_that_are_off_change_no_byte(tmp_path: Any, make_writer: Any) -> None:
    for i in range(9):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(i).standard_normal(400 + 50 * i) / 8, 8000)
        (tmp_path / f"{i}.txt").write_text("a sound")
    source = Slot("audio-folder", {"path": str(tmp_path)})

    def opened(**changes: Any) -> Mixture:
        return Mixture.open(DataSpec(datasets={"main": MixtureEntry(source=source, tasks=BOTH, **changes)}, seed=5), build)

    plain, off, on = (steps_of(opened(**c), make_writer(), 3) for c in ({}, {"clips": ClipSpec(), "balance": 1}, {"clips": LEVEL}))
    assert [content(batch) for step in plain for batch in step.batches] == [content(batch) for step in off for batch in step.batches]
    assert [content(batch) for step in plain for batch in step.batches] != [content(batch) for step in on for batch in step.batches]


@pytest.mark.parametrize("task", ["generate", "describe"])
@pytest.mark.parametrize("clips", [ONSET, RANDOM, ClipSpec(seconds=0.1)], ids=lambda clips: clips.cut)
def test_every_clip_has_exactly_the_length_to_hear_and_to_make(ramps: Any, make_writer: Any, task: str, clips: ClipSpec) -> None:
    mixture = mixture_of(ramps(lengths=range(1, 2000, 97)), clips=clips, tasks={task: 1.0})
    batches = [batch for step in steps_of(mixture, make_writer(), 6) for batch in step.batches]
    name, rate = ("latent", 8000) if task == "generate" else ("features", 4000)
    lengths = {int(length) for batch in batches for length in batch.of(name).lengths}
    assert clips.seconds is not None and lengths == {round(clips.seconds * rate)}
    if clips.peak is not None and task == "generate":
        assert all(batch.of(name).waveform.abs().amax() == pytest.approx(clips.peak) for batch in batches)


def test_a_random_cut_differs_from_draw_to_draw_and_held_out_clips_are_always_the_same(ramps: Any, make_writer: Any) -> None:
    data = ramps(lengths=[8000] * 6)
    clips = ClipSpec(cut="random", seconds=0.02)
    steps = steps_of(mixture_of(data, clips=clips, tasks={"generate": 1.0}), make_writer(), 4)
    firsts = [float(one[0, 0]) for step in steps for batch in step.batches for one in batch.of("latent").waveform]
    assert len(set(firsts)) > 0.9 * len(firsts) > 9 and min(firsts) < 0.2 and max(firsts) > 0.8

    def measured() -> list[Any]:
        mixture, writer = mixture_of(data, clips=clips, held_out=1 / 3, tasks={"generate": 1.0}), make_writer()
        spec = DataSpec(datasets={}, tokens_per_batch=96)
        reader = ClipReader(mixture=mixture, writer=writer, workers=0)
        planned = plan_held_out(mixture, writer, spec, most=-1)
        return [batch.of("latent").waveform.numpy().tobytes() for batch in read_in_turn(planned, reader)]

    assert measured() == measured() != []


class TestOnset(DatasetSuite):
    known_failures: ClassVar[dict[str, str]] = {"constructor": "it wraps a dataset, and is not a plugin"}
    clips: ClassVar[ClipSpec] = ONSET

    def make(self) -> Dataset:
        return Prepared(build("dataset", Slot("toy-sounds", {"size": 5, "seconds": 0.4, "events": [1, 1]})), self.clips)


class TestRandom(TestOnset):
    clips = RANDOM


class TestLevel(TestOnset):
    clips = ClipSpec(loudness=-20.0)


def test_only_the_part_that_is_used_is_decoded_if_it_is_known(ramps: Any) -> None:
    class Counting(ramps):  # type: ignore[misc]
        asked: ClassVar[list[int]] = []

        def load(self, index: int) -> Any:
            self.asked.append(self.lengths[index])
            return super().load(index)

        def load_part(self, index: int, *, first: int, num_samples: int) -> Any:
            self.asked.append(num_samples)
            waveform, rate = super().load(index)
            return waveform[:, first : first + num_samples], rate

    data = Counting(lengths=[80_000])
    for clips, expected in ((ClipSpec(cut="random", seconds=0.1, peak=0.5), 800), (ClipSpec(seconds=0.1), 800), (ONSET, 80_000)):
        data.asked.clear()
        found, _ = Prepared(data, clips).drawn(7).load(0)
        assert data.asked == [expected]
        draw = Prepared(data, clips).drawn(7)._draw
        np.testing.assert_array_equal(found, prepare(ramps(lengths=[80_000]).load(0)[0], 8000, clips, draw=draw))


def test_a_file_that_is_not_as_long_as_announced_is_unreadable(ramps: Any) -> None:
    class Shorter(ramps):  # type: ignore[misc]
        def item(self, index: int) -> Item:
            return replace(super().item(index), num_samples=16000)

    data = Shorter(lengths=[8000])
    with pytest.raises(UnreadableAudioError, match="decodes to 8000 samples, but 16000 were announced"):
        Prepared(data, ONSET).load(0)


def test_a_prepared_clip_is_a_recording_of_its_own_for_the_times_in_a_text(ramps: Any, make_writer: Any) -> None:
    times = [SegmentTemplate(text="{seconds_start} {seconds_total} {seconds}"), SegmentTemplate(audio="target")]
    tasks = build_tasks({"timed": times})
    clips = ClipSpec(cut="random", seconds=0.5)
    source = Source(dataset=Prepared(ramps(lengths=[90_000] * 3), clips), tasks={"timed": 1.0})
    writer = make_writer()
    mixture = Mixture(sources={"main": source}, tasks=tasks, seed=5)
    (step,) = steps_of(mixture, writer, 1)
    assert writer._writer.tokenizer.decode(step.batches[0].text_ids[:9].tolist()).strip().startswith("0 1 0.5")


def entry(**changes: Any) -> DataSpec:
    return DataSpec(datasets={"main": MixtureEntry(**({"source": Slot("toy-sounds", {"size": 3})} | changes))})


REFUSED = [
    ({"clips": ClipSpec(cut="onset")}, "data.datasets.main.clips.cut is onset, but lengths must be known"),
    ({"clips": ClipSpec(seconds=2.0), "max_seconds": 1.0}, "data.datasets.main.max_seconds is 1, but clips.seconds makes every clip 2 s"),
    ({"balance": 0}, "data.datasets.main.balance is 0; expected 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_planned_is_refused_in_one_line(changes: Any, message: str) -> None:
    with pytest.raises(SpecError) as error:
        check_data(entry(**changes))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_encoded_clips_cannot_be_prepared(ramps: Any) -> None:
    data = type("Encoded", (ramps,), {"encoding": "of a codec"})(lengths=[100])
    spec = entry(clips=ONSET)
    with pytest.raises(SpecError, match=r"data\.datasets\.main\.clips: the clips are encoded.*Use a dataset of audio"):
        Mixture.open(spec, lambda kind, slot: data)


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=12), most=st.integers(2, 20))
def test_rare_captions_come_up_about_as_often_as_those_in_the_middle_and_no_clip_too_often(counts: list[int], most: int) -> None:
    captions = [(f"caption {i}",) for i, count in enumerate(counts) for _ in range(count)]
    times = repeats([*captions, ()], most=most)
    middle = float(np.median(counts))
    assert times[-1] == 1 and times.min() >= 1 and times.max() <= most
    drawn: Counter[str] = Counter()
    for (caption,), count in zip(captions, times[:-1].tolist(), strict=True):
        drawn[caption] += count
    for i, count in enumerate(counts):
        total = drawn[f"caption {i}"]
        assert total == count or total == most * count or abs(total - middle) <= count / 2


def test_an_epoch_draws_each_clip_as_often_as_balance_says(ramps: Any) -> None:
    data = of_kinds(ramps, [800] * 22, kick=12, snare=8, rimshot=2)
    mixture = mixture_of(data, balance=10)
    for epoch in range(2):
        draws = [mixture.draw("main", cursor) for cursor in range(epoch * 28, (epoch + 1) * 28)]
        assert {one.epoch for one in draws} == {epoch}
        assert Counter(one.item.captions[0] for one in draws) == {"kick": 12, "snare": 8, "rimshot": 8}
        assert set(Counter(one.index for one in draws if one.index >= 20).values()) == {4}
    assert mixture.sizes == {"main": 22} and len(mixture) == 22


def test_a_run_says_how_clips_are_prepared_and_which_captions_are_rare(ramps: Any) -> None:
    data = of_kinds(ramps, [300] * 5 + [400] * 2 + [500] * 15, kick=12, snare=8, rimshot=2)
    prepared, rare = describe_clips(mixture_of(data, clips=ONSET), "main")
    assert prepared == (
        "data 'main': clips are prepared: from the onset, 0.05 s long, peak 0.9; of 22, 15 are longer and cut, 5 are shorter and padded; "
        "all get the same level"
    )
    assert rare == (
        "data 'main': 3 captions have a median of 8 clips; rare ones are 'rimshot' (2). Set data.datasets.main.balance to 4 to draw "
        "their clips more often"
    )
    (balanced,) = describe_clips(mixture_of(data, balance=10), "main")
    assert balanced.endswith("whose clips are drawn up to 4 times per epoch (data.datasets.main.balance)")
    assert describe_clips(mixture_of(ramps(lengths=[800] * 9)), "main") == [], "texts of their own are not kinds"


def test_what_is_compared_when_a_run_resumes_are_the_clips_as_they_are(ramps: Any) -> None:
    data = ramps(lengths=[800])
    assert unprepared(Prepared(data, ONSET)) is data is unprepared(data)
