"""Readers of tables and shards give every rank the same order, resume at any sample, and name every damaged clip."""

import json
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import RATE, clip, write_parquet, write_tar

from soundomni.core.errors import UnreadableAudioError
from soundomni.core.spec.schema import DataSpec, Slot
from soundomni.data.digest import list_dataset
from soundomni.data.loader import PackedLoader
from soundomni.data.manifest import Manifest
from soundomni.data.mixture import Mixture, Source, open_dataset
from soundomni.data.parquet import Parquet
from soundomni.data.webdataset import WebDataset

READERS = ("manifest", "parquet", "webdataset")


def files_of(count, *, damaged=(), suffix="wav", samples=160):
    """Returns clips as bytes, some of them cut, empty, noise or silent about their length."""
    whole = [clip(i, suffix, samples=samples + i % 40) for i in range(count)]
    harms = (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"noise" * 20, lambda data: data[:30])
    return [harms[i % len(harms)](data) if i in damaged else data for i, data in enumerate(whole)]


def opened(kind, folder, files, shards=3):
    """Writes clips as the kind of dataset has them, and returns it with its key of each clip."""
    size = -(-len(files) // shards)
    parts = [(shard, first, files[first : first + size]) for shard, first in enumerate(range(0, len(files), size))]
    if kind == "manifest":
        for i, data in enumerate(files):
            (folder / f"{i:04d}.wav").write_bytes(data)
        rows = [{"audio_filepath": f"{i:04d}.wav", "text": f"sound {i}"} for i in range(len(files))]
        (folder / "train.json").write_text("\n".join(map(json.dumps, rows)))
        return Manifest(path=str(folder / "train.json")), [f"{i:04d}.wav" for i in range(len(files))]
    if kind == "parquet":
        for shard, _, part in parts:
            write_parquet(folder / f"{shard}.parquet", part, group=50)
        data = Parquet(path=str(folder), index_dir=str(folder / "index"))
        return data, [f"{shard}.parquet:{row}" for shard, _, part in parts for row in range(len(part))]
    for shard, first, part in parts:
        texts = [f"sound {first + i}".encode() for i in range(len(part))]
        pairs = zip(part, texts, strict=True)
        write_tar(
            folder / f"{shard}.tar",
            [one for i, (data, text) in enumerate(pairs) for one in ((f"{i:04d}.wav", data), (f"{i:04d}.txt", text))],
        )
    data = WebDataset(path=str(folder), index_dir=str(folder / "index"))
    return data, [f"{shard}.tar/{row:04d}" for shard, _, part in parts for row in range(len(part))]


@pytest.fixture(scope="module", params=READERS)
def dataset(request, tmp_path_factory):
    """Thirty clips, two of them damaged."""
    return opened(request.param, tmp_path_factory.mktemp("clips"), files_of(30, damaged=(4, 17), samples=600))[0]


def mixture_of(dataset):
    return Mixture(sources={"main": Source(dataset=dataset, tasks={"generate": 1.0, "describe": 1.0})}, seed=5)


def steps_of(dataset, writer, count, **arguments):
    spec = DataSpec(datasets={}, tokens_per_batch=128, lookahead=8, workers=2)
    with PackedLoader(mixture=mixture_of(dataset), writer=writer, spec=spec, batches_per_step=4, **arguments) as loader:
        return list(islice(loader, count))


def content(batch):
    return batch.keys, batch.text_ids.tolist(), batch.of("latent").seeds, batch.of("latent").waveform.numpy().tobytes()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_samples_of_one(dataset, make_writer, world_size):
    whole = steps_of(dataset, make_writer(), 6)
    assert len({key for step in whole for batch in step.batches for key in batch.keys}) == 28  # a whole epoch
    ranks = [steps_of(dataset, make_writer(), 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for i, step in enumerate(whole):
        for g, batch in enumerate(step.batches):
            assert content(ranks[g % world_size][i].batches[g // world_size]) == content(batch)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 4), world_size=st.sampled_from([1, 2, 4]))
def test_a_run_resumes_after_any_step_on_any_number_of_ranks(dataset, make_writer, stop, world_size):
    whole = steps_of(dataset, make_writer(), 6)
    state = json.loads(json.dumps(whole[stop].state))
    parts = [steps_of(dataset, make_writer(), 5 - stop, state=state, rank=rank, world_size=world_size) for rank in range(world_size)]
    for i, expected in enumerate(whole[stop + 1 :]):
        found = [parts[g % world_size][i].batches[g // world_size] for g in range(4)]
        assert [content(batch) for batch in found] == [content(batch) for batch in expected.batches]


@settings(max_examples=20, deadline=None)
@given(stop=st.integers(0, 90))
def test_the_order_resumes_after_any_sample(dataset, stop):
    stream = mixture_of(dataset).stream()
    draws = [stream.next() for _ in range(stop)]
    again = mixture_of(dataset).stream(json.loads(json.dumps(stream.state)))
    assert [(draw.key, draw.seed) for draw in (again.next() for _ in range(30))] == [
        (draw.key, draw.seed) for draw in (stream.next() for _ in range(30))
    ]
    epochs = [{draw.key for draw in draws[28 * epoch : 28 * epoch + 28]} for epoch in range(stop // 28)]
    assert all(len(keys) == 28 for keys in epochs)


@pytest.mark.parametrize("kind", READERS)
def test_a_thousand_clips_of_which_one_in_twenty_is_damaged(tmp_path, kind):
    damaged = set(range(7, 1000, 20))
    files = files_of(1000, damaged=damaged)
    data, keys = opened(kind, tmp_path, files)
    assert len(damaged) == 50 and len(data) == 950
    assert [data.item(i).key for i in range(950)] == [keys[i] for i in range(1000) if i not in damaged]
    assert sorted(skip.key for skip in data.skipped) == sorted(keys[i] for i in damaged)
    assert all(skip.kind == "unreadable" and "\n" not in skip.reason for skip in data.skipped)
    for i in range(0, 950, 50):
        waveform, rate = data.load(i)
        assert (waveform.shape[1], rate) == (data.item(i).num_samples, RATE)
    assert open_dataset(Slot(kind, {}), lambda *_: data, skip_limit=0.06) is data


@pytest.mark.parametrize("kind", READERS)
def test_clips_that_break_after_the_listing_are_named_when_they_are_read(tmp_path, kind):
    data, _ = opened(kind, tmp_path, files_of(3))
    for path in tmp_path.iterdir():
        if path.suffix in (".wav", ".parquet", ".tar"):
            path.write_bytes(path.read_bytes()[:200])
    for i in range(3):
        with pytest.raises(UnreadableAudioError, match="cannot read '.*") as caught:
            data.load(i)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", READERS)
def test_another_instance_lists_the_same(tmp_path, kind):
    files = files_of(40, damaged=(3,))
    first, second = (list_dataset(opened(kind, tmp_path, files)[0]) for _ in range(2))
    assert first == second and first.count == 39
