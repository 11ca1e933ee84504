"""Parquet shards as the Hub stores them: what is found in them, what is left out, and how much of them is read."""

import io
import json
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import FORMATS, clip, items_of, pyarrow_memory, reasons_of, settle, write_parquet

from soundomni.core.errors import DataError, PluginError, SoundOmniError, SpecError, UnreadableAudioError
from soundomni.data import parquet_rows
from soundomni.data.audio import read_audio
from soundomni.data.manifest import Manifest
from soundomni.data.parquet import Parquet
from soundomni.data.parquet_files import ParquetFile


def opened(path, **settings):
    return Parquet(path=str(path), **({"index_dir": "memory"} | settings))


def test_shards_of_every_format_in_their_order(tmp_path):
    files = [clip(i, suffix) for i, suffix in enumerate([*FORMATS, *FORMATS])]
    (tmp_path / "data").mkdir()
    for shard in range(2):
        part = files[5 * shard : 5 * shard + 5]
        columns = {"text": [f"sound {i}" for i in range(5)], "id": [5 * shard + i for i in range(5)], "tags": [["a", "b"]] * 5}
        write_parquet(tmp_path / f"data/train-0000{shard}-of-00002.parquet", part, group=2, columns=columns)
    data = opened(tmp_path)
    assert [item.key for item in items_of(data).values()] == [
        f"data/train-0000{s}-of-00002.parquet:{i}" for s in range(2) for i in range(5)
    ]
    assert data.item(7).captions == ("sound 2",) and data.item(7).attributes == {"file": "2.wav", "id": 7, "tags": ["a", "b"]}
    for index, content in enumerate(files):
        (tmp_path / "one.audio").write_bytes(content)
        expected, rate = read_audio(tmp_path / "one.audio")
        waveform, found = data.load(index)
        assert np.array_equal(waveform, expected) and found == rate and waveform.shape[1] == data.item(index).num_samples
        assert np.array_equal(data.load_part(index, first=100, num_samples=200)[0], expected[:, 100:300])


@pytest.mark.parametrize("cache_mb", [0, 256])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_are_the_same_with_and_without_a_cache(tmp_path, cache_mb, compression):
    files = [clip(i) for i in range(10)]
    write_parquet(tmp_path / "x.parquet", files, group=4, compression=compression)
    data = opened(tmp_path, cache_mb=cache_mb)
    for i in (9, 0, 5, 4, 9, 3):
        assert np.array_equal(data.load(i)[0][0], soundfile.read(io.BytesIO(files[i]), dtype="float32")[0])


def test_row_groups_stay_in_memory_within_the_limit(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", [clip(i, samples=50_000) for i in range(12)], group=4, compression="none")  # 0.4 MB a group
    read = []
    audio = ParquetFile.audio
    monkeypatch.setattr(ParquetFile, "audio", lambda self, group, column: read.append(group) or audio(self, group, column))
    data = opened(tmp_path, cache_mb=1)
    read.clear()
    for i in (0, 1, 4, 5, 2, 3):
        data.load(i)
    assert read == [0, 1]
    for i in (8, 4, 0):  # the third group takes the place of the one that was used least recently
        data.load(i)
    assert read == [0, 1, 2, 1] or read == [0, 1, 2, 1, 0]


def test_rows_that_cannot_be_used_are_named(tmp_path):
    names = ["a.wav", "b.wav", "c.wma", "d.wav", "e.wav", "f.wav"]
    files = [clip(), b"noise", b"\0\0\0\x20ftypM4A ", None, clip()[:600], clip(5)]
    texts = ["one", "two", "three", "four", "five", None]
    write_parquet(tmp_path / "x.parquet", files, names=names, columns={"caption": texts}, group=2)
    data = opened(tmp_path)
    assert list(items_of(data)) == ["x.parquet:0"]
    found = {skip.key: (skip.kind, skip.reason) for skip in data.skipped}
    assert {key: kind for key, (kind, _) in found.items()} == {
        "x.parquet:1": "unreadable",
        "x.parquet:2": "unsuitable",
        "x.parquet:3": "missing",
        "x.parquet:4": "unreadable",
        "x.parquet:5": "no caption",
    }
    assert "truncated" in found["x.parquet:4"][1] and found["x.parquet:3"][1] == "it has no bytes, only a path, which is not opened"


def test_a_damaged_row_group_and_a_damaged_shard_are_named(tmp_path):
    files = [clip(i, samples=4000) for i in range(12)]
    path = write_parquet(tmp_path / "a.parquet", files, group=4, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    place = data.find(files[6])
    assert place > 0
    data[place + 5000] ^= 0xFF
    path.write_bytes(data)
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    (tmp_path / "d.parquet").write_bytes(b"")
    found = opened(tmp_path)
    assert [item.key for item in items_of(found).values()] == [f"a.parquet:{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    reasons = reasons_of(found)
    assert reasons["a.parquet:4"].startswith("rows 4 to 7 cannot be read: row group 1 is damaged")
    assert "it is truncated" in reasons["b.parquet"] and list(reasons) == ["a.parquet:4", "b.parquet", "c.parquet", "d.parquet"]
    assert all("\n" not in reason for reason in reasons.values())


def test_the_audio_column_must_be_clear(tmp_path):
    audio = pa.array([{"bytes": clip(), "path": "a.wav"}])
    table = pa.table({"first": audio, "second": audio, "raw": [clip(7)], "text": ["x"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="several columns with audio: first and second. Choose one, for instance fields: {audio: first}"):
        opened(tmp_path)
    assert opened(tmp_path, fields={"audio": "second"}).item(0).attributes == {"file": "a.wav"}
    assert opened(tmp_path, fields={"audio": "raw"}).item(0).num_samples == 856
    for name, words in (("text", "'text' does not hold audio files"), ("third", "fields.audio is 'third'; expected a column of '/")):
        with pytest.raises(DataError, match=words):
            opened(tmp_path, fields={"audio": name})
    features = {"info": {"features": {"first": {"_type": "Image"}, "second": {"_type": "Audio"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "x.parquet")
    assert len(opened(tmp_path)) == 1
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column with audio, a struct of bytes and path; it has 'text', 'n'"):
        opened(tmp_path)


def test_splits_are_not_mixed_and_settings_are_checked(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        write_parquet(tmp_path / f"data/{name}.parquet", [clip()])
    with pytest.raises(DataError, match=r"splits test and train. Choose .* include: \['data/train-\*'\]"):
        opened(tmp_path)
    assert list(items_of(opened(tmp_path, include=["data/train-*"]))) == ["data/train-00000-of-00001.parquet:0"]
    with pytest.raises(SpecError, match="cache_mb is -1; expected 0 or more"):
        opened(tmp_path, cache_mb=-1)


def test_an_index_is_kept_and_used_until_the_shard_changes(tmp_path, monkeypatch):
    calls = []
    read = parquet_rows.audio_info
    monkeypatch.setattr(parquet_rows, "audio_info", lambda place: calls.append(place) or read(place))
    path = settle(write_parquet(tmp_path / "x.parquet", [clip(), b"noise", clip(2)]))
    first = opened(path, index_dir=str(tmp_path / "i"))
    again = opened(path, index_dir=str(tmp_path / "i"))
    assert len(calls) == 3 and items_of(first) == items_of(again) and first.skipped == again.skipped
    settle(write_parquet(path, [clip(3)]))
    assert len(opened(path, index_dir=str(tmp_path / "i"))) == 1 and len(calls) == 4
    (index,) = (tmp_path / "i").iterdir()
    text = index.read_text()
    for forged in ("", "[]", text.replace("824", "-1"), text.replace("824,8000", '"x",8000'), text.replace('"audio"', '"other"')):
        index.write_text(forged)
        assert items_of(opened(path, index_dir=str(tmp_path / "i"))) == items_of(opened(path))


def test_a_shard_that_changes_after_the_listing_is_not_read(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [clip()])
    data = opened(path)
    settle(path)
    with pytest.raises(UnreadableAudioError, match="cannot read 'x.parquet:0': its shard changed"):
        data.load(0)


def test_without_pyarrow_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    write_parquet(tmp_path / "metadata.parquet", [clip()])
    for name in ("pyarrow", "pyarrow.parquet", "pyarrow.compute"):
        monkeypatch.setitem(sys.modules, name, None)
    for make, words in ((Parquet, "dataset 'parquet' needs"), (Manifest, "a manifest in Parquet needs")):
        with pytest.raises(PluginError, match=words + r" the package pyarrow: pip install soundomni\[parquet\]$"):
            make(path=str(tmp_path))


def test_threads_read_shards_at_once(tmp_path):
    for shard in range(3):
        write_parquet(tmp_path / f"{shard}.parquet", [clip(10 * shard + i, "flac") for i in range(10)])
    data = opened(tmp_path, cache_mb=0)
    expected = [data.load(i)[0] for i in range(30)]
    wrong = []

    def read(seed):
        order = np.random.default_rng(seed).permutation(30).tolist()
        wrong.extend(i for i in order if not np.array_equal(data.load(i)[0], expected[i]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_stays_within_a_part_of_a_large_row_group(tmp_path):
    """The shard has one row group of 64 MB."""
    files = [clip(0, samples=1_000_000) + bytes([i]) for i in range(32)]
    settings = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}  # a page for each clip
    write_parquet(tmp_path / "x.parquet", files, group=32, **settings)
    with pyarrow_memory() as pool:
        data = opened(tmp_path, cache_mb=16, captions=False)
        for i in (31, 5):
            data.load(i)
    assert 2_000_000 < pool.max_memory() < 30_000_000


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=40))
def test_any_damage_is_named_or_changes_nothing(tmp_path_factory, place, noise):
    folder = tmp_path_factory.mktemp("any")
    path = write_parquet(folder / "x.parquet", [clip(i, samples=200) for i in range(6)], group=2, write_page_checksum=True)
    data = path.read_bytes()
    place %= len(data)
    path.write_bytes(data[:place] + noise + data[place + len(noise) :])
    try:
        found = opened(folder, captions=False)
    except SoundOmniError as error:
        assert "\n" not in str(error)
        return
    assert all("\n" not in skip.reason for skip in found.skipped)
    for i in range(len(found)):
        try:
            waveform, _ = found.load(i)
        except UnreadableAudioError as error:
            assert "\n" not in str(error)
        else:
            assert waveform.shape[1] == found.item(i).num_samples
