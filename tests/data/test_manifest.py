"""Manifests of many layouts, written as other programs write them."""

import csv
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import FORMATS, RATE, clip, items_of, reasons_of

from soundomni.core.errors import DataError, SoundOmniError, SpecError
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.data.audio import read_audio
from soundomni.data.manifest import Manifest


@pytest.fixture
def sounds(tmp_path):
    """A folder with one second in a.wav and b.flac, and half of it in sub/c.wav."""
    (tmp_path / "sub").mkdir()
    for name, samples in (("a.wav", RATE), ("b.flac", RATE), ("sub/c.wav", RATE // 2)):
        (tmp_path / name).write_bytes(clip(len(name), name.rpartition(".")[2], samples=samples))
    return tmp_path


def lines(folder, *rows, name="data.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def table(folder, text, name="data.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_metadata_of_a_hub_folder_in_all_its_formats(sounds):
    rows = [
        {"file_name": "sub/c.wav", "transcription": "see", "speaker": "x"},
        {"file_name": "a.wav", "transcription": "hey", "speaker": "y"},
    ]
    found = []
    for suffix in ("csv", "jsonl", "parquet"):
        path = sounds / f"metadata.{suffix}"
        if suffix == "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif suffix == "jsonl":
            lines(sounds, *rows, name=path.name)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        data = Manifest(path=str(sounds))  # the folder has one table
        path.unlink()
        found.append([(item.key, item.captions, item.attributes, item.num_samples) for item in items_of(data).values()])
    assert found[0] == [("a.wav", ("hey",), {"speaker": "y"}, RATE), ("sub/c.wav", ("see",), {"speaker": "x"}, RATE // 2)]
    assert found[1] == found[0] and found[2] == found[0]


def test_a_nemo_manifest_names_whole_files_and_parts(sounds):
    rows = [
        {"audio_filepath": str(sounds / "a.wav"), "duration": 1.0, "text": "all"},
        {"audio_filepath": "a.wav", "offset": 0.25, "duration": 0.5, "text": "middle", "lang": "en"},
        {"audio_filepath": "b.flac", "offset": 0.5, "duration": None, "text": "the rest"},
    ]
    data = Manifest(path=lines(sounds, *rows, name="train.json"))
    items = items_of(data)
    assert list(items) == ["a.wav", "a.wav#t=0.25,0.75", "b.flac#t=0.5,1"]
    assert [item.num_samples for item in items.values()] == [8000, 4000, 4000]
    assert items["a.wav#t=0.25,0.75"].attributes == {"lang": "en"}
    whole, _ = read_audio(sounds / "a.wav")
    assert np.array_equal(data.load(0)[0], whole) and np.array_equal(data.load(1)[0], whole[:, 2000:6000])
    assert np.array_equal(data.load_part(1, first=100, num_samples=50)[0], whole[:, 2100:2150])


def test_the_csv_files_of_audiocaps_and_clotho(sounds):
    for name in ("abc_30", "-x_0"):
        (sounds / f"{name}.wav").write_bytes(clip())
    text = 'audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog\n2,abc,30,"A dog, barking"\n3,-x,0,Rain\n4,gone,1,Wind\n'
    data = Manifest(path=table(sounds, text))
    assert {key: item.captions for key, item in items_of(data).items()} == {
        "abc_30.wav": ("A dog", "A dog, barking"),
        "-x_0.wav": ("Rain",),
    }
    assert items_of(data)["abc_30.wav"].attributes == {"audiocap_id": ("1", "2"), "youtube_id": "abc", "start_time": "30"}
    assert [(skip.key, skip.kind) for skip in data.skipped] == [("gone_1.wav", "missing")]
    data = Manifest(path=table(sounds, "file_name,caption_1,caption_2,caption_3\na.wav,one,two,\nb.flac,three,,one\n"))
    assert [item.captions for item in items_of(data).values()] == [("one", "two"), ("three", "one")]


def test_a_list_of_fairseq(sounds):
    data = Manifest(path=table(sounds, f"{sounds}\na.wav\t8000\nsub/c.wav\t4001\n", "train.tsv"), captions=False)
    assert list(items_of(data)) == ["a.wav"]
    assert reasons_of(data) == {"sub/c.wav": "it has 4000 samples, but its row says 4001 (row 3)"}
    elsewhere = table(sounds, "/somewhere/else\na.wav\t8000\n", "train.tsv")
    with pytest.raises(DataError, match="files are in '/somewhere/else', outside its own folder. Set root"):
        Manifest(path=elsewhere, captions=False)
    assert len(Manifest(path=elsewhere, root=str(sounds), captions=False)) == 1


def test_a_field_map_names_columns_of_any_layout(sounds):
    text = "clip\tbegin\tstop\ttitle\ttags\tfolder\na\t0.1\t0.3\tA title\tloud\t.\nc\t\t\tSee\tsoft\tsub\n"
    fields = {"path": "{folder}/{clip}.wav", "start": "begin", "end": "stop", "captions": ["title", "tags"]}
    data = registry.build("dataset", Slot("manifest", {"path": table(sounds, text, "x.tsv"), "fields": fields}))
    items = items_of(data)
    assert {key: item.captions for key, item in items.items()} == {"a.wav#t=0.1,0.3": ("A title", "loud"), "sub/c.wav": ("See", "soft")}
    data = Manifest(path=lines(sounds, {"file": "a.wav", "n": 1, "about": ["x", "y"]}), fields={"captions": "about"})
    assert data.item(0).captions == ("x", "y") and data.item(0).attributes == {"n": 1}


def test_seconds_are_those_of_the_whole_file(sounds):
    rows = [{"path": "a.wav", "length": 1.05, "text": "x"}, {"path": "b.flac", "length": 2.0, "text": "y"}]
    data = Manifest(path=lines(sounds, *rows), fields={"seconds": "length"})
    assert list(items_of(data)) == ["a.wav"] and reasons_of(data)["b.flac"].startswith("it lasts 1 s, but its row says 2 s")


def test_rows_of_the_same_part_add_up_and_rounding_is_none(sounds):
    rows = [
        {"path": "a.wav", "start": 0, "duration": 0.996, "caption": "one", "questions": [{"question": "Q", "answer": "A"}]},
        {"path": "a.wav", "caption": "two"},
        {"path": "a.wav", "start": 0.0, "end": 1.004, "captions": ["one", "three"]},
    ]
    data = Manifest(path=lines(sounds, *rows))
    assert len(data) == 1 and data.item(0).key == "a.wav" and data.item(0).num_samples == RATE
    assert data.item(0).captions == ("one", "two", "three") and data.item(0).questions == (("Q", "A"),)


@pytest.mark.parametrize("suffix", FORMATS)
def test_parts_of_every_format(tmp_path, suffix):
    (tmp_path / f"x.{suffix}").write_bytes(clip(1, suffix, samples=4000))
    data = Manifest(path=lines(tmp_path, {"path": f"x.{suffix}", "start": 0.1, "duration": 0.2, "text": "t"}))
    whole, rate = read_audio(tmp_path / f"x.{suffix}")
    first = round(0.1 * rate)
    assert np.array_equal(data.load(0)[0], whole[:, first : first + round(0.2 * rate)])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"path": "a.wav", "duration": math.nan}, "'duration' is nan; expected a number of seconds above 0"),
        ({"path": "a.wav", "duration": math.inf}, "'duration' is inf"),
        ({"path": "a.wav", "duration": 10**400}, "'duration' is 1000"),
        ({"path": "a.wav", "duration": 0}, "'duration' is 0"),
        ({"path": "a.wav", "offset": -1}, "'offset' is -1; expected a number of seconds from 0"),
        ({"path": "a.wav", "offset": True}, "'offset' is True"),
        ({"path": "a.wav", "start": "soon"}, "'start' is 'soon'"),
        ({"path": "a.wav", "start": 0.5, "end": 0.25}, "its part ends at 0.25 s, but starts at 0.5 s"),
        ({"path": "a.wav", "end": 0.5, "duration": 0.7}, "lasts from 0 to 0.5 s, but its duration is 0.7 s"),
        ({"path": "a.wav", "start": 5}, "its part starts at 5 s, but the file lasts only 1 s"),
        ({"path": "a.wav", "start": 0.5, "duration": 3}, "its part ends at 3.5 s, but the file lasts only 1 s"),
        ({"path": 7}, "'path' is a number; expected a path"),
        ({"path": ""}, "'path' is empty"),
        ({"path": "a\0.wav"}, "NUL"),
        ({"path": "a.wav", "text": 3}, "'text' is a number; expected text"),
        ({"path": "a.wav", "captions": ["x", None]}, "'captions' is null; expected text"),
        ({"path": "a.wav", "file": "b.flac"}, "'file' and 'path' may each be the path"),
        ({"file_name": "a.wav", "audio_filepath": "b.flac"}, "'file_name' and 'audio_filepath' may each be the path"),
        ({"sentence": "x", "transcript": "y", "path": "a.wav"}, "may each be the caption"),
        ({"path": "https://example.org/a.wav"}, "it is a URL, and nothing is fetched"),
        ({"path": "no.wav"}, "no such file"),
        ({"path": "sub"}, "it is a folder"),
        ({"path": "x" * 5000}, "File name too long"),
        ({"path": "\ud800.wav"}, "no such file"),
        ({"note": "x"}, "no column with the path, such as file_name, audio_filepath or path; it has 'note'"),
    ],
)
def test_a_damaged_row_is_named_and_the_others_are_used(sounds, row, reason):
    data = Manifest(path=lines(sounds, {"path": "b.flac"}, row, {"path": "sub/c.wav"}), captions=False)
    assert list(items_of(data)) == ["b.flac", "sub/c.wav"]
    (skip,) = data.skipped
    assert reason in skip.reason and "\n" not in skip.reason


def test_lines_that_are_damaged_are_named_by_their_number(sounds):
    good = json.dumps({"path": "a.wav", "text": "x"}).encode()
    bad = [b"{", b"[1]", b'{"path": "a.wav", "path": "b.flac"}', b"\xff\xfe", b"[" * 100_000, b'{"a":"' + b"x" * 5_000_000 + b'"}']
    (sounds / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, b"", *bad, good.replace(b"a.wav", b"b.flac")]))
    data = Manifest(path=str(sounds / "d.jsonl"))
    assert list(items_of(data)) == ["a.wav", "b.flac"]
    assert list(reasons_of(data)) == [f"d.jsonl:{line}" for line in range(3, 9)]
    for skip, words in zip(
        data.skipped, ("not JSON", "an object", "twice", "UTF-8", "nested too deeply", "more than 4,000,000"), strict=True
    ):
        assert words in skip.reason


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "d.csv",
            "foo,bar\n1,2\n",
            "no column with the path, .* it has 'foo', 'bar'. Name the right one, for instance fields: {path: foo}",
        ),
        ("d.csv", "file_name;text\na.wav;x\n", "separated by semicolons; expected commas"),
        ("d.tsv", "file_name,text\na.wav,x\n", "separated by commas; expected tabs"),
        ("d.csv", "a.wav,x\n", "begins with a row about 'a.wav'"),
        ("d.csv", "file_name,text\n../a.wav,x\n", r"row 2: '\.\./a.wav' leads out of the folder .* Set root"),
        ("d.csv", "file_name,text\n/etc/passwd,x\n", "row 2: '/etc/passwd' leads out"),
        ("d.csv", "file_name,text\nC:\\a.wav,x\n", "leads out"),
        ("d.csv", 'file_name,text\na.wav,"x\n', "a quote is opened and never closed"),
        ("d.csv", "file_name,text\na.wav,x,y\n", "it has 3 fields"),
        ("d.csv", "file_name,file_name\na.wav,x\n", "twice"),
        ("d.csv", "file_name,text\n", "has no rows"),
        ("d.jsonl", " \n", "is empty"),
        ("d.jsonl", '{"x": 1}\n', "no row in .* can be used; the first, 'd.jsonl:1': no column with the path"),
        ("d.xlsx", "x", "has the suffix '.xlsx'; expected one of .jsonl"),
        ("d.csv", "file_name,tag\na.wav,x\n", "has a caption. Name the column with captions in fields, or set captions to false"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(sounds, name, text, message):
    with pytest.raises(DataError, match=message) as caught:
        Manifest(path=table(sounds, text, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"paths": "x"}, "fields has 'paths'; expected one of path, captions.*Did you mean 'path'"),
        ({"path": ["a", "b"]}, "fields.path is .*; expected a column"),
        ({"captions": []}, "fields.captions is .*; expected a column, or a list"),
        ({"path": "{a.__class__}"}, "columns in braces"),
        ({"path": "{a!r}"}, "columns in braces"),
        ({"path": "{a"}, "columns in braces"),
        ({"captions": "titel"}, r"fields.captions is 'titel'; expected a column of 'd.csv', which has .*'title'.* Did you mean 'title'"),
    ],
)
def test_a_wrong_field_map_is_one_line(sounds, fields, message):
    path = table(sounds, "file_name,title\na.wav,x\n", "d.csv")
    with pytest.raises((SpecError, DataError), match=message) as caught:
        Manifest(path=path, fields=fields)
    assert "\n" not in str(caught.value)


def test_a_root_is_where_paths_start_and_end(sounds, tmp_path):
    inner = sounds / "lists"
    inner.mkdir()
    path = lines(inner, {"path": "a.wav", "text": "x"}, {"path": str(sounds / "b.flac"), "text": "y"})
    assert list(items_of(Manifest(path=path, root=str(sounds)))) == ["a.wav", "b.flac"]
    with pytest.raises(DataError, match="leads out"):
        Manifest(path=path)
    with pytest.raises(DataError, match="root is .*, which is not a folder"):
        Manifest(path=path, root=str(sounds / "none"))


def test_a_relative_root_takes_absolute_paths_too(sounds, monkeypatch):
    monkeypatch.chdir(sounds / "sub")
    path = lines(sounds / "sub", {"path": str(sounds / "b.flac"), "text": "y"}, {"path": "a.wav", "text": "x"})
    data = Manifest(path=path, root="..")
    assert list(items_of(data)) == ["a.wav", "b.flac"]
    monkeypatch.chdir(sounds)
    assert data.load(0)[0].shape == (1, RATE)
    lines(sounds, {"path": str(sounds / "b.flac"), "text": "y"})
    assert len(Manifest(path="sub/../data.jsonl")) == 1


def test_files_that_have_no_decoder_are_counted_by_format(sounds):
    (sounds / "x.wma").write_bytes(b"\0\0\0\x20ftypM4A ")
    (sounds / "y.wav").write_bytes(b"\0\0\0\x20ftypM4A ")
    data = Manifest(path=lines(sounds, *({"path": name, "text": "x"} for name in ("a.wav", "x.wma", "y.wav"))))
    assert [(skip.key, skip.kind, skip.group) for skip in data.skipped] == [
        ("x.wma", "unsuitable", "in WMA, which cannot be read"),
        ("y.wav", "unreadable", ""),
    ]


def test_a_folder_without_one_table_says_what_it_has(sounds):
    with pytest.raises(DataError, match="it has no table"):
        Manifest(path=str(sounds))
    table(sounds, "x", "a.csv")
    with pytest.raises(DataError, match="it has 'a.csv'. Name one of them"):
        Manifest(path=str(sounds))


def test_a_parquet_file_with_clips_says_which_dataset_reads_it(sounds):
    audio = pa.array([{"bytes": clip(), "path": "a.wav"}])
    pq.write_table(pa.table({"audio": audio, "text": ["x"]}), sounds / "t.parquet")
    with pytest.raises(DataError, match="use the dataset 'parquet'"):
        Manifest(path=str(sounds / "t.parquet"))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["x.jsonl", "x.csv", "x.tsv", "x.parquet"]))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("any")
    (folder / name).write_bytes(data)
    with pytest.raises(SoundOmniError) as caught:
        Manifest(path=str(folder / name))
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["path", "start", "end", "duration", "text", "captions", "questions", "x"]), JSON))
def test_any_row_is_used_or_named(tmp_path_factory, row):
    folder = tmp_path_factory.mktemp("any")
    soundfile.write(folder / "a.wav", np.zeros(80), RATE)
    path = lines(folder, {"path": "a.wav"}, row)
    try:
        data = Manifest(path=path, captions=False)
    except DataError as error:
        assert "leads out" in str(error) and "\n" not in str(error)
        return
    assert len(data) + len(data.skipped) in (1, 2) and all("\n" not in skip.reason for skip in data.skipped)
