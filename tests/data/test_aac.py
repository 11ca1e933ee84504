"""M4A and AAC files: with PyAV they are read like others, and without it they are named with the command that installs it."""

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from shard_files import write_parquet, write_tar

from soundomni.core.errors import UnreadableAudioError
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.data.aac import AAC_SUFFIXES, format_of, has_pyav
from soundomni.data.audio import SUFFIXES, audio_info, read_audio
from soundomni.data.decoder import Embedded
from soundomni.data.folder_listing import unread_format

RATE = 44100


def tones(seconds=1.5, channels=2):
    """Returns a tone in each channel, which fade in and out."""
    time = np.arange(round(seconds * RATE)) / RATE
    fade = np.minimum(1, 20 * np.minimum(time, time[-1] - time))
    return np.stack([0.4 / (i + 1) * fade * np.sin(2 * np.pi * 440 * (i + 1) * time) for i in range(channels)]).astype(np.float32)


def encoded(clip, *, container="ipod", codec="aac", **options):
    """Returns a clip as a real file, with FFmpeg's own encoder."""
    import av

    kind, samples = ("fltp", clip) if codec == "aac" else ("s16p", np.round(clip * 2**15).astype(np.int16))
    with TemporaryDirectory() as folder:
        path = Path(folder, "clip")  # FFmpeg only puts the index first in a file that it can open again
        with av.open(str(path), "w", format=container, options=options) as file:
            stream = file.add_stream(codec, rate=RATE)
            stream.layout = "stereo" if len(clip) == 2 else "mono"
            stream.bit_rate = 192_000
            for first in range(0, samples.shape[1], 1024):
                part = np.ascontiguousarray(samples[:, first : first + 1024])
                frame = av.AudioFrame.from_ndarray(part, format=kind, layout=stream.layout.name)
                frame.sample_rate, frame.pts = RATE, first
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        return path.read_bytes()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_an_m4a_file_is_the_clip_that_was_encoded(tmp_path, channels, options):
    clip, path = tones(channels=channels), tmp_path / "a.m4a"
    path.write_bytes(encoded(clip, **options))
    num_samples, rate, found = audio_info(path)
    waveform, _ = read_audio(path)
    assert (rate, found) == (RATE, channels) and waveform.shape == (channels, num_samples) and waveform.dtype == np.float32
    assert abs(num_samples - clip.shape[1]) <= RATE // 1000  # the container counts milliseconds
    error = waveform[:, : clip.shape[1]] - clip[:, :num_samples]
    assert np.sqrt((error**2).mean()) < 0.04 * np.sqrt((clip**2).mean())  # one sample further on, it is above 0.06


def test_alac_in_an_m4a_file_is_exact(tmp_path):
    clip, path = tones(), tmp_path / "a.m4a"
    path.write_bytes(encoded(clip, codec="alac"))
    waveform, _ = read_audio(path)
    np.testing.assert_array_equal(waveform[:, : clip.shape[1]], np.round(clip * 2**15)[:, : waveform.shape[1]].astype(np.float32) / 2**15)


def test_a_stream_of_aac_is_counted_by_decoding_it(tmp_path):
    path = tmp_path / "a.aac"
    path.write_bytes(encoded(tones(), container="adts"))
    num_samples, rate, channels = audio_info(path)
    waveform, _ = read_audio(path)
    assert (rate, channels) == (RATE, 2) and waveform.shape == (2, num_samples) and num_samples % 1024 == 0
    assert 0 <= num_samples - tones().shape[1] <= 4096


def test_parts_are_the_samples_of_the_whole_file_in_files_in_memory_and_in_archives(tmp_path):
    data = encoded(tones())
    (tmp_path / "a.wav").write_bytes(data)  # suffixes may be wrong
    (tmp_path / "many").write_bytes(b"before" + data + b"after")
    whole, _ = read_audio(tmp_path / "a.wav")
    places = (tmp_path / "a.wav", Embedded("bytes", data), Embedded("inner", tmp_path / "many", 6, 6 + len(data)))
    for place in places:
        for first, count in ((0, 1), (5000, 7001), (whole.shape[1] - 3, 3)):
            np.testing.assert_array_equal(read_audio(place, first=first, num_samples=count)[0], whole[:, first : first + count])
        with pytest.raises(UnreadableAudioError, match="samples .* were requested"):
            read_audio(place, first=0, num_samples=whole.shape[1] + 1)


def test_damaged_files_are_named_in_one_line(tmp_path):
    data, fast, stream = encoded(tones()), encoded(tones(), movflags="faststart"), encoded(tones(), container="adts")
    damaged = {
        "without_index": data[: len(data) // 2],
        "truncated": fast[: len(fast) // 2],
        "nothing": data[:32] + bytes(4000),
        "noise": fast[: len(fast) // 2] + np.random.default_rng(0).bytes(len(fast) - len(fast) // 2),
        "stream": stream[: len(stream) // 2] + bytes(5000),
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.m4a"
        path.write_bytes(content)
        with pytest.raises(UnreadableAudioError, match=f"cannot read '{path}': it ") as caught:
            read_audio(path)
        assert "\n" not in str(caught.value)


def damaged_descriptions(data, box):
    """Returns copies of a file in which one byte of the description of its codec differs."""
    first = data.rindex(box)
    places = range(first + 4, first + 48)
    return [data[:i] + bytes([byte]) + data[i + 1 :] for i in places for byte in (0, 1, 5, 66, 128, 255) if data[i] != byte]


def test_whatever_is_wrong_with_a_description_is_said_in_words(tmp_path):
    path, said = tmp_path / "a.m4a", set()
    clip = tones(0.1)
    for content in (*damaged_descriptions(encoded(clip), b"esds"), *damaged_descriptions(encoded(clip, codec="alac"), b"alac")):
        path.write_bytes(content)
        try:
            read_audio(path)
        except UnreadableAudioError as error:
            said.add(str(error).removeprefix(f"cannot read '{path}': "))
    ours = {
        "it is truncated or damaged, so PyAV cannot decode it",
        "it is damaged, or in a form of its codec that PyAV cannot decode",
        "its audio is encrypted, or has a codec that PyAV cannot decode",
    }
    others = ("it has ", "its sample rate ", "samples reach ", "it is truncated or damaged; it decodes to ", "it is truncated; its audio ")
    assert said >= ours and [one for one in said - ours if not one.startswith(others)] == []


@pytest.mark.parametrize("tag", [b"drms", b"enca"])
def test_encrypted_audio_is_named_and_a_folder_stays_usable(tmp_path, tag):
    data = encoded(tones(0.2))
    (tmp_path / "a.m4a").write_bytes(data)
    (tmp_path / "b.m4a").write_bytes(data.replace(b"mp4a", tag))
    told = f"cannot read '{tmp_path / 'b.m4a'}': its audio is encrypted, or has a codec that PyAV cannot decode"
    for read in (audio_info, read_audio):
        with pytest.raises(UnreadableAudioError) as caught:
            read(tmp_path / "b.m4a")
        assert str(caught.value) == told
    dataset = build("dataset", Slot("audio-folder", {"path": str(tmp_path), "captions": False}))
    assert len(dataset) == 1 and len(dataset.skipped) == 1


def test_a_file_may_only_be_what_its_first_bytes_say(tmp_path):
    soundfile.write(tmp_path / "secret.wav", np.zeros(800), 8000)
    (tmp_path / "list.m4a").write_text("#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.m4a").write_text("ffconcat version 1.0\nfile secret.wav\n")
    for name in ("list", "concat"):
        with pytest.raises(UnreadableAudioError, match="it is not audio"):
            read_audio(tmp_path / f"{name}.m4a")


def test_datasets_list_and_read_m4a(tmp_path):
    data = encoded(tones(0.2))
    for place in ("folder", "tar", "parquet"):
        (tmp_path / place).mkdir()
    (tmp_path / "folder" / "a.m4a").write_bytes(data)
    (tmp_path / "folder" / "a.txt").write_text("tones")
    write_tar(tmp_path / "tar" / "0.tar", [("a.m4a", data), ("a.txt", b"tones")])
    write_parquet(tmp_path / "parquet" / "0.parquet", [data], names=["a.m4a"])
    index = {"index_dir": "memory"}
    for kind, arguments in (("audio-folder", {}), ("webdataset", index), ("parquet", index)):
        place = {"audio-folder": "folder", "webdataset": "tar"}.get(kind, kind)
        dataset = build("dataset", Slot(kind, {"path": str(tmp_path / place)} | arguments))
        waveform, rate = dataset.load(0)
        assert (waveform.shape[1], rate) == (dataset.item(0).num_samples, RATE) and not dataset.skipped


if not has_pyav():

    @pytest.mark.parametrize("suffix", AAC_SUFFIXES)
    def test_without_pyav_files_are_named_with_the_command_that_installs_it(suffix):
        kind = suffix[1:].upper()
        skip = unread_format(f"a{suffix}")
        assert suffix not in SUFFIXES and (skip.kind, skip.group) == ("unsuitable", f"in {kind}, which cannot be read")
        assert skip.reason == f"{kind} files cannot be read without PyAV; run `pip install soundomni[m4a]`, or convert it to WAV or FLAC"

    @pytest.mark.parametrize(
        ("head", "kind"), [(b"\0\0\0\x20ftypM4A ", "an MP4 file (M4A, MOV)"), (b"\xff\xf1\x50\x80\2\0", "an AAC stream")]
    )
    @pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
    def test_without_pyav_such_files_are_called_what_they_are(tmp_path, head, kind, name):
        (tmp_path / name).write_bytes(head + bytes(3000))
        for read in (audio_info, read_audio):
            with pytest.raises(UnreadableAudioError) as caught:
                read(tmp_path / name)
            told = f"it is {kind}, which cannot be read without PyAV. Run `pip install soundomni[m4a]`, or convert it to WAV or FLAC"
            assert str(caught.value) == f"cannot read '{tmp_path / name}': {told}"


def test_the_same_where_pyav_is_missing():
    """The tests above, in a process that cannot import it."""
    program = "import sys; sys.modules['av'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "without_pyav", __file__]
    told = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and f"{len(AAC_SUFFIXES) + 4} passed" in told.stdout, told.stdout


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"\0\0\0\x20ftypM4A ", "mov"),
        (b"\xff\xf1\x50\x80", "aac"),
        (b"\xff\xf9\x50\x80", "aac"),
        (b"\xff\xfb\x90\0", None),
        (b"RIFF", None),
    ],
)
def test_the_first_bytes_choose_the_demuxer(head, found):
    assert format_of(io.BytesIO(head)) == found
