"""The loader: ranks, resumption, threads, and what happens to samples that cannot be used."""

import json
import logging
import re
import threading
import time
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError, SpecError, UnreadableAudioError
from soundomni.core.interfaces import Dataset, Skip
from soundomni.core.spec.schema import DataSpec
from soundomni.core.spec.schema import SegmentTemplate as Template
from soundomni.core.writing.tasks import build_tasks
from soundomni.data import audio
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture, Source
from soundomni.data.reports import check_skip_limit

BUDGET = 256
ALL = {"generate": 1.0, "describe": 1.0, "continue": 1.0}


def spec_of(**changes):
    return DataSpec(**({"datasets": {}, "tokens_per_batch": BUDGET, "lookahead": 16, "workers": 2} | changes))


def mixture_of(dataset, *, tasks=None, max_seconds=None, **others):
    sources = {"main": Source(dataset=dataset, tasks=tasks or ALL, max_seconds=max_seconds)}
    return Mixture(sources=sources | {name: Source(dataset=other, tasks=ALL) for name, other in others.items()}, seed=5)


@pytest.fixture
def mixture(ramps):
    """Two datasets of clips of many lengths."""
    return mixture_of(ramps(lengths=range(500, 8000, 333)), more=ramps(lengths=[4000] * 7, rate=11025, channels=2))


def content(batch):
    """Everything of a batch, to compare."""
    return (
        batch.keys,
        batch.text_ids.tolist(),
        batch.labels.tolist(),
        batch.table.start.tolist(),
        batch.of("latent").seeds,
        batch.of("latent").known.tolist(),
        batch.of("latent").waveform.numpy().tobytes(),
        batch.of("features").waveform.numpy().tobytes(),
    )


def steps_of(mixture, writer, count, **arguments):
    with PackedLoader(mixture=mixture, writer=writer, **({"spec": spec_of()} | arguments)) as loader:
        return list(islice(loader, count))


def test_a_step_holds_filled_batches_and_counts(mixture, make_writer):
    steps = steps_of(mixture, make_writer(), 10, batches_per_step=2)
    for step in steps:
        assert len(step.batches) == 2
        assert all(batch.table.num_tokens <= BUDGET for batch in step.batches)
        assert step.counts["tokens"] == sum(batch.table.num_tokens for batch in step.batches)
        assert step.counts["samples"] == step.counts["seen"] == sum(len(batch.keys) for batch in step.batches)
        assert step.counts["unreadable"] == step.counts["refused"] == step.counts["ineligible"] == 0
        assert step.fill == step.counts["tokens"] / (2 * BUDGET)
    assert np.mean([step.fill for step in steps]) > 0.99


@settings(max_examples=6, deadline=None)
@given(stop=st.integers(0, 6), workers=st.sampled_from([0, 2]), world_size=st.sampled_from([1, 2]))
def test_resuming_after_any_step_goes_on_exactly_on_any_number_of_ranks(ramps, make_writer, stop, workers, world_size):
    mixture = mixture_of(ramps(lengths=range(500, 8000, 333)), more=ramps(lengths=[4000] * 7, rate=11025, channels=2))
    writer = make_writer()
    whole = steps_of(mixture, writer, 8, batches_per_step=2)
    state = json.loads(json.dumps(whole[stop].state))
    parts = [
        steps_of(
            mixture, writer, 7 - stop, batches_per_step=2, state=state, rank=rank, world_size=world_size, spec=spec_of(workers=workers)
        )
        for rank in range(world_size)
    ]
    for i, expected in enumerate(whole[stop + 1 :]):
        batches = [parts[g % world_size][i].batches[g // world_size] for g in range(2)]
        assert [content(batch) for batch in batches] == [content(batch) for batch in expected.batches]
        assert all(part[i].state == expected.state for part in parts)


def test_ranks_share_the_batches_of_one(mixture, make_writer):
    whole = steps_of(mixture, make_writer(), 4, batches_per_step=6)
    for world_size in (2, 3):
        ranks = [steps_of(mixture, make_writer(), 4, batches_per_step=6, rank=r, world_size=world_size) for r in range(world_size)]
        for i, step in enumerate(whole):
            for g, batch in enumerate(step.batches):
                assert content(ranks[g % world_size][i].batches[g // world_size]) == content(batch)


def test_a_rank_reads_only_its_own_clips(ramps, make_writer):
    class Counting(ramps):
        loaded: list

        def load(self, index):
            self.loaded.append(index)
            return super().load(index)

    dataset = Counting(lengths=range(500, 8000, 333))
    dataset.loaded = []
    steps = steps_of(mixture_of(dataset), make_writer(), 5, batches_per_step=4, rank=1, world_size=4, spec=spec_of(workers=0))
    assert len(dataset.loaded) == sum(step.counts["seen"] for step in steps)


def test_order_does_not_depend_on_threads(ramps, make_writer):
    class Uneven(ramps):
        def load(self, index):
            time.sleep(0.002 * (index % 3))
            return super().load(index)

    dataset = Uneven(lengths=range(500, 8000, 333))
    results = [steps_of(mixture_of(dataset), make_writer(), 4, spec=spec_of(workers=workers)) for workers in (0, 1, 4)]
    assert [[content(b) for step in steps for b in step.batches] for steps in results[1:]] == [
        [content(b) for step in results[0] for b in step.batches]
    ] * 2


def test_unreadable_clips_are_left_out_named_once_and_counted(ramps, make_writer, caplog):
    lengths = range(500, 8000, 333)
    good, bad = ramps(lengths=lengths), ramps(lengths=lengths, broken=[3, 11])
    whole = steps_of(mixture_of(good), make_writer(), 12)
    with caplog.at_level(logging.WARNING, "soundomni.data"):
        steps = steps_of(mixture_of(bad), make_writer(), 12, spec=spec_of(skip_limit=0.5))
    for step, expected in zip(steps, whole, strict=True):
        lost = [key for key in expected.batches[0].keys if key in ("main:ramp-3", "main:ramp-11")]
        assert step.batches[0].keys == tuple(key for key in expected.batches[0].keys if key not in lost)
        assert step.counts["unreadable"] == len(lost)
        assert step.counts["seen"] == step.counts["samples"] + len(lost)
        assert step.state == expected.state
    assert sum(step.counts["unreadable"] for step in steps) > 2
    assert [record.getMessage().split(":")[1] for record in caplog.records].count("ramp-3'") == 1
    assert len(caplog.records) == 2


def test_a_batch_may_be_empty(ramps, make_writer):
    dataset = ramps(lengths=[24000, 24000], broken=[0, 1])
    step = steps_of(mixture_of(dataset, tasks={"generate": 1.0}), make_writer(), 1)[0]
    assert step.batches[0].keys == () and step.batches[0].table.num_tokens == 0 and step.counts["samples"] == 0
    assert step.batches[0].of("latent").waveform.shape == (0, 1, 0)


def test_a_rank_names_and_counts_what_it_cannot_read_and_leaves_the_judgement_to_the_run(ramps, make_writer):
    dataset = ramps(lengths=[800] * 160, broken=range(0, 160, 8))
    with PackedLoader(mixture=mixture_of(dataset), writer=make_writer(), spec=spec_of(skip_limit=0.0)) as loader:
        assert loader.unreadable == ()
        counts = [step.counts for step in islice(loader, 40)]
        found = loader.unreadable
    assert {skip.key for skip in found} <= {f"main:ramp-{i}" for i in range(0, 160, 8)} and len(found) > 10
    assert len({skip.key for skip in found}) == len(found) and all(skip.kind == "unreadable" for skip in found)
    unreadable, seen = (sum(step[name] for step in counts) for name in ("unreadable", "seen"))
    assert unreadable >= len(found)
    with pytest.raises(DataError, match=rf"{unreadable} of {seen} clips .* data.skip_limit = 0.05 allows: {found[0].key}: cannot read"):
        check_skip_limit(unreadable, seen, limit=0.05, skips=found)
    check_skip_limit(unreadable, seen, limit=0.5, skips=found)


def test_only_a_hundred_unreadable_clips_are_remembered(ramps, make_writer, caplog):
    with PackedLoader(
        mixture=mixture_of(ramps(lengths=[800] * 300, broken=range(300))), writer=make_writer(), spec=spec_of(workers=0)
    ) as loader:
        steps = list(islice(loader, 60))
        assert len(loader.unreadable) == 100 < sum(step.counts["unreadable"] for step in steps)
    assert caplog.text.count("cannot read") == 20 and caplog.text.count("more items were unreadable") == 1


def test_what_the_listing_found_unreadable_is_counted_once_over_ranks_and_resumptions(ramps, make_writer):
    class Listed(ramps):
        skipped = (Skip("a", "noise"), Skip("b", "gone", "missing"), Skip("c", "empty"), Skip("d", "mute", "no caption"))

    mixture = mixture_of(Listed(lengths=[2000] * 9), more=Listed(lengths=[2000] * 9))
    assert mixture.num_unlisted == 4
    first, second = (steps_of(mixture, make_writer(), 3, batches_per_step=2, rank=rank, world_size=2) for rank in (0, 1))
    assert [step.counts["unlisted"] for step in first] == [4, 0, 0]
    assert [step.counts["unlisted"] for step in second] == [0, 0, 0]
    assert all(step.counts["seen"] == step.counts["samples"] and step.counts["unreadable"] == 0 for step in first)
    resumed = steps_of(mixture, make_writer(), 2, batches_per_step=2, state=first[0].state)
    assert [step.counts["unlisted"] for step in resumed] == [0, 0]


def test_broken_files_in_a_real_folder(tmp_path, make_writer, caplog):
    for i in range(8):
        rate, kind = (8000, 16000, 44100)[i % 3], ("wav", "flac", "ogg", "mp3")[i % 4]
        path = tmp_path / f"{i}.{kind}"
        soundfile.write(path, 0.1 * np.random.default_rng(i).standard_normal((rate // 2, 1 + i % 2)), rate)
        path.with_suffix(".txt").write_text(f"noise {i}")
    folder = AudioFolder(path=str(tmp_path))
    (tmp_path / "1.flac").write_bytes((tmp_path / "1.flac").read_bytes()[:3000])
    (tmp_path / "2.ogg").unlink()
    with caplog.at_level(logging.WARNING, "soundomni.data"):
        steps = steps_of(mixture_of(folder), make_writer(), 6, spec=spec_of(skip_limit=0.9))
    keys = {key for step in steps for key in step.batches[0].keys}
    assert keys == {f"main:{i}.{('wav', 'flac', 'ogg', 'mp3')[i % 4]}" for i in (0, 3, 4, 5, 6, 7)}
    assert "unreadable 'main:1.flac'" in caplog.text and "unreadable 'main:2.ogg'" in caplog.text and "no such file" in caplog.text
    for step in steps:
        latents = step.batches[0].of("latent")
        assert torch.isfinite(latents.waveform).all() and (latents.lengths == 4000).all()


class ReadsWhole(AudioFolder):
    """A folder whose clips are loaded whole and cut afterwards, as datasets do that have no `load_part`."""

    load_part = Dataset.load_part


def test_of_long_files_only_the_part_that_is_used_is_decoded(tmp_path, make_writer, monkeypatch):
    for i, kind in enumerate(("wav", "flac", "ogg", "mp3")):
        path = tmp_path / f"{i}.{kind}"
        soundfile.write(path, 0.1 * np.random.default_rng(i).standard_normal((40_000, 1 + i % 2)), 8000)
        path.with_suffix(".txt").write_text(f"noise {i}")
    parts, wholes = (
        steps_of(mixture_of(kind(path=str(tmp_path)), tasks={"generate": 1.0}, max_seconds=0.5), make_writer(), 6)
        for kind in (AudioFolder, ReadsWhole)
    )
    assert [content(step.batches[0]) for step in parts] == [content(step.batches[0]) for step in wholes]
    assert {key[-3:] for step in parts for key in step.batches[0].keys} == {"wav", "lac", "ogg", "mp3"}
    monkeypatch.setattr(audio, "MOST_DECODED", 100_000)
    monkeypatch.setattr(audio, "MOST_EXPANSION", 0)
    folder = AudioFolder(path=str(tmp_path))
    assert folder.load_part(0, first=20_000, num_samples=10_000)[0].shape == (1, 10_000)
    with pytest.raises(UnreadableAudioError, match="would decode to"):
        folder.load(0)


def test_samples_over_the_limit_are_refused_by_key(ramps, make_writer, caplog):
    dataset = ramps(lengths=[2000, 60000, 2000])
    with caplog.at_level(logging.WARNING, "soundomni.data"):
        steps = steps_of(mixture_of(dataset, tasks={"generate": 1.0}), make_writer(), 5)
    keys = {key for step in steps for key in step.batches[0].keys}
    assert keys == {"main:ramp-0", "main:ramp-2"}
    assert sum(step.counts["refused"] for step in steps) > 1
    (record,) = caplog.records
    assert "refused 'main:ramp-1'" in record.getMessage() and f"tokens, the limit is {BUDGET}" in record.getMessage()


def test_a_caption_over_the_limit_is_refused_by_key(ramps, make_writer, caplog):
    long = ramps(lengths=[2000], captions=("long " * 100,))
    with caplog.at_level(logging.WARNING, "soundomni.data"):
        steps = steps_of(mixture_of(ramps(lengths=[2000] * 5), tasks={"describe": 1.0}, more=long), make_writer(), 3)
    assert {key.split(":")[0] for step in steps for key in step.batches[0].keys} == {"main"}
    assert "refused 'more:ramp-0'" in caplog.text


def test_nothing_left_is_an_error(ramps, make_writer):
    with pytest.raises(DataError, match=r"no sample can be used: 100 in a row were refused, such as main:ramp-\d: \d+ tokens, the limit"):
        steps_of(mixture_of(ramps(lengths=[60000] * 3), tasks={"generate": 1.0}), make_writer(), 1)
    with pytest.raises(DataError, match="accepts at most"):
        steps_of(mixture_of(ramps(lengths=[6000] * 3), tasks={"describe": 1.0}, max_seconds=0.5), make_writer(), 1)
    with pytest.raises(DataError, match="task 'answer' needs a question"):
        steps_of(mixture_of(ramps(lengths=[2000]), tasks={"answer": 1.0}), make_writer(), 1)


def numbers(pattern, text):
    """The groups of a pattern that must be in the text, as numbers."""
    return [float(group) for group in re.search(pattern, text).groups()]


@pytest.mark.parametrize("tasks", [{"generate": 1.0}, {"continue": 1.0}, {"generate": 2.0, "describe": 1.0}])
def test_a_newcomer_is_told_how_long_clips_may_be_and_the_advice_works(ramps, make_writer, tasks):
    dataset, spec = ramps(lengths=[80000] * 3), spec_of(tokens_per_batch=1280, max_tokens_per_sample=180)
    with pytest.raises(DataError) as caught:
        steps_of(mixture_of(dataset, tasks=tasks), make_writer(), 1, spec=spec)
    message = str(caught.value)
    assert "no sample can be used" in message and "\n" not in message and "or raise data.max_tokens_per_sample" in message
    length, seconds, fits = numbers(r"(\d+) tokens, the limit is 180 .*its ([\d.]+) s of audio, of which ([\d.]+) s would fit", message)
    assert length > 180 and seconds == 10.0 and numbers(r"set data.datasets.main.max_seconds to ([\d.]+)", message) == [fits]
    steps = steps_of(mixture_of(dataset, tasks=tasks, max_seconds=fits - 0.02), make_writer(), 2, spec=spec)  # captions differ by a byte
    assert all(step.counts["samples"] > 0 for step in steps)
    latents = steps[0].batches[0].of("latent")
    assert (latents.lengths == int((fits - 0.02) * 8000)).all()


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(80, 500), rate=st.sampled_from([8000, 11025, 44100]), task=st.sampled_from(["generate", "describe"]))
def test_the_seconds_named_are_the_most_that_fit(ramps, make_writer, limit, rate, task):
    writer, spec = make_writer(), spec_of(tokens_per_batch=limit)

    def try_seconds(seconds):
        clip = ramps(lengths=[int(seconds * rate)], rate=rate, captions=("ramp",))
        return steps_of(mixture_of(clip, tasks={task: 1.0}), writer, 1, spec=spec)

    with pytest.raises(DataError) as caught:
        try_seconds(30.0)
    (fits,) = numbers(r"of which ([\d.]+) s would fit", str(caught.value))
    assert try_seconds(fits)[0].counts["samples"] > 0
    with pytest.raises(DataError, match="no sample can be used"):
        try_seconds(fits + 0.011)


def test_where_cutting_does_not_help_it_is_not_advised(ramps, make_writer):
    with pytest.raises(DataError, match=r"s would fit: cut the file into shorter ones, or raise data.tokens_per_batch") as caught:
        steps_of(mixture_of(ramps(lengths=[160000]), tasks={"describe": 1.0}), make_writer(), 1)
    assert "max_seconds" not in str(caught.value)
    with pytest.raises(DataError, match=r"the limit is 256 \(data.tokens_per_batch\)$"):
        steps_of(mixture_of(ramps(lengths=[8000], captions=("long " * 100,)), tasks={"generate": 1.0}), make_writer(), 1)


def test_items_without_captions_are_counted_as_ineligible(ramps, make_writer, caplog):
    mixture = mixture_of(ramps(lengths=[2000] * 3), mute=ramps(lengths=[2000] * 2, captions=()))
    with caplog.at_level(logging.WARNING, "soundomni.data"):
        steps = steps_of(mixture, make_writer(), 4)
    assert sum(step.counts["ineligible"] for step in steps) > 2 and len(caplog.records) == 2
    assert all(key.startswith("main:") for step in steps for key in step.batches[0].keys)


def test_custom_tasks_are_loaded(ramps, make_writer):
    tasks = build_tasks({"edit": [Template(audio="context"), Template(text="Now {caption}"), Template(audio="target")]})
    mixture = Mixture(sources={"a": Source(dataset=ramps(lengths=[2000] * 3), tasks={"edit": 1.0})}, tasks=tasks)
    latents = steps_of(mixture, make_writer(), 1)[0].batches[0].of("latent")
    assert latents.noise.any() and not latents.noise.all()


@pytest.mark.parametrize(("batches_per_step", "world_size"), [(1, 1), (2, 1), (2, 2)])
def test_preview_shows_the_next_batches_of_all_ranks_and_moves_nothing(mixture, make_writer, batches_per_step, world_size):
    arguments = {"world_size": world_size, "batches_per_step": batches_per_step}
    ranks = [steps_of(mixture, make_writer(), 5, rank=rank, **arguments) for rank in range(world_size)]
    steps_of_ranks = [[step.batches for step in steps] for steps in zip(*ranks, strict=True)]
    in_order = [content(batch) for step in steps_of_ranks for batches in zip(*step, strict=True) for batch in batches]
    with PackedLoader(mixture=mixture, writer=make_writer(), spec=spec_of(), **arguments) as previewed:
        assert [content(batch) for batch in previewed.preview_batches(3)] == in_order[:3]
        assert [content(batch) for batch in previewed.preview_batches(5)] == in_order[:5]
        steps = list(islice(previewed, 2))
        assert [content(batch) for batch in previewed.preview_batches(2)] == in_order[2 * batches_per_step :][:2]
        steps += list(islice(previewed, 3))
    for step, expected in zip(steps, ranks[0], strict=True):
        assert [content(batch) for batch in step.batches] == [content(batch) for batch in expected.batches]
        assert (step.counts, step.state) == (expected.counts, expected.state)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_previewed_is_read_once_and_counted_in_its_step(ramps, make_writer, workers):
    class Counted(ramps):
        reads = 0

        def load(self, index):
            type(self).reads += 1
            return super().load(index)

    lengths, tasks, spec = range(500, 8000, 333), {"generate": 1.0}, spec_of(workers=workers, skip_limit=1.0)
    expected = steps_of(mixture_of(ramps(lengths=lengths, broken=(3, 8)), tasks=tasks), make_writer(), 8, spec=spec)
    with PackedLoader(mixture=mixture_of(Counted(lengths=lengths, broken=(3, 8)), tasks=tasks), writer=make_writer(), spec=spec) as loader:
        for count in (2, 4, 8):
            loader.preview_batches(count)
        assert Counted.reads == sum(step.counts["seen"] for step in expected)
        steps = list(islice(loader, 6))  # reading two steps ahead
        assert Counted.reads == sum(step.counts["seen"] for step in expected)
    assert sum(step.counts["unreadable"] for step in steps) > 0
    assert [step.counts for step in steps] == [step.counts for step in expected[:6]]
    assert [content(step.batches[0]) for step in steps] == [content(step.batches[0]) for step in expected[:6]]


def test_reading_ahead_is_bounded_and_close_ends_the_threads(mixture, make_writer):
    before = threading.active_count()
    loader = PackedLoader(mixture=mixture, writer=make_writer(), spec=spec_of(workers=3))
    next(loader)
    assert before < threading.active_count() <= before + 3
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.mark.parametrize(
    ("changes", "arguments", "problem"),
    [
        ({}, {"batches_per_step": 3, "world_size": 2}, "batches_per_step is 3; expected a multiple of the 2 ranks"),
        ({"max_tokens_per_sample": 1000}, {}, "max_tokens_per_sample is 1000; expected 1 to data.tokens_per_batch, which is 256"),
        ({"lookahead": 0}, {}, "lookahead is 0"),
        ({"workers": -1}, {}, "workers is -1"),
        ({"skip_limit": 2.0}, {}, "skip_limit is 2.0"),
    ],
)
def test_numbers_that_do_not_fit_together(mixture, make_writer, changes, arguments, problem):
    with pytest.raises(SpecError, match=problem):
        PackedLoader(mixture=mixture, writer=make_writer(), spec=spec_of(**changes), **arguments)


def test_tasks_that_the_model_cannot_do_are_refused_before_reading(mixture, make_writer):
    with pytest.raises(SpecError, match="no encoder"):
        PackedLoader(mixture=mixture, writer=make_writer(encoder=None), spec=spec_of())
