"""Data that strangers may have made to mislead a reader: each is left out or refused in one line, and nothing else happens."""

import io
import json
import os
import pickle
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import clip, header, items_of, member, pyarrow_memory, reasons_of, write_parquet, write_tar

from soundomni.core.errors import SoundOmniError
from soundomni.data.manifest import Manifest
from soundomni.data.parquet import Parquet
from soundomni.data.webdataset import WebDataset

MOST_BYTES = 60_000_000
"""Memory that no case may take."""
MOST_SECONDS = 10
GOOD = [("good.wav", clip(1)), ("good.txt", b"fine")]


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pax(name, records):
    """Returns a pax header and the member after it."""
    content = b""
    for key, value in records:
        text = f" {key}={value}\n".encode()
        length = len(text) + 1
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        content += str(length).encode() + text
    return member("pax", content, kind=tarfile.XHDTYPE) + member(name, clip(2))


def forged(head, **fields):
    """Returns a header with other bytes in some fields, and a right checksum."""
    places = {"name": (0, 100), "size": (124, 136)}
    changed = bytearray(head)
    for field, content in fields.items():
        first, end = places[field]
        changed[first:end] = content.ljust(end - first, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def sized(name, octets, kind=tarfile.REGTYPE):
    return forged(header(name, kind=kind), size=octets)


def bomb(depth):
    return b"[" * depth + b"]" * depth


def texts(name, content):
    return [(f"{name}.wav", clip(2)), (f"{name}.json", content)]


TARS = {
    "absolute name": ([member("/etc/evil.wav", clip(2))], "etc/evil.wav", "absolute path"),
    "name that leads out": ([member("../evil.wav", clip(2))], "../evil.wav", "leads out"),
    "name that leads out later": ([member("a/../../evil.wav", clip(2))], "a/../../evil.wav", "leads out"),
    "name of Windows that leads out": ([member("a\\..\\..\\evil.wav", clip(2))], "evil.wav", "leads out"),
    "drive of Windows": ([member("C:\\evil.wav", clip(2))], "evil.wav", "absolute path"),
    "symbolic link": ([header("evil.wav", kind=tarfile.SYMTYPE, link="/etc/passwd")], "evil.wav", "symbolic link"),
    "hard link": ([header("evil.wav", kind=tarfile.LNKTYPE, link="good.wav")], "evil.wav", "hard link"),
    "character device": ([header("evil.wav", kind=tarfile.CHRTYPE)], "evil.wav", "device"),
    "block device": ([header("evil.wav", kind=tarfile.BLKTYPE)], "evil.wav", "device"),
    "pipe": ([header("evil.wav", kind=tarfile.FIFOTYPE)], "evil.wav", "pipe"),
    "sparse file of GNU": ([member("evil.wav", clip(2), kind=tarfile.GNUTYPE_SPARSE)], "evil.wav", "type b'S'"),
    "sparse file of pax": ([pax("evil.wav", [("GNU.sparse.major", "1")])], "evil.wav", "sparse"),
    "pax path that leads out": ([pax("x.wav", [("path", "../evil.wav")])], "evil.wav", "leads out"),
    "pax size that is no number": ([pax("x.wav", [("size", "-5")])], "x.wav", "pax header is damaged"),
    "pax size beyond the end": ([pax("x.wav", [("size", "9999999999999")])], "s.tar", "announces 9,999,999,999,999 bytes"),
    "huge size": ([sized("evil.wav", b"77777777777\0")], "s.tar", "announces 8,589,934,591 bytes"),
    "larger than any disk": ([sized("evil.wav", b"\x80" + b"\xff" * 11)], "s.tar", "the archive is truncated"),
    "negative size": ([sized("evil.wav", b"\xff" * 12)], "s.tar", "a size is negative"),
    "size that is no number": ([sized("evil.wav", b"12z45678901\0")], "s.tar", "a size is not a number"),
    "huge long name": ([sized("LongLink", b"00077777777\0", tarfile.GNUTYPE_LONGNAME)], "s.tar", "truncated in a long header"),
    "long name that is an essay": (
        [member("LongLink", b"x/" * 50_000, kind=tarfile.GNUTYPE_LONGNAME), member("x.wav", clip(2))],
        "x.wav",
        "100,000 bytes",
    ),
    "name that is not UTF-8": (
        [forged(member("x.wav", clip(2))[:512], name=b"\xff\xfe.wav") + member("x.wav", clip(2))[512:]],
        "\ufffd\ufffd.wav",
        "its name is not text in UTF-8",
    ),
    "the same name twice": ([*GOOD[:1], ("evil.wav", clip(2)), ("evil.wav", clip(3)), ("evil.txt", b"x")], "evil", "twice"),
    "deeply nested JSON": (texts("evil", bomb(200_000)), "evil", "nested too deeply"),
    "JSON with too many digits": (texts("evil", b'{"x": ' + b"9" * 100_000 + b"}"), "evil", "digits"),
    "JSON that is too large": (texts("evil", b'{"x": "' + b"y" * 4_100_000 + b'"}'), "evil", "bytes; expected at most"),
    "JSON with a key twice": (texts("evil", b'{"text": "a", "text": "b"}'), "evil", "twice"),
    "JSON that is a list": (texts("evil", b"[1, 2]"), "evil", "expected an object"),
    "JSON of half a letter": (texts("evil", b'{"text": "\\ud800"}'), "evil", "surrogate"),
    "text that is not UTF-8": ([("evil.wav", clip(2)), ("evil.txt", b"\xff\xfe\x00")], "evil", "UTF-8"),
    "caption with a NUL": (texts("evil", b'{"text": "a\\u0000b"}'), "evil", "NUL"),
    "gzip in disguise": ([("evil.wav", b"\x1f\x8b" + bytes(100)), ("evil.txt", b"x")], "evil", "archive"),
    "zip in disguise": ([("evil.flac", b"PK\x03\x04" + bytes(100)), ("evil.txt", b"x")], "evil", "archive"),
    "pickle in disguise": ([("evil.wav", b"\x80\x04cos\nsystem\n."), ("evil.txt", b"x")], "evil", "not audio"),
}


@pytest.fixture(autouse=True)
def bounds():
    """No case may take long, or much memory."""
    start = time.process_time()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < MOST_SECONDS


def check(dataset, key, words):
    """Checks that only the good clip is used, that what is evil is named, and that every reason is one line."""
    assert [key.rpartition("/")[2] for key in items_of(dataset)] in (["good"], ["good.wav"], ["s.parquet:0"])
    assert dataset.load(0)[0].shape[1] == dataset.item(0).num_samples
    named = [skip for skip in dataset.skipped if key in skip.key]
    assert named, reasons_of(dataset)
    assert any(words in skip.reason for skip in named), reasons_of(dataset)
    assert all(skip.reason and "\n" not in skip.reason and len(skip.reason) < 1000 for skip in dataset.skipped)


@pytest.mark.parametrize("case", TARS)
def test_a_hostile_member_is_named_and_the_others_are_used(tmp_path, case):
    members, key, words = TARS[case]
    known = members if ("good.wav", GOOD[0][1]) in members else [*GOOD, *members]
    write_tar(tmp_path / "s.tar", known if known is not members else [*members, GOOD[1]])
    before = sorted(tmp_path.rglob("*"))
    check(WebDataset(path=str(tmp_path), index_dir="memory"), key, words)
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "evil.wav").exists()


def row(**values):
    return json.dumps({"path": "evil.wav", "text": "x"} | values)


ROWS = {
    "URL": (row(path="http://127.0.0.1:9/evil.wav"), "is a URL, and nothing is fetched"),
    "pipe": (row(path="pipe.wav"), "not a regular file"),
    "device": (row(path="zero.wav"), "not a regular file"),
    "NaN duration": (row(duration=float("nan")), "'duration' is nan"),
    "negative offset": (row(offset=-0.5), "'offset' is -0.5"),
    "endless duration": (row(duration=1e308), "'duration' is 1e+308"),
    "path with NUL": (row(path="evil.wav\0.txt"), "NUL"),
    "nested JSON": (bomb(200_000).decode(), "nested too deeply"),
    "long number": ('{"path": "evil.wav", "start": ' + "9" * 5000 + "}", "digits"),
    "long line": (row(note="y" * 4_100_000), "more than 4,000,000 bytes"),
    "a key twice": ('{"path": "good.wav", "path": "evil.wav"}', "twice"),
    "format string in a column": (row(**{"{0.__class__}": 1, "path": "{path.__class__}"}), "no such file"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_hostile_row_is_named_and_the_others_are_used(tmp_path, case):
    line, words = ROWS[case]
    for name in ("good", "evil"):
        (tmp_path / f"{name}.wav").write_bytes(clip())
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "d.jsonl").write_text(row(path="good.wav") + "\n" + line + "\n")
    check(Manifest(path=str(tmp_path / "d.jsonl")), "", words)


@pytest.mark.parametrize("path", ["/etc/passwd", "../evil.wav", "a/../../evil.wav", "..\\evil.wav", "C:\\evil.wav", "\\\\host\\evil.wav"])
def test_a_path_that_leads_out_refuses_the_table(tmp_path, path):
    (tmp_path / "data").mkdir()
    for name in ("evil.wav", "data/good.wav"):
        (tmp_path / name).write_bytes(clip())
    (tmp_path / "data/d.jsonl").write_text(row(path="good.wav") + "\n" + row(path=path))
    with pytest.raises(SoundOmniError, match="row 2: .* leads out of the folder") as caught:
        Manifest(path=str(tmp_path / "data/d.jsonl"))
    assert "\n" not in str(caught.value)


def archive():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("d.csv", "file_name,text\ngood.wav,x\n")
    return out.getvalue()


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.tsv", "d.parquet", "d.tar"])
@pytest.mark.parametrize("kind", ["pickle", "zip", "gzip", "zeros", "noise", "pipe"])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, name, kind):
    trap = tmp_path / "trap"
    noise = np.random.default_rng(0).bytes(5000)
    contents = {
        "pickle": pickle.dumps(Trap(str(trap))),
        "zip": archive(),
        "gzip": b"\x1f\x8b" + noise,
        "zeros": bytes(5000),
        "noise": noise,
    }
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(contents[kind])
    reader = {"d.parquet": Parquet, "d.tar": WebDataset}.get(name, Manifest)
    with pytest.raises(SoundOmniError) as caught:
        reader(path=str(path))
    assert "\n" not in str(caught.value) and not trap.exists()


def test_columns_with_pickles_and_other_types_are_not_read(tmp_path):
    trap = tmp_path / "trap"
    files = [clip(1), clip(2)]
    pickles = pa.array([pickle.dumps(Trap(str(trap)))] * 2)
    extension = pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "evil", "arrow.py_extension_type"), pickles)
    deep = pa.array([[[[[[["x"]]]]]]] * 2)
    columns = {"text": ["x", "y"], "blob": pickles, "extension": extension, "deep": deep, "n": [1.5, None]}
    write_parquet(tmp_path / "s.parquet", files, columns=columns)
    data = Parquet(path=str(tmp_path), index_dir="memory")
    assert data.item(0).attributes == {"file": "0.wav", "n": 1.5} and not trap.exists()
    write_parquet(tmp_path / "metadata.parquet", files, columns={"file_name": ["s.parquet", "x"], "blob": pickles})
    with pytest.raises(SoundOmniError, match="no row|none of the 2 rows"):
        Manifest(path=str(tmp_path / "metadata.parquet"), captions=False)
    assert not trap.exists()


BAD_ROWS = {
    "path without bytes": ([clip(1), None], {"text": ["x", "y"]}, "only a path, which is not opened"),
    "text that is too large": ([clip(1), clip(2)], {"text": ["x", "y" * 4_100_000]}, "4,100,000 bytes"),
    "text that is not UTF-8": ([clip(1), clip(2)], {"text": pa.array([b"x", b"\xff"]).view(pa.string())}, "UTF-8"),
    "caption of numbers": ([clip(1), clip(2)], {"text": pa.array([["x"], ["\0"]])}, "NUL"),
    "zip as audio": ([clip(1), archive()], {"text": ["x", "y"]}, "an archive"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_hostile_row_of_a_shard_is_named(tmp_path, case):
    files, columns, words = BAD_ROWS[case]
    write_parquet(tmp_path / "s.parquet", files, columns=columns, names=["/etc/passwd", "../x.wav"])
    check(Parquet(path=str(tmp_path), index_dir="memory"), "s.parquet:1", words)


def test_a_text_that_is_repeated_a_thousand_times_is_there_once(tmp_path):
    """Its shard would take 5 GB."""
    columns = {"text": pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), ["y" * 5_000_000])}
    write_parquet(tmp_path / "s.parquet", [clip(1, samples=80)] * 1000, columns=columns, group=1000)
    with pyarrow_memory() as pool, pytest.raises(SoundOmniError, match="'text': it has 5,000,000 bytes") as caught:
        Parquet(path=str(tmp_path), index_dir="memory")
    assert "\n" not in str(caught.value) and pool.max_memory() < MOST_BYTES


def test_a_footer_that_lies_about_its_rows_is_refused(tmp_path):
    path = write_parquet(tmp_path / "s.parquet", [clip(1), clip(2)])
    data = bytearray(path.read_bytes())
    assert pq.ParquetFile(path).metadata.num_rows == 2
    for place in range(len(data) - 1200, len(data) - 8):
        changed = bytearray(data)
        changed[place] ^= 0x7F
        path.write_bytes(changed)
        try:
            found = Parquet(path=str(tmp_path), index_dir="memory", captions=False)
        except SoundOmniError as error:
            assert "\n" not in str(error)
        else:
            assert len(found) <= 2 and all("\n" not in skip.reason for skip in found.skipped)
