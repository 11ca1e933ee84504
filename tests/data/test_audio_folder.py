"""Folders of audio and the captions beside them."""

import json

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import DataError, UnreadableAudioError
from soundomni.data.audio_folder import AudioFolder


def put(root, key, *, rate=8000, channels=1, seconds=0.25):
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(round(rate * seconds)))
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)
    return path


def test_lists_sorted_and_recursive_with_mixed_rates_and_channels(tmp_path):
    for key, rate, channels in [("b.flac", 16000, 2), ("a.wav", 8000, 1), ("sub/c.ogg", 44100, 2), ("sub/d.mp3", 22050, 1)]:
        put(tmp_path, key, rate=rate, channels=channels).with_suffix(".txt").write_text(f"sound {key}")
    put(tmp_path, ".hidden/x.wav")
    put(tmp_path, "._a.wav")
    folder = AudioFolder(path=str(tmp_path))
    items = [folder.item(i) for i in range(len(folder))]
    assert [item.key for item in items] == ["a.wav", "b.flac", "sub/c.ogg", "sub/d.mp3"]
    assert [item.sample_rate for item in items] == [8000, 16000, 44100, 22050]
    assert items[2].captions == ("sound sub/c.ogg",)
    for i, channels in enumerate((1, 2, 2, 1)):
        waveform, rate = folder.load(i)
        assert waveform.shape == (channels, items[i].num_samples) and rate == items[i].sample_rate
    assert folder.skipped == ()
    assert [AudioFolder(path=str(tmp_path), recursive=False).item(i).key for i in range(2)] == ["a.wav", "b.flac"]


def test_one_stem_in_two_formats_shares_its_caption(tmp_path):
    put(tmp_path, "a.wav").with_suffix(".txt").write_text("a tone")
    put(tmp_path, "a.flac")
    folder = AudioFolder(path=str(tmp_path))
    assert [(folder.item(i).key, folder.item(i).captions) for i in range(2)] == [("a.flac", ("a tone",)), ("a.wav", ("a tone",))]


def test_json_captions_questions_and_attributes(tmp_path):
    notes = {
        "prompt": "a low tone",
        "captions": ["a deep tone", "a low tone"],
        "questions": [{"question": "What is it?", "answer": "A tone."}],
        "note": "A2",
    }
    put(tmp_path, "a.wav").with_suffix(".json").write_text(json.dumps(notes))
    item = AudioFolder(path=str(tmp_path)).item(0)
    assert item.captions == ("a low tone", "a deep tone")
    assert item.questions == (("What is it?", "A tone."),)
    assert item.attributes == {"note": "A2"}


def test_txt_holds_one_caption_per_line(tmp_path):
    put(tmp_path, "a.wav").with_suffix(".txt").write_text("\ufeffone\n\n  two  \n", encoding="utf-8")
    assert AudioFolder(path=str(tmp_path)).item(0).captions == ("one", "two")


def test_metadata_csv_rows_add_up_and_quote_newlines(tmp_path):
    put(tmp_path, "sub/a.wav")
    put(tmp_path, "b.wav")
    (tmp_path / "metadata.csv").write_text(
        'file_name,caption,question,answer,split\nsub/a.wav,"a, b",Q1?,A1,train\nsub/a.wav,"two\nlines",Q2?,A2,train\nb.wav,bee,,,test\n'
    )
    folder = AudioFolder(path=str(tmp_path))
    bee, a = folder.item(0), folder.item(1)
    assert a.captions == ("a, b", "two\nlines") and a.questions == (("Q1?", "A1"), ("Q2?", "A2"))
    assert a.attributes == {"split": "train"}
    assert bee.captions == ("bee",) and bee.questions == ()


def test_metadata_jsonl(tmp_path):
    put(tmp_path, "a.wav")
    row = {"file_name": "./a.wav", "text": "a\u2028tone", "questions": [{"question": "Q?", "answer": "A"}]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    item = AudioFolder(path=str(tmp_path)).item(0)
    assert item.captions == ("a\u2028tone",) and item.questions == (("Q?", "A"),)


def test_places_complete_each_other(tmp_path):
    put(tmp_path, "a.wav").with_suffix(".txt").write_text("a tone")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "a tone", "questions": [{"question": "Q?", "answer": "A"}]}))
    item = AudioFolder(path=str(tmp_path)).item(0)
    assert item.captions == ("a tone",) and item.questions == (("Q?", "A"),)


@pytest.mark.parametrize(
    "places", [("a.json", "a.txt"), ("a.json", "metadata.csv"), ("a.txt", "metadata.jsonl"), ("metadata.csv", "metadata.jsonl")]
)
def test_places_that_disagree_are_both_named(tmp_path, places):
    put(tmp_path, "a.wav")
    for i, place in enumerate(places):
        caption = f"caption {i}"
        text = {
            "a.json": json.dumps({"caption": caption}),
            "a.txt": caption,
            "metadata.csv": f"file_name,caption\na.wav,{caption}\n",
            "metadata.jsonl": json.dumps({"file_name": "a.wav", "caption": caption}),
        }[place]
        (tmp_path / place).write_text(text)
    with pytest.raises(DataError) as caught:
        AudioFolder(path=str(tmp_path))
    message = str(caught.value)
    assert all(place in message for place in places) and "'a.wav'" in message and "caption 0" in message and "caption 1" in message


def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path):
    put(tmp_path, "good.wav").with_suffix(".txt").write_text("good")
    put(tmp_path, "mute.wav")
    put(tmp_path, "blank.wav").with_suffix(".txt").write_text(" \n")
    put(tmp_path, "odd.wav").with_suffix(".json").write_text("{not json")
    put(tmp_path, "list.wav").with_suffix(".json").write_text('{"captions": "one"}')
    put(tmp_path, "half.wav").with_suffix(".json").write_text('{"questions": [{"question": "Q?"}]}')
    (tmp_path / "noise.wav").write_bytes(b"not audio at all")
    (tmp_path / "metadata.csv").write_text("file_name,caption\ngone.wav,away\n")
    folder = AudioFolder(path=str(tmp_path))
    assert [folder.item(i).key for i in range(len(folder))] == ["good.wav"]
    reasons = {skip.key: skip.reason for skip in folder.skipped}
    assert list(reasons) == sorted(reasons)
    assert reasons["mute.wav"] == reasons["blank.wav"] == "it has no caption"
    assert "odd.json" in reasons["odd.wav"] and "expected a list" in reasons["list.wav"] and "'answer'" in reasons["half.wav"]
    assert "it is not audio" in reasons["noise.wav"]
    assert "metadata.csv" in reasons["gone.wav"]
    kinds = {skip.key: skip.kind for skip in folder.skipped}
    assert kinds["gone.wav"] == "missing" and kinds["mute.wav"] == kinds["blank.wav"] == "no caption"
    assert all(kinds[key] == "unreadable" for key in ("odd.wav", "list.wav", "half.wav", "noise.wav"))
    free = AudioFolder(path=str(tmp_path), captions=False)
    assert [free.item(i).key for i in range(len(free))] == ["blank.wav", "good.wav", "mute.wav"]


def test_filters_and_file_list(tmp_path):
    for key in ("drums/kick.wav", "drums/snare.wav", "keys/piano.wav"):
        put(tmp_path, key).with_suffix(".txt").write_text(key)
    split = tmp_path / "train.txt"
    split.write_text("drums/kick.wav\nkeys/piano.wav\nkeys/organ.wav\n")

    def keys(**arguments):
        folder = AudioFolder(path=str(tmp_path), **arguments)
        return [folder.item(i).key for i in range(len(folder))], [skip.key for skip in folder.skipped]

    assert keys(include=["drums/*"]) == (["drums/kick.wav", "drums/snare.wav"], [])
    assert keys(exclude=["*snare*"]) == (["drums/kick.wav", "keys/piano.wav"], [])
    assert keys(file_list=str(split)) == (["drums/kick.wav", "keys/piano.wav"], ["keys/organ.wav"])
    with pytest.raises(DataError, match="include"):
        keys(include=["voices/*"])
    with pytest.raises(DataError, match="file list"):
        keys(file_list=str(tmp_path / "none.txt"))


def test_folders_that_hold_nothing_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        AudioFolder(path=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"no audio files .*\*\.flac"):
        AudioFolder(path=str(tmp_path))
    put(tmp_path, "a.wav")
    with pytest.raises(DataError, match=r"no audio file in .* has a caption: looked for <stem>.json, <stem>.txt, metadata.csv"):
        AudioFolder(path=str(tmp_path))
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="can be used; the first, 'a.wav'.*empty"):
        AudioFolder(path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metadata.csv", "filename,caption\na.wav,x\n", "Rename 'filename' to 'file_name'"),
        ("metadata.csv", "file_name,caption\n,x\n", "row 2: no file_name"),
        ("metadata.csv", "file_name,caption\na.wav,x\n../b.wav,y\n", r"row 3: file_name '\.\./b\.wav' leads out of the folder"),
        ("metadata.csv", "file_name,caption\nsub/../../b.wav,y\n", "leads out of the folder"),
        ("metadata.jsonl", '{"file_name": "/etc/b.wav", "text": "y"}\n', "row 1: file_name '/etc/b.wav' leads out of the folder"),
        ("metadata.jsonl", '{"file_name": "a.wav", "text": "x"}\n[]\n', "row 2: expected an object"),
        ("metadata.jsonl", "{\n", "row 1"),
    ],
)
def test_malformed_tables_are_named_with_their_row(tmp_path, name, text, reason):
    put(tmp_path, "a.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        AudioFolder(path=str(tmp_path))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_links_out_of_the_folder_are_followed(tmp_path):
    outside = put(tmp_path, "elsewhere/a.wav")
    root = tmp_path / "sounds"
    root.mkdir()
    (root / "b.wav").symlink_to(outside)
    (root / "b.txt").write_text("a tone")
    (root / "c.wav").symlink_to(tmp_path / "nowhere.wav")
    folder = AudioFolder(path=str(root))
    assert folder.item(0).key == "b.wav" and folder.load(0)[0].shape == (1, 2000)
    assert [(skip.key, skip.kind) for skip in folder.skipped] == [("c.wav", "unreadable")]


def test_a_file_that_breaks_after_listing_raises_on_load(tmp_path):
    path = put(tmp_path, "a.wav")
    folder = AudioFolder(path=str(tmp_path), captions=False)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UnreadableAudioError, match=r"a\.wav"):
        folder.load(0)


def test_half_a_surrogate_pair_is_not_a_caption(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(800), 8000)
    (tmp_path / "a.json").write_text('{"caption": "\\ud800"}')
    (tmp_path / "b.json").write_text('{"caption": "fine \\ud83d\\ude00"}')
    folder = AudioFolder(path=str(tmp_path))
    assert [folder.item(i).key for i in range(len(folder))] == ["b.wav"]
    assert "surrogate" in folder.skipped[0].reason
