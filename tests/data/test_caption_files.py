"""Tables and sidecars as many programs write them: read whole, or refused with file and row and what to do."""

import json
import os
import unicodedata

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import DataError
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.audiocaps import AudioCaps


def wavs(root, *keys):
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / key, 0.1 * np.sin(np.arange(800)), 8000)


def captions_of(root, **arguments):
    folder = AudioFolder(path=str(root), **arguments)
    return {folder.item(i).key: folder.item(i).captions for i in range(len(folder))}


def skips_of(root, **arguments):
    return {skip.key: skip for skip in AudioFolder(path=str(root), **arguments).skipped}


def why(root, **arguments):
    with pytest.raises(DataError) as caught:
        AudioFolder(path=str(root), **arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize(
    ("text", "row", "reason"),
    [
        (
            "file_name,caption\na.wav,a dog barks, then a door closes\n",
            2,
            "it has 3 fields, but the header has 2; quote captions that contain commas",
        ),
        ("file_name,caption,label\na.wav,dog,x\nb.wav,a, b,dog\n", 3, "it has 4 fields, but the header has 3; quote captions"),
        ('file_name,caption\na.wav, "a dog, barks"\n', 2, "remove the spaces before quotes"),
        ("file_name,caption,label\na.wav,a dog\n", 2, "it has 2 fields, but the header has 3; give every row all of them"),
        ("\n\nfile_name,caption\n\n,\na.wav\n", 6, "it has 1 field, but the header has 2"),
        ('file_name,caption\na.wav,"a dog barks\nb.wav,rain\n', 2, "a quote is opened and never closed"),
        ('file_name,caption\na.wav,"a dog barks\nb.wav,"rain"\n', 2, "text follows a closing quote"),
        ('file_name,caption\na.wav,"a dog barks\nb.wav,rain\nc.wav,"\n', 2, "runs on into the row that begins with 'b.wav'"),
        ('file_name,caption\nb.wav,rain\na.wav,"a ""dog"" barks\n' + "b.wav,rain on a roof\n" * 8000, 3, "never closed"),
        ("file_name,caption\na.wav,x\n   ,y\n", 3, "no file_name"),
        ("file_name,captions\na.wav,[\n", 2, "'captions': it is not JSON"),
        ('file_name,questions\na.wav,"[{""question"": ""Q?""}]"\n', 2, "'answer'"),
        ("file_name,question,answer\na.wav,Q?,\n", 2, "'answer'"),
        ("file_name,caption\na.wav,a\0dog\n", 2, "'caption' holds a NUL character"),
        ("file_name,caption\nC:\\sounds\\a.wav,x\n", 2, "leads out of the folder"),
        ("file_name,caption\n..\\a.wav,x\n", 2, "leads out of the folder"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused_by_number(tmp_path, text, row, reason):
    wavs(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    message = why(tmp_path)
    assert f"metadata.csv', row {row}: " in message and reason in message


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("file_name;caption", "is separated by semicolons; expected commas"),
        ("file_name\tcaption", "is separated by tabs"),
        ("sep=;\nfile_name;caption", "is separated by semicolons"),
        ("file_name|caption", "is separated by bars"),
        ("file_name,caption,caption", "has the column 'caption' twice, as columns 2 and 3"),
        ("file_name,Text,text", "has the column 'text' twice"),
        ("filename,caption", "has no column 'file_name'; it has 'filename', 'caption'. Rename 'filename' to 'file_name'"),
        ("Path,caption", "Rename 'Path' to 'file_name'"),
        ("id,audio_filepath,text", "Rename 'audio_filepath' to 'file_name'"),
        ("number,caption", "has no column 'file_name'; it has 'number', 'caption'. Add it"),
        ("", "is empty"),
        (" \t\n\n  ", "is empty"),
        ("\ufeff", "is empty"),
        ("sep=,\nfile_name,caption", "Remove this line"),
        ("a.wav,a dog", "begins with a row about 'a.wav'; expected a header"),
        ("a dog,sub/B.FLAC", "begins with a row about 'sub/B.FLAC'"),
    ],
)
def test_headers_that_cannot_be_meant_are_explained(tmp_path, header, reason):
    wavs(tmp_path, "a.wav")
    (tmp_path / "metadata.csv").write_text(header + "\n")
    message = why(tmp_path)
    assert reason in message and "metadata.csv" in message and "Did you mean" not in message


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "a.txt", "a.json"])
@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("utf-16", "it is UTF-16; expected UTF-8: save it as UTF-8"),
        ("utf-16-le", "it is full of NUL bytes"),
        ("utf-32", "it is UTF-32"),
        ("latin-1", "byte 0xfc in line 1 is not UTF-8, as in Latin-1"),
        ("cp437", "save it as UTF-8 (in Excel: 'CSV UTF-8')"),
    ],
)
def test_text_that_is_not_utf_8_says_how_to_save_it(tmp_path, name, encoding, reason):
    wavs(tmp_path, "a.wav")
    line = {"csv": "file_name,caption,für\na.wav,hör\n", "txt": "hör für", "json": '{"caption": "für"}'}
    text = line.get(name.partition(".")[2], '{"file_name": "a.wav", "caption": "für"}').replace("ö", "ü")
    (tmp_path / name).write_bytes(text.encode(encoding))
    message = why(tmp_path)
    assert name in message and reason in message


def test_what_programs_add_to_tables_is_no_fault(tmp_path):
    wavs(tmp_path, "a.wav", "b.wav", "c.wav")
    text = '\ufeff\r\n,FILE_NAME, Caption ,label,\r\n0,a.wav,a dog,x,,\r\n\r\n,,,,\r\n1,./b.wav,"rain,\r\nwind",,\r\n2,c.wav,bee,y,,,\r\n'
    (tmp_path / "METADATA.csv").write_bytes(text.encode())
    assert captions_of(tmp_path) == {"a.wav": ("a dog",), "b.wav": ("rain,\r\nwind",), "c.wav": ("bee",)}
    (tmp_path / "METADATA.csv").write_bytes(b"file_name,caption\ra.wav,a dog\rb.wav,rain\rc.wav,bee\r")
    assert captions_of(tmp_path)["b.wav"] == ("rain",)


def test_rows_of_one_file_add_up_and_nothing_that_differs_is_lost(tmp_path):
    wavs(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text(
        "file_name,captions,label,split\na.wav,a dog,x,train\nb.wav,rain,z,test\n"
        'a.wav,"[""a bark"", ""a dog""]",y,train\na.wav,a dog,x,train\n'
    )
    folder = AudioFolder(path=str(tmp_path))
    assert folder.item(0).captions == ("a dog", "a bark") and folder.item(0).attributes == {"label": ("x", "y"), "split": "train"}
    assert folder.item(1).attributes == {"label": "z", "split": "test"}


def test_many_rows_for_one_file_add_up(tmp_path):
    rows = 20_000  # when each row copied those before it, this took minutes
    wavs(tmp_path, "a.wav")
    lines = (json.dumps({"file_name": "a.wav", "caption": f"caption {i}", "id": i}) for i in range(rows))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    item = AudioFolder(path=str(tmp_path)).item(0)
    assert len(item.captions) == len(item.attributes["id"]) == rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": "a.wav", "text": "x"', "it is not JSON: "),
        ('{"file_name": "a.wav", "text": "x"},', "expected a whole object on every line"),
        ('{"file_name": "a.wav",\n"text": "x"}', "expected a whole object on every line"),
        ('{"file_name": "a.wav", "text": "x", "id": ' + "7" * 9000 + "}", "a number of 9,000 digits; expected at most 1000"),
        ('{"file_name": "a.wav", "question": "Q?"}', "needs both 'question' and 'answer'"),
        ('{"file_name": "a.wav", "answer": "A", "question": null}', "needs both"),
        ('{"file_name": "a.wav", "text": "x", "text": "y"}', "it has the key 'text' twice"),
        ('{"file_name": "a.wav", "text": "x", "Text": "y"}', "it has the key 'text' twice"),
        ('["a.wav"]', "expected an object, as on every line; found a list"),
        ("null", "found null"),
        ("[" * 100_000, "nested too deeply"),
        (
            '{"audio_filepath": "a.wav", "text": "x"}',
            "no file_name; it has 'audio_filepath', 'text'. Rename 'audio_filepath' to 'file_name'",
        ),
        ('{"file_name": 7, "text": "x"}', "'file_name' is a number"),
        ('{"file_name": "a\\u0000.wav", "text": "x"}', "NUL"),
        ('{"file_name": "a.wav", "text": NaN}', "'text' is a number; expected text"),
        ('{"file_name": "a.wav", "captions": {"en": "x"}}', "'captions' is an object; expected a list"),
        ('{"file_name": "a.wav", "questions": ["Q?"]}', "a question is text; expected an object"),
    ],
)
def test_broken_lines_of_json_are_refused_by_number(tmp_path, line, reason):
    wavs(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "b.wav", "text": "rain"}}\n\n{line}\n')
    message = why(tmp_path)
    assert "metadata.jsonl', row 3: " in message and reason in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ('[{"caption": "x"}]', "expected an object, found a list"),
        ('"a dog"', "expected an object, found text"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
        ('{"caption": "x", "caption": "y"}', "twice"),
        ('{"caption": ["x"]}', "'caption' is a list; expected text"),
        ('{"caption": 1' + "0" * 5000 + "}", "digits"),
    ],
)
def test_a_sidecar_that_cannot_be_meant_costs_only_its_file(tmp_path, text, reason):
    wavs(tmp_path, "a.wav", "b.wav")
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.txt").write_text("rain")
    folder = AudioFolder(path=str(tmp_path))
    assert [folder.item(i).key for i in range(len(folder))] == ["b.wav"]
    (skip,) = folder.skipped
    assert (skip.key, skip.kind) == ("a.wav", "unreadable") and skip.reason.startswith("a.json: ") and reason in skip.reason
    assert "\n" not in skip.reason and len(skip.reason) < 200


def test_a_sidecar_that_is_not_a_file_or_huge_is_not_read(tmp_path):
    wavs(tmp_path, "a.wav", "b.wav", "c.wav")
    os.mkfifo(tmp_path / "a.txt")
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(20_000_000)
    (tmp_path / "c.TXT").write_text("rain")
    reasons = {key: skip.reason for key, skip in skips_of(tmp_path).items()}
    assert reasons["a.wav"] == "a.txt: it is not a regular file" and "20,000,000 bytes; expected at most" in reasons["b.wav"]
    assert captions_of(tmp_path) == {"c.wav": ("rain",)}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("file_name,transcription", "rename 'transcription' to 'caption'"),
        ("file_name,Description,label", "rename the one with the captions ('Description', 'label') to 'caption'"),
        ("file_name", "add a column 'caption'"),
    ],
)
def test_a_table_without_captions_says_which_columns_it_has(tmp_path, columns, reason):
    wavs(tmp_path, "a.wav")
    row = ",".join(["a.wav", *["a dog"] * columns.count(",")])
    (tmp_path / "metadata.csv").write_text(f"{columns}\n{row}\n")
    message = why(tmp_path)
    assert "metadata.csv has no column for captions; expected one of prompt, caption, text, captions" in message and reason in message
    assert captions_of(tmp_path, captions=False) == {"a.wav": ()}


def test_reasons_are_one_line_whatever_a_file_is_called(tmp_path):
    wavs(tmp_path, "a.wav")
    (tmp_path / "b\n\tc.wav").write_bytes(b"noise")
    (tmp_path / "b\n\tc.txt").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    (skip,) = skips_of(tmp_path).values()
    assert skip.key == "b\n\tc.wav" and "\n" not in skip.reason


@pytest.mark.parametrize("value", ["nan", " NaN ", "<NA>", "#N/A"])
@pytest.mark.parametrize("column", ["caption", "text", "captions"])
def test_what_programs_write_for_no_value_is_not_a_caption(tmp_path, column, value):
    wavs(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,{column},tag\nb.wav,a nanny,nan\na.wav,{value},x\n")
    assert f"metadata.csv', row 3: '{column}' is '{value.strip()}', which many programs write for a missing value; leave it empty" in why(
        tmp_path
    )


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff\u200d", "\u00a0\u2060 "])
def test_text_that_nobody_can_see_is_not_a_caption(tmp_path, nothing):
    wavs(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\na.wav,{nothing}\nc.wav,\U0001f469\u200d\U0001f3a4\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(f"{nothing}\nrain\n", encoding="utf-8")
    assert captions_of(tmp_path) == {"b.wav": ("rain",), "c.wav": ("\U0001f469\u200d\U0001f3a4",)}
    assert skips_of(tmp_path)["a.wav"].reason == "it has no caption"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.wav.txt", "'a.wav.txt' is not read: rename it to 'a.txt'"),
        ("a.wav.JSON", "'a.wav.JSON' is not read: rename it to 'a.JSON'"),
        ("b.txt", "'b.txt' is not read: there is no audio file 'b.*'"),
        ("metadata.json", "'metadata.json' is not read: there is no audio file 'metadata.*'"),
        ("metadata.csv/", "'metadata.csv' is not read: it is a folder"),
        ("a.txt/", "'a.txt' is not read: it is a folder"),
    ],
)
def test_sidecars_that_are_not_read_are_named(tmp_path, name, reason):
    wavs(tmp_path, "a.wav")
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("a dog")
    assert reason in why(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("metadata.csv", "file_name,caption\n"), ("metadata.csv", "file_name\n\n"), ("metadata.jsonl", "\n")]
)
def test_tables_without_rows_say_so(tmp_path, name, text):
    wavs(tmp_path, "a.wav")
    (tmp_path / name).write_text(text)
    assert f"{name} has no rows; add one for each file. To use files without captions, set captions to false" in why(tmp_path)


@pytest.mark.parametrize("patterns", ["*.wav", [3], {"*.wav": 1}, 7])
@pytest.mark.parametrize("name", ["include", "exclude"])
def test_patterns_are_a_list_of_texts(tmp_path, name, patterns):
    wavs(tmp_path, "a.wav")
    assert f"{name} is {patterns!r}; expected a list of patterns. Use {name}: ['*.wav']" in why(tmp_path, **{name: patterns})


def test_tables_that_are_not_read_are_named(tmp_path):
    wavs(tmp_path, "a.wav")
    (tmp_path / "captions.csv").write_text("file_name,caption\na.wav,a dog\n")
    assert "'captions.csv' is not read; save it as metadata.csv" in why(tmp_path)


def test_tables_in_subfolders_are_about_their_own_folder(tmp_path):
    wavs(tmp_path, "a.wav", "train/a.wav", "train/deep/b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.wav,outer\ntrain/deep/b.wav,deep\n")
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.wav", "text": "inner"}\n{"file_name": "gone.wav", "text": "x"}\n')
    assert captions_of(tmp_path) == {"a.wav": ("outer",), "train/a.wav": ("inner",), "train/deep/b.wav": ("deep",)}
    assert skips_of(tmp_path)["train/gone.wav"].reason == "named in train/metadata.jsonl, but there is no such file"
    (tmp_path / "train/deep/metadata.csv").write_text("file_name,caption\nb.wav,another\n")
    assert "in metadata.csv but ['another'] in train/deep/metadata.csv" in why(tmp_path)
    (tmp_path / "train/deep/metadata.csv").write_text("file_name,caption\n../a.wav,another\n")
    assert "leads out of the folder" in why(tmp_path)
    assert captions_of(tmp_path, exclude=["train/*"]) == {"a.wav": ("outer",)}
    assert captions_of(tmp_path, recursive=False) == {"a.wav": ("outer",)}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_may_be_composed_or_not(tmp_path, form):
    other = "NFD" if form == "NFC" else "NFC"
    names = [f"{name}.wav" for name in ("über", "Café/é", "ガ")]
    wavs(tmp_path, *(unicodedata.normalize(form, name) for name in names))
    rows = [unicodedata.normalize(other, name) for name in names[1:]]
    (tmp_path / "metadata.csv").write_text("file_name,caption\n" + "".join(f"{row},{i}\n" for i, row in enumerate(rows)), encoding="utf-8")
    (tmp_path / unicodedata.normalize(other, "über.txt")).write_text("sidecar", encoding="utf-8")
    listed = tmp_path.parent / "list.txt"
    listed.write_text("\n".join(unicodedata.normalize(other, name) for name in names), encoding="utf-8")
    expected = {("sidecar",), ("0",), ("1",)}
    assert set(captions_of(tmp_path).values()) == set(captions_of(tmp_path, file_list=str(listed)).values()) == expected
    assert not skips_of(tmp_path)


def test_two_names_that_look_alike_stay_two_files(tmp_path):
    composed, parts = (unicodedata.normalize(form, "é.wav") for form in ("NFC", "NFD"))
    wavs(tmp_path, composed, parts)
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{composed},one\n{parts},two\n", encoding="utf-8")
    assert captions_of(tmp_path) == {composed: ("one",), parts: ("two",)}


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ("sub\\a.wav", "sub/a.wav"),
        (".\\sub\\b.wav", "sub/b.wav"),
        ("c\\d.wav", "c\\d.wav"),
        ("{root}/sub/a.wav", "sub/a.wav"),
        (" e .wav", " e .wav"),
        (" sub/a.wav ", "sub/a.wav"),
    ],
)
def test_paths_of_other_systems_and_absolute_ones_are_understood(tmp_path, row, key):
    wavs(tmp_path, "sub/a.wav", "sub/b.wav", "c\\d.wav", " e .wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{row.format(root=tmp_path)},a dog\n")
    assert captions_of(tmp_path) == {key: ("a dog",)}


@pytest.mark.parametrize(
    ("row", "near"),
    [
        ("A.WAV", "a.wav"),
        ("a", "a.wav"),
        ("my-sounds/a.wav", "a.wav"),
        ("Sub\\B.wav", "sub/b.wav"),
        ("b.wav", None),
        ("x/a%2Ewav", "a.wav"),
    ],
)
def test_rows_without_a_file_are_named_with_the_file_that_was_meant(tmp_path, row, near):
    wavs(tmp_path, "a.wav", "sub/b.wav")
    (tmp_path / "sub/b.txt").write_text("rain")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{row},a dog\n")
    (missing,) = (skip for skip in skips_of(tmp_path).values() if skip.kind == "missing")
    assert missing.reason.endswith(f"Did you mean '{near}'?" if near else "there is no such file")
    (tmp_path / "sub/b.txt").unlink()
    message = why(tmp_path)
    assert "no file that metadata.csv names exists" in message and (near is None or f"Did you mean '{near}'" in message)


def test_rows_about_files_that_are_not_wanted_are_no_fault(tmp_path):
    wavs(tmp_path, "a.wav", ".hidden.wav")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.wav,x\nb/gone.wav,y\n.hidden.wav,z\n" + f"{'n' * 3000}.wav,long\n")
    found = skips_of(tmp_path, exclude=["b/*", "nnn*"])
    assert list(found) == [".hidden.wav"] and "hidden" in found[".hidden.wav"].reason
    assert len(skips_of(tmp_path)) == 3


def test_a_file_list_is_read_as_strictly(tmp_path):
    root = tmp_path / "sounds"
    wavs(root, "sub/a.wav", "b.wav")
    listed = tmp_path / "list.txt"
    for text, reason in [("../b.wav", "line 1: file_name '../b.wav' leads out"), ("b.wav\n/etc/c.wav", "line 2"), ("b\xe9.wav", "UTF-8")]:
        listed.write_text(text, encoding="latin-1")
        message = why(root, captions=False, file_list=str(listed))
        assert reason in message and "list.txt" in message
    listed.write_text("sub\\a.wav\nB.wav\n")
    assert list(captions_of(root, captions=False, file_list=str(listed))) == ["sub/a.wav"]
    assert skips_of(root, captions=False, file_list=str(listed))["B.wav"].reason.endswith("Did you mean 'b.wav'?")


def test_rows_of_audiocaps_are_read_as_strictly(tmp_path):
    (tmp_path / "clips").mkdir()
    for text, reason in [
        (
            "audiocap_id,youtube_id,start_time,caption\n1,abc,30,a dog, then a cat\n",
            "row 2: it has 5 fields, but the header has 4; quote captions",
        ),
        ('audiocap_id,youtube_id,start_time,caption\n1,abc,30,"a dog\n', "row 2: a quote is opened and never closed"),
        ("audiocap_id;youtube_id;start_time;caption\n", "separated by semicolons"),
    ]:
        (tmp_path / "train.csv").write_text(text)
        with pytest.raises(DataError, match=reason):
            AudioCaps(csv=str(tmp_path / "train.csv"), audio_dir=str(tmp_path / "clips"))
