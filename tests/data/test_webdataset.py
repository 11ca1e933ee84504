"""Tar shards in the layout of WebDataset: what is found in them, what is left out, and what is kept between runs."""

import gzip
import json
import os
import tarfile
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import FORMATS, RATE, clip, header, items_of, member, reasons_of, settle, write_tar

from soundomni.core.errors import DataError, SoundOmniError, SpecError, UnreadableAudioError
from soundomni.data import webdataset
from soundomni.data.audio import read_audio
from soundomni.data.tar_members import scan
from soundomni.data.webdataset import WebDataset

TEXT = b'{"text": "a sound"}'


def opened(path, **settings):
    return WebDataset(path=str(path), **({"index_dir": "memory"} | settings))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_of_every_audio_format_and_tar_format(tmp_path, form):
    long = f"{'folder/' * 20}ä{'x' * 90}" if form != tarfile.USTAR_FORMAT else f"{'folder/' * 15}x{'y' * 60}"
    files = {f"k{i}.{suffix}": clip(i, suffix) for i, suffix in enumerate(FORMATS)} | {f"./{long}.wav": clip(9)}
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as shard:
        for name, data in files.items():
            for name_, content in ((name, data), (name.rpartition(".")[0] + ".json", TEXT)):
                info = tarfile.TarInfo(name_)
                info.size, info.mtime = len(content), 1.5
                (tmp_path / "f").write_bytes(content)
                with (tmp_path / "f").open("rb") as file:
                    shard.addfile(info, file)
    data = opened(tmp_path / "s.tar")
    assert list(items_of(data)) == sorted(f"s.tar/{name.removeprefix('./').rpartition('.')[0]}" for name in files) and not data.skipped
    for index, item in enumerate(items_of(data).values()):
        name = next(name for name in files if f"s.tar/{name.removeprefix('./').rpartition('.')[0]}" == item.key)
        (tmp_path / "one.audio").write_bytes(files[name])
        expected, rate = read_audio(tmp_path / "one.audio")
        waveform, found = data.load(index)
        assert np.array_equal(waveform, expected) and found == rate == item.sample_rate
        assert np.array_equal(data.load_part(index, first=100, num_samples=200)[0], expected[:, 100:300])


def test_keys_end_at_the_first_dot_and_texts_are_captions(tmp_path):
    members = [
        ("d.1/a.b.wav", clip(1)),
        ("d.1/a.txt", b"first\n\nsecond\n"),
        ("d.1/a.json", json.dumps({"caption": ["first", "second"], "id": 7, "questions": [{"question": "Q", "answer": "A"}]}).encode()),
        ("d.1/a.npy", b"\x93NUMPY"),
        ("d.1/b.pyd", b"cos\nsystem\n(S'true'\ntR."),
        ("c.json", TEXT),
        ("e.WAV", clip(2)),
        ("e.TXT", b"loud"),
        ("._e.wav", b"noise of macOS"),
        ("f.wav", clip(3)),
    ]
    data = opened(write_tar(tmp_path / "s.tar", members))
    items = items_of(data)
    assert list(items) == ["s.tar/d.1/a", "s.tar/e"]
    assert items["s.tar/d.1/a"].captions == ("first", "second") and items["s.tar/d.1/a"].attributes == {"id": 7}
    assert items["s.tar/d.1/a"].questions == (("Q", "A"),)
    assert {skip.key: (skip.kind, skip.reason) for skip in data.skipped} == {
        "s.tar/c": ("missing", "it has no audio file"),
        "s.tar/f": ("no caption", "it has no caption"),
    }
    assert list(items_of(opened(tmp_path / "s.tar", captions=False))) == ["s.tar/d.1/a", "s.tar/e", "s.tar/f"]


def test_several_audio_files_need_a_choice(tmp_path):
    members = [("a.vocals.wav", clip(1)), ("a.drums.wav", clip(2)), ("a.txt", b"x"), ("b.wav", clip(3)), ("b.txt", b"y")]
    write_tar(tmp_path / "s.tar", members)
    assert (
        reasons_of(opened(tmp_path))["s.tar/a"]
        == "it has several audio files: 'vocals.wav', 'drums.wav'. Choose one, for instance audio: vocals.wav"
    )
    data = opened(tmp_path, audio="drums.wav")
    assert list(items_of(data)) == ["s.tar/a"] and reasons_of(data) == {"s.tar/b": "it has only 'wav'"}
    assert data.item(0).num_samples == 816


def test_fields_name_the_caption_of_the_json(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.wav", clip()), ("a.json", b'{"title": "x", "text": "y"}')])
    data = opened(tmp_path, fields={"captions": ["title"]})
    assert data.item(0).captions == ("x",) and data.item(0).attributes == {"text": "y"}
    with pytest.raises(SpecError, match="fields has 'path'; expected one of captions"):
        opened(tmp_path, fields={"path": "x"})
    with pytest.raises(DataError, match="fields.captions is 'titel'; .* Did you mean 'title'"):
        opened(tmp_path, fields={"captions": "titel"}, captions=False)


def test_shards_of_several_splits_are_not_mixed_silently(tmp_path):
    (tmp_path / "test").mkdir()
    for name in ("train-000.tar", "train-001.tar", "test/000.tar", ".hidden.tar"):
        write_tar(tmp_path / name, [("a.wav", clip()), ("a.txt", b"x")])
    with pytest.raises(DataError, match=r"has the splits test and train. Choose the shards of one, for instance include: \['train-\*'\]"):
        opened(tmp_path)
    assert list(items_of(opened(tmp_path, include=["train-*"]))) == ["train-000.tar/a", "train-001.tar/a"]
    assert len(opened(tmp_path, include=["*.tar"])) == 3
    with pytest.raises(DataError, match="none of .* fits include"):
        opened(tmp_path, include=["valid-*"])


def counted(monkeypatch):
    """Counts the headers that are read."""
    calls = []
    read = webdataset.audio_info
    monkeypatch.setattr(webdataset, "audio_info", lambda place: calls.append(str(place)) or read(place))
    return calls


def test_an_index_is_kept_and_used_until_the_shard_changes(tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    members = [
        ("a.wav", clip(1)),
        ("a.txt", b"x"),
        ("b.wav", b"noise"),
        ("b.txt", b"y"),
        header("l", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    ]
    path = settle(write_tar(tmp_path / "s.tar", members, end=b""))
    first = WebDataset(path=str(path))
    assert calls == ["a.wav", "b.wav"] and [f.suffix for f in (tmp_path / "cache/soundomni/indices").iterdir()] == [".json"]
    again = WebDataset(path=str(path))
    assert len(calls) == 2 and items_of(again) == items_of(first) and again.skipped == first.skipped and len(first.skipped) == 3
    assert np.array_equal(again.load(0)[0], first.load(0)[0])
    settle(write_tar(path, [("c.wav", clip(3)), ("c.txt", b"x")]))
    assert list(items_of(WebDataset(path=str(path)))) == ["s.tar/c"] and len(calls) == 3
    os.utime(path, (1_600_000_000, 1_600_000_000))
    WebDataset(path=str(path))
    assert len(calls) == 4


def test_a_shard_that_changed_just_now_has_no_index_yet(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.wav", clip(1)), ("a.txt", b"x")])
    opened(tmp_path, index_dir=str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()
    settle(tmp_path / "s.tar")
    opened(tmp_path, index_dir=str(tmp_path / "index"))
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    settle(write_tar(tmp_path / "s.tar", [("a.wav", clip(1)), ("a.txt", b"x")]))
    (tmp_path / "file").write_text("")
    assert len(opened(tmp_path, index_dir=str(tmp_path / "file"))) == 1


FORGED = [
    "[" * 100_000,
    "{}",
    "null",
    '{"shard": HEAD}',
    '{"shard": HEAD, "content": 3}',
    '{"shard": HEAD, "content": {"members": [["a.wav", 0, 1e9, 5, 8000]], "skipped": [], "cut": null}}',
    '{"shard": HEAD, "content": {"members": [["a.wav", -5, 10, 5, 8000]], "skipped": [], "cut": null}}',
    '{"shard": HEAD, "content": {"members": [["a.wav", 512, 999999999, 5, 8000]], "skipped": [], "cut": null}}',
    '{"shard": HEAD, "content": {"members": [["a.wav", 512, 20]], "skipped": [], "cut": null}}',
    '{"shard": HEAD, "content": {"members": [["a.wav", 512, 20, 0, 8000]], "skipped": [], "cut": null}}',
    '{"shard": HEAD, "content": {"members": [], "skipped": [["a", "b", "other", "c"]], "cut": null}}',
    '{"shard": HEAD, "content": {"members": [], "skipped": [], "cut": 7}}',
]


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_index_is_made_again(tmp_path, forged):
    path = settle(write_tar(tmp_path / "s.tar", [("a.wav", clip(1)), ("a.txt", b"x")]))
    expected = items_of(opened(path, index_dir=str(tmp_path / "i")))
    (index,) = (tmp_path / "i").iterdir()
    index.write_text(forged.replace("HEAD", json.dumps(json.loads(index.read_text())["shard"])))
    data = opened(path, index_dir=str(tmp_path / "i"))
    assert items_of(data) == expected and not data.skipped


def test_a_shard_that_changes_after_the_listing_is_not_read(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.wav", clip(1)), ("a.txt", b"x")])
    data = opened(path)
    settle(path)
    with pytest.raises(UnreadableAudioError, match="cannot read 's.tar/a': its shard changed after it was listed"):
        data.load(0)
    path.unlink()
    with pytest.raises(UnreadableAudioError, match="cannot read 's.tar/a': No such file"):
        data.load_part(0, first=0, num_samples=1)


@pytest.mark.parametrize("cut", [1, 300, 512, 513, 700, 1024, 2500, 3000])
def test_the_members_before_a_cut_are_used_and_the_place_is_named(tmp_path, cut):
    wholes = [member(f"{i}.{suffix}", data) for i in range(3) for suffix, data in (("wav", clip(i, samples=400)), ("txt", b"x"))]
    size = sum(map(len, wholes[:4]))
    path = write_tar(tmp_path / "s.tar", wholes)
    path.write_bytes(path.read_bytes()[: size + cut])
    data = opened(path)
    whole = len(wholes[4]) + 513  # the text has one byte; its padding does not matter
    assert list(items_of(data)) == [f"s.tar/{i}" for i in range(3 if cut >= whole else 2)]
    reason = reasons_of(data)["s.tar"]
    assert reason.startswith("at byte ") and "truncated" in reason and "members before it are used" in reason


def test_a_damaged_header_ends_a_shard(tmp_path):
    wholes = [member(f"{i}.{suffix}", data) for i in range(3) for suffix, data in (("wav", clip(i)), ("txt", b"x"))]
    first = sum(map(len, wholes[:4]))
    data = bytearray(b"".join(wholes))
    data[first + 3] ^= 1
    (tmp_path / "s.tar").write_bytes(data)
    found = opened(tmp_path)
    assert len(found) == 2
    assert reasons_of(found) == {"s.tar": f"at byte {first:,}, the header there is damaged; the 4 members before it are used"}


def test_an_archive_after_the_end_is_reported(tmp_path):
    one, other = ([(f"{n}.wav", clip()), (f"{n}.txt", b"x")] for n in "ab")
    data = write_tar(tmp_path / "x", one).read_bytes() + write_tar(tmp_path / "y", other).read_bytes()
    (tmp_path / "s.tar").write_bytes(data)
    found = opened(tmp_path)
    assert list(items_of(found)) == ["s.tar/a"] and "more follows the end of the archive" in reasons_of(found)["s.tar"]


def test_compressed_shards_and_empty_ones_are_named(tmp_path):
    good = write_tar(tmp_path / "a.tar", [("a.wav", clip()), ("a.txt", b"x")])
    (tmp_path / "b.tar").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "d.tar").write_bytes(b"hello" * 500)
    (tmp_path / "e.tar").write_bytes(bytes(10240))
    found = opened(tmp_path)
    assert len(found) == 1
    for name, words in (("b.tar", "compressed (gzip)"), ("c.tar", "the file is empty"), ("d.tar", "it is not a tar archive")):
        assert words in reasons_of(found)[name]
    good.unlink()
    with pytest.raises(DataError, match="can be used; the first, 'b.tar': cannot read") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_caption_that_two_files_disagree_on_is_named(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.wav", clip()), ("a.txt", b"x"), ("a.json", b'{"text": "y"}'), ("b.wav", clip()), ("b.txt", b"x")])
    assert "keep one of them" in reasons_of(opened(tmp_path))["s.tar/a"]


def test_audio_without_a_decoder_is_counted_by_format(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.wma", b"\x30\x26\xb2\x75"), ("a.txt", b"x"), ("b.wav", clip()), ("b.txt", b"x")])
    (skip,) = opened(tmp_path).skipped
    assert (skip.key, skip.kind, skip.group) == ("s.tar/a", "unsuitable", "in WMA, which cannot be read")


def test_threads_read_a_shard_at_once(tmp_path):
    write_tar(tmp_path / "s.tar", [one for i in range(20) for one in ((f"{i:02d}.flac", clip(i, "flac")), (f"{i:02d}.txt", b"x"))])
    data = opened(tmp_path)
    expected = [data.load(i)[0] for i in range(20)]
    wrong = []

    def read(seed):
        order = np.random.default_rng(seed).permutation(20).tolist()
        wrong.extend(i for i in order if not np.array_equal(data.load(i)[0], expected[i]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reading_a_part_keeps_memory_within_it(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.wav", clip(1, samples=2_000_000)), ("a.txt", b"x")])
    data = opened(tmp_path)
    tracemalloc.start()
    try:
        data.load_part(0, first=1_000_000, num_samples=1000)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=1500), st.integers(0, 4000), st.booleans())
def test_any_bytes_in_a_shard_are_named_or_left_alone(tmp_path_factory, noise, place, fix):
    folder = tmp_path_factory.mktemp("any")
    data = b"".join(
        member(f"{i}.{suffix}", content) for i in range(2) for suffix, content in (("wav", clip(i, samples=200)), ("json", TEXT))
    )
    data = data[:place] + noise + data[place + len(noise) :] if fix else data[:place] + noise
    (folder / "s.tar").write_bytes(data)
    try:
        found = opened(folder)
    except SoundOmniError as error:
        assert "\n" not in str(error)
        return
    assert all("\n" not in skip.reason for skip in found.skipped)
    for i in range(len(found)):
        try:
            waveform, rate = found.load(i)
        except UnreadableAudioError as error:
            assert "\n" not in str(error)
        else:
            assert (waveform.shape[1], rate) == (found.item(i).num_samples, RATE)


def test_members_are_those_that_tarfile_finds(tmp_path):
    sizes = [0, 1, 511, 512, 513, 5000]
    write_tar(
        tmp_path / "s.tar",
        [(f"{'x' * size}{i}", bytes(range(256)) * 20) if size < 200 else (f"d/{i}", bytes(size)) for i, size in enumerate(sizes)],
    )
    with tarfile.open(tmp_path / "s.tar") as archive:
        expected = [(one.name, one.offset_data, one.size) for one in archive]
    assert [(one.name, one.first, one.size) for one in scan(tmp_path / "s.tar", "s.tar").members] == expected
