"""Mixtures: weights, order, tasks, state, and datasets that do not open."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError, PluginError, SpecError
from soundomni.core.interfaces import Skip
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import DataSpec, MixtureEntry, Slot
from soundomni.data.mixture import Mixture, Source


def mix(ramps, *, sizes=(5, 9), seed=3, **uses):
    names = "abcdef"[: len(sizes)]
    sources = {
        name: Source(dataset=ramps(lengths=[1000] * size), **({"tasks": {"generate": 1.0}} | uses.get(name, {})))
        for name, size in zip(names, sizes, strict=True)
    }
    return Mixture(sources=sources, seed=seed)


def take(stream, count):
    return [stream.next() for _ in range(count)]


def names_of(draws):
    return [(d.source, d.cursor, d.epoch, d.index, d.task.name, d.seed) for d in draws]


def test_every_epoch_of_a_data_set_holds_every_item_once_in_another_order(ramps):
    draws = [d for d in take(mix(ramps).stream(), 200) if d.source == "b"]
    epochs = [[d.index for d in draws[i : i + 9]] for i in range(0, 45, 9)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert [d.epoch for d in draws[:45]] == [i // 9 for i in range(45)]


def test_weights_of_data_sets_and_tasks(ramps):
    mixture = mix(ramps, a={"weight": 3.0}, b={"tasks": {"generate": 1.0, "describe": 3.0, "continue": 0.0}})
    draws = take(mixture.stream(), 3000)
    share = Counter(d.source for d in draws)["a"] / 3000
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 3000)
    tasks = Counter(d.task.name for d in draws if d.source == "b")
    assert set(tasks) == {"generate", "describe"} and 0.68 < tasks["describe"] / tasks.total() < 0.82


def test_num_used_takes_a_seeded_subset(ramps):
    def used(seed):
        mixture = mix(ramps, sizes=(50,), seed=seed, a={"num_used": 7})
        assert len(mixture) == 7 and mixture.sizes == {"a": 7}
        return {d.index for d in take(mixture.stream(), 40)}

    assert used(1) == used(1) != used(2) and len(used(1)) == 7


def test_the_stream_depends_on_the_seed_alone_and_each_data_set_on_its_name(ramps):
    assert names_of(take(mix(ramps).stream(), 50)) == names_of(take(mix(ramps).stream(), 50))
    assert names_of(take(mix(ramps).stream(), 50)) != names_of(take(mix(ramps, seed=4).stream(), 50))
    more = take(mix(ramps, sizes=(5, 9, 4)).stream(), 90)
    fewer = take(mix(ramps).stream(), 90)
    assert names_of(d for d in more if d.source == "b")[:20] == names_of(d for d in fewer if d.source == "b")[:20]


@settings(max_examples=20, deadline=None)
@given(before=st.integers(0, 60), after=st.integers(0, 60))
def test_resuming_anywhere_goes_on_exactly(ramps, before, after):
    whole, first = mix(ramps).stream(), mix(ramps).stream()
    take(first, before)
    resumed = mix(ramps).stream(json.loads(json.dumps(first.state)))
    assert names_of(take(whole, before + after)[before:]) == names_of(take(resumed, after))


def test_a_draw_is_named_by_its_data_set_and_cursor(ramps):
    mixture = mix(ramps)
    for draw in take(mixture.stream(), 30):
        assert names_of([mixture.draw(draw.source, draw.cursor)]) == names_of([draw])
        assert draw.key == f"{draw.source}:ramp-{draw.index}"


def test_other_data_cannot_go_on(ramps):
    state = mix(ramps).stream().state
    for other in (mix(ramps, sizes=(5, 8)), mix(ramps, seed=9), mix(ramps, sizes=(5,))):
        with pytest.raises(DataError, match="cannot be resumed with other data"):
            other.stream(state)


def test_items_get_only_tasks_they_are_eligible_for(ramps):
    dataset = ramps(lengths=[1000] * 4, captions=(), questions=(("Q", "A"),))
    tasks = {"generate": 1.0, "answer": 1.0}
    mixture = Mixture(sources={"a": Source(dataset=dataset, tasks=tasks)})
    assert {d.task.name for d in take(mixture.stream(), 30)} == {"answer"}
    mute = Mixture(sources={"a": Source(dataset=ramps(lengths=[1000], captions=()), tasks=tasks)})
    assert mute.stream().next().task is None


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        ({"weight": 0.0}, "weight is 0.0; expected a finite number above 0"),
        ({"num_used": 0}, "num_used is 0"),
        ({"max_seconds": -1.0}, "max_seconds is -1.0"),
        ({"tasks": {}}, "expected weights"),
        ({"tasks": {"generate": 0.0}}, "not all 0"),
        ({"tasks": {"generat": 1.0}}, "data.datasets.a.tasks: unknown task.*Did you mean 'generate'"),
    ],
)
def test_uses_that_make_no_sense(ramps, use, problem):
    with pytest.raises(SpecError, match=problem):
        mix(ramps, sizes=(3,), a=use)
    with pytest.raises(SpecError, match="seed"):
        mix(ramps, seed=-1)


def test_open_leaves_out_what_is_not_mandatory_and_stops_for_what_is(ramps, caplog):
    class Skipping(ramps):
        skipped = tuple(Skip(f"s{i}", "it has no caption", "no caption") for i in range(5))

    def make(kind, slot):
        if slot.class_path == "missing":
            raise DataError("no folder 'x'")
        if slot.class_path == "unknown":
            raise PluginError("unknown dataset")
        return Skipping(lengths=[1000] * slot.init_args["size"])

    def spec(**paths):
        return DataSpec(
            datasets={
                name: MixtureEntry(source=Slot(path, {"size": int(name[-1])}), is_mandatory=name.startswith("must"))
                for name, path in paths.items()
            }
        )

    with caplog.at_level(logging.WARNING, "soundomni.data"):
        mixture = Mixture.open(spec(must3="ramps", may1="missing", may0="ramps"), make)
    assert mixture.sizes == {"must3": 3} and mixture.num_unlisted == 0
    assert [(skip.key, skip.kind) for skip in mixture.skipped] == [(f"must3:s{i}", "no caption") for i in range(5)]
    assert [(skip.key, skip.reason) for skip in mixture.left_out] == [("may1", "no folder 'x'"), ("may0", "it has no items")]
    assert "dataset 'may1' is left out: no folder 'x'" in caplog.text
    assert "5 of 8 items skipped: s0: it has no caption" in caplog.text and "and 2 more" in caplog.text
    with pytest.raises(DataError, match="dataset 'must1': no folder"):
        Mixture.open(spec(must1="missing"), make)
    with pytest.raises(DataError, match="no dataset to draw from; 'may1': no folder 'x'"):
        Mixture.open(spec(may1="missing"), make)
    with pytest.raises(PluginError):
        Mixture.open(spec(may1="unknown"), make)


def folder_of(root, *, good, garbage):
    """A folder of captioned clips, some of them no audio at all."""
    root.mkdir()
    for i in range(good + garbage):
        path = root / f"{i:02}.wav"
        path.with_suffix(".txt").write_text("a sound")
        if i < good:
            soundfile.write(path, np.zeros(800), 8000)
        else:
            path.write_bytes(b"no audio" * 20)
    return root


def open_folder(root, *, is_mandatory=True, **changes):
    entry = MixtureEntry(source=Slot("audio-folder", {"path": str(root)}), is_mandatory=is_mandatory)
    toys = MixtureEntry(source=Slot("toy-sounds"))
    return Mixture.open(DataSpec(datasets={"mine": entry, "toys": toys}, **changes), build)


def test_a_folder_of_garbage_stops_the_run(tmp_path):
    root = folder_of(tmp_path / "sounds", good=5, garbage=45)
    with pytest.raises(DataError, match="dataset 'mine': 45 of 50 clips could not be read, more than data.skip_limit = 0.1") as caught:
        open_folder(root)
    message = str(caught.value)
    assert all(f"{i:02}.wav: cannot read" in message for i in (5, 6, 7)) and "and 42 more" in message and "\n" not in message
    assert open_folder(root, skip_limit=0.9).num_unlisted == 45
    optional = open_folder(root, is_mandatory=False)
    assert set(optional.sources) == {"toys"} and "45 of 50" in optional.left_out[0].reason


@pytest.mark.parametrize(("good", "garbage", "opens"), [(4, 1, True), (3, 16, True), (18, 2, True), (17, 3, False)])
def test_a_few_broken_files_are_named_and_the_rest_is_used(tmp_path, caplog, good, garbage, opens):
    root = folder_of(tmp_path / "sounds", good=good, garbage=garbage)
    if not opens:
        with pytest.raises(DataError, match=f"{garbage} of {good + garbage} clips"):
            open_folder(root)
        return
    with caplog.at_level(logging.WARNING, "soundomni.data"):
        mixture = open_folder(root)
    assert mixture.sizes["mine"] == good and mixture.num_unlisted == garbage
    assert [skip.key for skip in mixture.skipped] == [f"mine:{i:02}.wav" for i in range(good, good + garbage)]
    assert f"{garbage} of {good + garbage} items skipped: {good:02}.wav: cannot read" in caplog.text


def test_missing_files_and_captions_are_not_unreadable(tmp_path):
    root = folder_of(tmp_path / "sounds", good=40, garbage=0)
    for i in range(30):
        (root / f"{i:02}.txt").unlink()
    (root / "metadata.csv").write_text("file_name,caption\n" + "".join(f"gone{i}.wav,x\n" for i in range(30)))
    rows = "".join(f"{i},v{i},0,x\n" for i in range(30))
    soundfile.write(tmp_path / "v0_0.wav", np.zeros(800), 8000)
    (tmp_path / "caps.csv").write_text("audiocap_id,youtube_id,start_time,caption\n" + rows)
    caps = MixtureEntry(source=Slot("audiocaps", {"csv": str(tmp_path / "caps.csv"), "audio_dir": str(tmp_path)}))
    folder = MixtureEntry(source=Slot("audio-folder", {"path": str(root)}))
    mixture = Mixture.open(DataSpec(datasets={"mine": folder, "caps": caps}, skip_limit=0.0), build)
    assert mixture.sizes == {"mine": 10, "caps": 1} and mixture.num_unlisted == 0
    assert Counter(skip.kind for skip in mixture.skipped) == {"missing": 59, "no caption": 30}


def test_registered_data_sets_open_by_name(tmp_path):
    soundfile.write(tmp_path / "a_1.wav", np.zeros(800), 8000)
    (tmp_path / "a_1.txt").write_text("silence")
    (tmp_path / "clips.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,a,1,silence\n")
    spec = DataSpec(
        datasets={
            "folder": MixtureEntry(source=Slot("audio-folder", {"path": str(tmp_path), "include": ["*.wav"]})),
            "caps": MixtureEntry(source=Slot("audiocaps", {"csv": str(tmp_path / "clips.csv"), "audio_dir": str(tmp_path)})),
            "gone": MixtureEntry(source=Slot("audio-folder", {"path": str(tmp_path / "gone")}), is_mandatory=False),
        }
    )
    mixture = Mixture.open(spec, build)
    assert mixture.sizes == {"folder": 1, "caps": 1} and mixture.captions(1) == ["silence", "silence"]
    assert mixture.left_out[0].reason.startswith("there is no folder")


def test_captions_for_a_tokenizer(ramps):
    dataset = ramps(lengths=[1000] * 10, questions=(("Q?", "A"),))
    mixture = Mixture(sources={"a": Source(dataset=dataset, tasks={"generate": 1.0})})
    assert mixture.captions(2) == ["ramp 0", "slope 0", "Q?", "A", "ramp 1", "slope 1", "Q?", "A"]
