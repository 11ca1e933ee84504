"""What a folder holds: links, folders that cannot be read, and files that are not taken, each named."""

import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import DataError
from soundomni.core.files.paths import local_path, place
from soundomni.data.audio import SUFFIXES
from soundomni.data.audio_folder import AudioFolder


def wavs(root, *keys):
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / key, 0.1 * np.sin(np.arange(800)), 8000)


def opened(root, **arguments):
    folder = AudioFolder(path=str(root), captions=False, **arguments)
    return [folder.item(i).key for i in range(len(folder))], {skip.key: skip for skip in folder.skipped}


def test_linked_folders_are_followed_and_never_in_a_circle(tmp_path):
    root = tmp_path / "outer/sounds"
    wavs(root, "a.wav", "sub/b.wav")
    wavs(tmp_path / "elsewhere", "c.wav", "deep/d.wav")
    links = {"linked": "../../elsewhere", "again": "../../elsewhere/deep", "self": ".", "sub/up": "..", "above": "../..", "sub/same": "."}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "circle").symlink_to("circle")
    keys, skipped = opened(root)
    assert keys == ["a.wav", "again/d.wav", "linked/c.wav", "sub/b.wav"]
    assert {key: skip.reason.removeprefix("it links to a folder that ") for key, skip in skipped.items()} == {
        "self/": "is listed already",
        "sub/up/": "is listed already",
        "sub/same/": "is listed already",
        "linked/deep/": "is listed already",
        "above/": "this one lies in",
    }
    assert opened(root, recursive=False)[0] == ["a.wav"]


def test_many_links_to_each_other_are_listed_once(tmp_path):
    for i in range(30):  # each way through these would be one of 2 ** 30
        (tmp_path / f"{i}").mkdir()
        for name in "ab":
            (tmp_path / f"{i}/{name}").symlink_to(f"../{i + 1}")
    wavs(tmp_path, "30/z.wav")
    assert opened(tmp_path)[0] == ["30/z.wav"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are those of POSIX")
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
    wavs(tmp_path, "a.wav", "closed/b.wav")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)  # so that another user gets this far
    (tmp_path / "closed").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # whom nothing is forbidden
            os.seteuid(65534)
        keys, skipped = opened(tmp_path)
        assert keys == ["a.wav"]
        assert (skipped["closed/"].kind, skipped["closed/"].reason) == ("unreadable", "the folder cannot be read: Permission denied")
        with pytest.raises(DataError, match=r"the folder '.*closed' cannot be read: Permission denied"):
            opened(tmp_path / "closed")
    finally:
        os.seteuid(user)
        (tmp_path / "closed").chmod(0o755)


@pytest.mark.parametrize(
    "name",
    [
        "b.m4p",
        "b.WMA",
        "sub/b.m4r",
        "b.m4v",
        "b.webm",
        "b.amr",
        "b.3gp",
        "b.mka",
        "b.ape",
        "b.wv",
        "b.dsf",
        "b.mov",
        "b.ac3",
        "b.spx",
        "b.paf",
    ],
)
def test_audio_that_cannot_be_read_is_named(tmp_path, name):
    wavs(tmp_path, "a.wav")
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(struct.pack(">I", 16) + b"ftypM4A \0\0\0\0")
    (tmp_path / ".b.m4a").write_bytes(b"")
    keys, skipped = opened(tmp_path)
    kind = name.rpartition(".")[2].upper()
    assert keys == ["a.wav"] and list(skipped) == [name]
    assert skipped[name].reason == f"{kind} files cannot be read; convert it to WAV or FLAC" and skipped[name].kind == "unsuitable"
    assert opened(tmp_path, exclude=[name])[1] == {}
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DataError, match=f"no audio files in .*; the first, '{name}': {kind} files cannot be read"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "container"),
    [
        *((".8svx", "SVX"), (".aifc", "AIFF"), (".au", "AU"), (".avr", "AVR"), (".bwf", "WAV"), (".caf", "CAF")),
        *((".mp2", "MP3"), (".nist", "NIST"), (".rf64", "RF64"), (".snd", "AU")),
        *((".sph", "NIST"), (".voc", "VOC"), (".w64", "W64"), (".wave", "WAV"), (".WAV", "WAV")),
    ],
)
def test_every_container_that_can_be_read_is_listed(tmp_path, suffix, container):
    assert suffix.lower() in SUFFIXES
    soundfile.write(str(tmp_path / f"a{suffix}"), 0.1 * np.sin(np.arange(1600)), 8000, format=container)
    folder = AudioFolder(path=str(tmp_path), captions=False)
    assert folder.item(0).num_samples == folder.load(0)[0].shape[1] and folder.item(0).sample_rate == 8000


def test_paths_begin_at_home_or_where_one_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    wavs(tmp_path, "sounds/a.wav")
    (tmp_path / "split.txt").write_text("a.wav\n")
    folder = AudioFolder(path="~/sounds", captions=False, file_list="~/split.txt")
    assert folder.load(0)[0].shape == (1, 800)
    for given in ("~/none", "none"):
        with pytest.raises(DataError) as caught:
            AudioFolder(path=given)
        assert f"({tmp_path}/none)" in str(caught.value) or f"'{tmp_path}/none'" in str(caught.value)
    with pytest.raises(DataError, match="is a file; expected a folder of audio files"):
        AudioFolder(path="sounds/a.wav")
    assert local_path("~no-such-user/x").as_posix() == "~no-such-user/x" and place("x") == f"'x' ({tmp_path}/x)"
