"""The AudioCaps reader on a tiny copy of its layout."""

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import DataError
from soundomni.data.audiocaps import AudioCaps

CSV = """audiocap_id,youtube_id,start_time,caption
1,abc,30,A dog barks
2,abc,30,"A dog, barking"
3,-x_y,0,Rain falls
4,gone,10,A car passes
5,abc,40,
"""


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, rate in (("abc_30", 32000), ("-x_y_0", 44100), ("abc_40", 32000)):
        soundfile.write(clips / f"{name}.wav", np.zeros((rate // 10, 2)), rate)
    return {"csv": str(tmp_path / "train.csv"), "audio_dir": str(clips)}


def test_captions_of_one_clip_are_grouped_and_missing_clips_skipped(parts):
    data = AudioCaps(**parts)
    assert [data.item(i).key for i in range(len(data))] == ["abc_30.wav", "-x_y_0.wav"]
    dog = data.item(0)
    assert dog.captions == ("A dog barks", "A dog, barking") and (dog.num_samples, dog.sample_rate) == (3200, 32000)
    assert dog.attributes["audiocap_ids"] == ("1", "2")
    assert data.load(1)[0].shape == (2, 4410)
    reasons = {skip.key: skip.reason for skip in data.skipped}
    assert "no such file" in reasons["gone_10.wav"] and reasons["abc_40.wav"] == "it has no caption" and len(reasons) == 2


def test_a_missing_column_is_named(parts, tmp_path):
    (tmp_path / "train.csv").write_text("audiocap_id,youtube,start_time,caption\n1,abc,30,x\n")
    with pytest.raises(DataError, match="no column 'youtube_id'; .*Rename 'youtube' to 'youtube_id'"):
        AudioCaps(**parts)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"csv": "none.csv"}, "cannot read"), ({"audio_dir": "none"}, "no folder"), ({"extension": ".flac"}, "none of the 4 clips")],
)
def test_wrong_places_are_one_line(parts, changed, reason):
    with pytest.raises(DataError, match=reason) as caught:
        AudioCaps(**(parts | changed))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_clips_are_told_apart(parts, tmp_path):
    (tmp_path / "clips" / "-x_y_0.wav").write_bytes(b"noise")
    kinds = {skip.key: skip.kind for skip in AudioCaps(**parts).skipped}
    assert kinds == {"-x_y_0.wav": "unreadable", "gone_10.wav": "missing", "abc_40.wav": "no caption"}


@pytest.mark.parametrize("row", ["1,../secret,30,x", "1,{root}/secret,30,x", "1,secret,/../../secret_30,x", "1,a\\b,30,x", "1,a\0,30,x"])
def test_no_row_leads_out_of_the_folder(parts, tmp_path, row):
    soundfile.write(tmp_path / "secret_30.wav", np.zeros(800), 8000)
    (tmp_path / "train.csv").write_text(f"audiocap_id,youtube_id,start_time,caption\n2,abc,30,y\n{row.format(root=tmp_path)}\n")
    with pytest.raises(DataError, match=r"train.csv' has the (youtube_id|start_time) '.*without folders") as caught:
        AudioCaps(**parts)
    assert "\n" not in str(caught.value)


def test_starts_that_are_written_as_floats_find_their_clips(parts, tmp_path):
    rows = ["1,abc,30.0,A dog barks", "2,abc,30,Barking", "3,-x_y,0.0,Rain falls", "4,half,1.5,A car"]
    (tmp_path / "train.csv").write_text("\n".join(["audiocap_id,youtube_id,start_time,caption", *rows]) + "\n")
    soundfile.write(tmp_path / "clips" / "half_1.5.wav", np.zeros(800), 8000)
    data = AudioCaps(**parts)
    assert [data.item(i).key for i in range(len(data))] == ["abc_30.wav", "-x_y_0.wav", "half_1.5.wav"] and not data.skipped
    assert data.item(0).captions == ("A dog barks", "Barking") and data.load(2)[0].shape == (1, 800)


def test_a_clip_whose_name_has_the_start_as_it_is_written_is_found_first(parts, tmp_path):
    (tmp_path / "train.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,abc,30.0,A dog barks\n")
    soundfile.write(tmp_path / "clips" / "abc_30.0.wav", np.zeros(800), 8000)
    assert AudioCaps(**parts).item(0).key == "abc_30.0.wav"
