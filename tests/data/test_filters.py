"""Filters: what they leave out is named and counted, captions that they write are used, and a run resumes exactly."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import DataError, PluginError, RejectedAudioError, SpecError, UnreadableAudioError
from soundomni.core.interfaces import Filter
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import DataSpec, MixtureEntry, Slot
from soundomni.data.digest import list_dataset
from soundomni.data.filtered import Filtered
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture, Source
from soundomni.data.usage import survey


class Hook(Filter):
    """What a metadata function of stable-audio-tools does: a caption from other fields, or a rejection."""

    def describe(self, item):
        number = int(item.key.split("-")[1])
        return "it is the third" if number % 3 == 2 else replace(item, captions=(f"number {number}",))

    def reject(self, item, waveform, sample_rate):
        return "it is the first" if item.captions == ("number 0",) else None


def mixture_of(dataset, **use):
    return Mixture(sources={"main": Source(dataset=dataset, **({"tasks": {"generate": 1.0}} | use))}, seed=3)


def steps_of(dataset, writer, count, **arguments):
    spec = DataSpec(datasets={}, tokens_per_batch=96, lookahead=4, workers=1)
    with PackedLoader(mixture=mixture_of(dataset), writer=writer, spec=spec, batches_per_step=2, **arguments) as loader:
        return list(islice(loader, count))


def test_captions_and_rejections_of_a_hook(ramps):
    data = Filtered(ramps(lengths=[100] * 7, broken=[3]), {"hook": Hook()})
    assert [data.item(i).key for i in range(len(data))] == ["ramp-0", "ramp-1", "ramp-3", "ramp-4", "ramp-6"]
    assert data.item(2).captions == ("number 3",)
    assert [(skip.key, skip.reason, skip.kind, skip.group) for skip in data.skipped] == [
        (f"ramp-{i}", "it is the third", "unsuitable", "left out by filter 'hook'") for i in (2, 5)
    ]
    for load in (data.load, lambda i: data.load_part(i, first=3, num_samples=9)):
        with pytest.raises(RejectedAudioError, match="^filter 'hook' leaves it out: it is the first$"):
            load(0)
        with pytest.raises(UnreadableAudioError, match="broken") as caught:
            load(2)
        assert not isinstance(caught.value, RejectedAudioError)
    np.testing.assert_array_equal(data.load(4)[0], np.linspace(0, 1, 100, dtype=np.float32)[None])
    with pytest.raises(IndexError):
        data.item(5)


def test_filters_are_asked_in_their_order(ramps):
    class Says(Filter):
        def __init__(self, text):
            self.text = text

        def describe(self, item):
            return replace(item, captions=(*item.captions, self.text))

    data = Filtered(ramps(lengths=[9], captions=()), {"z": Says("first"), "a": Says("second")})
    assert data.item(0).captions == ("first", "second")


def test_rejected_clips_are_counted_and_named_but_are_not_unreadable(ramps, make_writer, caplog):
    data = Filtered(ramps(lengths=[400] * 4, broken=[3]), {"hook": Hook()})
    with caplog.at_level("WARNING", "soundomni.data"):
        steps = steps_of(data, make_writer(), 6)
    total = {name: sum(step.counts[name] for step in steps) for name in ("seen", "unreadable", "rejected", "samples")}
    assert total["rejected"] > 2 and total["unreadable"] > 2 and total["seen"] == total["samples"] + total["unreadable"] + total["rejected"]
    assert caplog.text.count("rejected 'main:ramp-0': filter 'hook' leaves it out: it is the first") == 1
    assert {key for step in steps for batch in step.batches for key in batch.keys} == {"main:ramp-1"}


def test_ranks_and_resumed_runs_leave_out_the_same(ramps, make_writer):
    def filtered():
        return Filtered(ramps(lengths=range(300, 900, 60)), {"hook": Hook()})

    def keys(steps):
        return [[batch.keys for batch in step.batches] for step in steps]

    whole = steps_of(filtered(), make_writer(), 6)
    assert sum(step.counts["rejected"] for step in whole) > 0
    state = json.loads(json.dumps(whole[2].state))
    assert keys(steps_of(filtered(), make_writer(), 3, state=state)) == keys(whole[3:])
    ranks = [steps_of(filtered(), make_writer(), 6, rank=rank, world_size=2) for rank in range(2)]
    assert [[step.batches[0].keys for step in steps] for steps in zip(*ranks, strict=True)] == keys(whole)
    for name in ("seen", "rejected"):
        assert sum(step.counts[name] for steps in ranks for step in steps) == sum(step.counts[name] for step in whole)


def test_a_run_says_how_many_clips_filters_leave_out(ramps, make_writer):
    usage = survey(mixture_of(Filtered(ramps(lengths=[400] * 9), {"hook": Hook()})), make_writer(), DataSpec(datasets={}))[0]
    assert usage.describe() == ["data 'main': 6 of 9 clips are used; left out: 3 left out by filter 'hook'"]


def test_a_digest_sees_what_filters_change(ramps):
    plain = ramps(lengths=[100] * 6)
    assert list_dataset(Filtered(plain, {"hook": Hook()})) == list_dataset(Filtered(plain, {"renamed": Hook()}))
    assert list_dataset(Filtered(plain, {"hook": Hook()})).sha256 != list_dataset(plain).sha256


def entry_of(folder, *, captions=False, **changes):
    source = Slot("audio-folder", {"path": str(folder), "captions": captions})
    return DataSpec(datasets={"mine": MixtureEntry(source=source, tasks={"generate": 1.0}, **changes)})


@pytest.fixture
def folder(tmp_path):
    for name, seconds, level in (("long", 2.0, 0.1), ("quiet", 0.5, 1e-5), ("short", 0.01, 0.1), ("silent", 0.5, 0.0), ("good", 0.5, 0.1)):
        time = np.arange(round(seconds * 8000)) / 8000
        soundfile.write(tmp_path / f"{name}.wav", level * np.sin(2 * np.pi * 440 * time), 8000, subtype="FLOAT")
    return tmp_path


def test_silence_and_length_of_a_spec(folder):
    slots = {"length": Slot("length", {"least": 0.1, "most": 1.0}), "silence": Slot("silence"), "gone": None}
    mixture = Mixture.open(entry_of(folder, filters=slots), build)
    data = mixture.sources["mine"].dataset
    assert [data.item(i).key for i in range(len(data))] == ["good.wav", "quiet.wav", "silent.wav"]
    assert {skip.key: skip.reason for skip in data.skipped} == {
        "long.wav": "it lasts 2 s; expected at most 1 s",
        "short.wav": "it lasts 0.01 s; expected at least 0.1 s",
    }
    assert data.load(0)[0].shape == (1, 4000)
    with pytest.raises(RejectedAudioError, match="its level is -103.0 dB; expected at least -60 dB"):
        data.load(1)
    with pytest.raises(RejectedAudioError, match="it is silent"):
        data.load(2)


def test_filters_that_leave_nothing_are_an_error_in_one_line(folder):
    reason = "'mine': the filters leave out all 5 clips; the first, 'good.wav': it lasts 0.5 s; expected at least 9 s"
    with pytest.raises(DataError, match=reason):
        Mixture.open(entry_of(folder, filters={"length": Slot("length", {"least": 9.0})}), build)


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (Slot("silence", {"threshold": 3.0}), "data.datasets.mine.filters.f: silence: threshold is 3; expected a level in dB of 0 or less"),
        (Slot("length", {"least": 2.0, "most": 1.0}), "filters.f: length: least is 2 and most is 1; expected seconds"),
        (Slot("length", {"least": -1.0}), "filters.f: length: least is -1 and most is null; expected seconds"),
    ],
)
def test_bad_values_name_their_key(folder, slot, message):
    with pytest.raises(SpecError, match=message) as caught:
        Mixture.open(entry_of(folder, filters={"f": slot}), build)
    assert "\n" not in str(caught.value)


class Renames(Filter):
    def describe(self, item):
        return replace(item, key="other")


class Forgets(Filter):
    def describe(self, item):
        return None


@pytest.mark.parametrize(("one", "found"), [(Renames(), "an item of another clip, 'other'"), (Forgets(), "None")])
def test_a_faulty_filter_is_named(ramps, one, found):
    with pytest.raises(PluginError, match=f"filter 'mine' returned {found} for 'ramp-0'; expected an item of this clip, or a reason"):
        Filtered(ramps(lengths=[9]), {"mine": one})


class Writes(Filter):
    def __init__(self, **texts):
        self.texts = texts

    def describe(self, item):
        return replace(item, **self.texts)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ({"captions": "rain"}, "the captions 'rain' for 'ramp-0'; expected a tuple of texts"),
        ({"captions": ["rain"]}, "the captions ['rain'] for 'ramp-0'; expected a tuple of texts"),
        ({"captions": (3,)}, "the captions (3,) for 'ramp-0'; expected a tuple of texts"),
        ({"captions": None}, "the captions None for 'ramp-0'; expected a tuple of texts"),
        ({"questions": ("why?",)}, "the questions ('why?',) for 'ramp-0'; expected a tuple of (question, answer)"),
        ({"questions": (("why?",),)}, "the questions (('why?',),) for 'ramp-0'; expected a tuple of (question, answer)"),
        ({"questions": [("why?", "so")]}, "the questions [('why?', 'so')] for 'ramp-0'; expected a tuple of (question, answer)"),
    ],
)
def test_a_filter_that_writes_no_texts_is_named(ramps, texts, found):
    with pytest.raises(PluginError) as caught:
        Filtered(ramps(lengths=[9]), {"mine": Writes(**texts)})
    assert str(caught.value) == f"filter 'mine' returned {found}"
    good = Filtered(ramps(lengths=[9]), {"mine": Writes(captions=("rain", "wind"), questions=(("why?", "so"),))})
    assert good.item(0).captions == ("rain", "wind") and good.item(0).questions == (("why?", "so"),)


class Hears(Filter):
    def reject(self, item, waveform, sample_rate):
        return "it is the first" if item.key == "ramp-0" else None


def test_filters_that_only_hear_clips_list_nothing(ramps):
    asked = []

    class Computed(ramps):
        generated_from = "a seed"

        def item(self, index):
            asked.append(index)
            return super().item(index)

    data = Filtered(Computed(lengths=[9] * 7), {"a": Hears(), "silence": build("filter", Slot("silence"))})
    assert len(data) == 7 and data.skipped == () and asked == []
    assert data.generated_from == "a seed" and data.item(4).key == "ramp-4" and asked == [4]
    with pytest.raises(RejectedAudioError, match="^filter 'a' leaves it out: it is the first$"):
        data.load(0)
    assert data.load(3)[0].shape == (1, 9)
    for other in (Writes(captions=("rain",)), build("filter", Slot("length", {"least": 0.0}))):
        asked.clear()
        data = Filtered(Computed(lengths=[9] * 7), {"a": Hears(), "other": other})
        assert data.generated_from is None and asked == list(range(7))


def test_encoded_clips_cannot_be_heard_by_a_filter(ramps):
    class Encoded(ramps):
        encoding = "any"

    class Describes(Filter):
        def describe(self, item):
            return "no" if item.key == "ramp-0" else item

    assert len(Filtered(Encoded(lengths=[9, 9]), {"mine": Describes()})) == 1
    with pytest.raises(SpecError, match="filter 'mine' hears clips, but its dataset is encoded"):
        Filtered(Encoded(lengths=[9]), {"mine": Hook()})
