"""Writing audio in every format: whole or not at all, never clipped, and never at another rate than asked for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import DataError
from soundomni.data.audio import read_audio
from soundomni.data.audio_formats import FORMATS, check_format
from soundomni.data.audio_writing import _encode, write_audio, write_wav

STEP = {"wav": 2.0**-15, "flac": 2.0**-15, "wav24": 2.0**-23, "wav32f": 0.0}
"""What a sample may be off by, in formats that lose nothing else."""


def tone(frequency: float, rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    t = np.arange(round(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * frequency * t + c) for c in range(channels)]).astype(np.float32)


def is_close(name: str, made: np.ndarray, waveform: np.ndarray) -> bool:
    error = np.abs(made - waveform)
    return bool(error.max() <= 2 * STEP[name] + 1e-7 if name in STEP else np.sqrt(np.mean(error**2)) < 0.02)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2)])
def test_every_format_comes_back(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    kind, waveform = FORMATS[name], tone(440, rate, channels=channels)
    path = tmp_path / f"a{kind.suffix}"
    assert write_audio(path, waveform, rate, format=name) == 1.0
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.format, info.subtype) == (rate, channels, kind.container, kind.subtype)
    made = read_audio(path)[0]
    assert made.shape == waveform.shape and is_close(name, made, waveform)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", FORMATS)
def test_loud_audio_is_scaled_and_floats_are_left(tmp_path: Path, name: str) -> None:
    loud = 4 * tone(440, 8000)  # a peak of 2
    path = tmp_path / f"a{FORMATS[name].suffix}"
    gain = write_audio(path, loud, 8000, format=name)
    assert gain == (1.0 if name == "wav32f" else pytest.approx(0.5, abs=1e-4))
    assert is_close(name, read_audio(path)[0], gain * loud)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_samples", [1, 2, 700])
def test_short_clips_keep_their_length(tmp_path: Path, name: str, num_samples: int) -> None:
    path = tmp_path / f"a{FORMATS[name].suffix}"
    write_audio(path, np.full((1, num_samples), 0.25, np.float32), 8000, format=name)
    assert soundfile.read(path)[0].shape == (num_samples,)


def test_long_clips_are_handed_over_in_pieces(tmp_path: Path) -> None:
    """A block of two million samples ends the process in libsndfile's encoder of Vorbis."""
    long = np.tile(tone(440, 8000), 300)
    write_audio(tmp_path / "a.ogg", long, 8000)
    assert soundfile.info(tmp_path / "a.ogg").frames == long.shape[1]


def test_flac_holds_the_samples_of_the_wav(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 70_000)).astype(np.float32)
    for name in ("a.wav", "a.flac"):
        write_audio(tmp_path / name, noise, 44100)
    wav, flac = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "a.flac"))
    assert np.array_equal(wav, flac)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "message"),
    [
        ("mp3", 9000, 1, r"does not support 9000 Hz, only 8000, 11025, 12000, .*48000 Hz. Use another format, such as wav"),
        ("mp3", 96000, 2, "only 8000"),
        ("mp3", 44101, 1, "only 8000"),
        ("mp3", 44100, 3, "does not support 3 channels, only up to 2"),
        ("ogg", 250_000, 1, "only 1 to 200000 Hz"),
        ("ogg", 8000, 9, "only up to 8"),
        ("flac", 700_000, 1, "only 1 to 655350 Hz"),
        ("flac", 65_537, 1, "FLAC does not support 65537 Hz"),
        ("flac", 8000, 9, "only up to 8"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_never_changed(tmp_path: Path, name: str, rate: int, channels: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_format(name, sample_rate=rate, channels=channels)
    with pytest.raises(DataError, match=message):
        write_audio(tmp_path / "a", np.zeros((channels, 100), np.float32), rate, format=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [100, 8000, 16000, 22050, 44100, 48000, 96000, 200_000, 655_350])
def test_what_is_not_refused_can_be_written(tmp_path: Path, name: str, rate: int) -> None:
    kind = FORMATS[name]
    try:
        check_format(name, sample_rate=rate, channels=min(8, kind.most_channels))
    except DataError:
        return
    path = tmp_path / f"a{kind.suffix}"
    write_audio(path, np.zeros((min(8, kind.most_channels), 300), np.float32), rate, format=name)
    assert soundfile.info(path).samplerate == rate


def test_the_suffix_says_the_format_unless_it_is_named(tmp_path: Path) -> None:
    for name, subtype in (("a.WAV", "PCM_16"), ("a.flac", "PCM_16"), ("a.mp3", "MPEG_LAYER_III"), ("a.ogg", "VORBIS")):
        write_audio(tmp_path / name, tone(440, 8000), 8000)
        assert soundfile.info(tmp_path / name).subtype == subtype
    with pytest.raises(DataError, match="its suffix is '.m4a'; expected one of .flac, .mp3, .ogg, .wav, or a format by name"):
        write_audio(tmp_path / "a.m4a", tone(440, 8000), 8000)
    with pytest.raises(DataError, match="the audio format is 'wav16'; expected one of .* Did you mean 'wav"):
        write_audio(tmp_path / "a.wav", tone(440, 8000), 8000, format="wav16")


def test_write_wav_is_16_bit_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    quiet = tone(440, 8000, channels=2)
    assert write_wav(path, quiet, 8000) == 1.0
    gain = write_wav(path, 4 * quiet, 8000)
    assert gain == pytest.approx(1 / (4 * np.abs(quiet).max()))
    np.testing.assert_allclose(read_audio(path)[0], 4 * gain * quiet, atol=2.0 / 32767)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"] and soundfile.info(path).subtype == "PCM_16"


@pytest.mark.parametrize("name", FORMATS)
def test_failures_leave_nothing_behind(tmp_path: Path, name: str) -> None:
    suffix = FORMATS[name].suffix
    with pytest.raises(DataError, match=f"no such directory '{tmp_path}/no'"):
        write_audio(tmp_path / "no" / f"a{suffix}", tone(440, 8000), 8000, format=name)
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="cannot write") as caught:
        write_audio(tmp_path / "taken", tone(440, 8000), 8000, format=name)
    assert "\n" not in str(caught.value)
    for wrong, message in ((np.full((1, 10), np.nan), "finite"), (np.zeros(10), r"\[C, S\]"), (np.zeros((1, 0)), r"\[C, S\]")):
        with pytest.raises(DataError, match=message):
            write_audio(tmp_path / "wrong", wrong, 8000, format=name)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_a_wav_beyond_its_header_is_refused() -> None:
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1, 2**31), (0, 0))  # it takes no memory
    with pytest.raises(DataError, match=r"can have at most 4 GB, but this clip takes 4.3 GB. Use flac"):
        _encode(endless, 8000, FORMATS["wav"], np.float32(1))


@pytest.mark.parametrize("suffix", [".wav", ".ogg"])
def test_a_full_disk_is_called_what_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    program = (
        "import resource, sys, numpy as np; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "from soundomni.data.audio_writing import write_audio\n"
        f"write_audio({str(path)!r}, np.zeros((1, 800), np.float32), 8000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"DataError: cannot write '{path}': File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_long_names_and_names_that_are_not_text_are_written(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9.wav"), "x" * 251 + ".wav"):
        write_wav(tmp_path / name, tone(440, 8000), 8000)
    assert len(list(tmp_path.iterdir())) == 2
