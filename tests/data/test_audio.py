"""Reading, resampling and channels, on real files of every kind."""

import os

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError, UnreadableAudioError
from soundomni.data.audio import (
    audio_info,
    fit_announced,
    match_channels,
    read_audio,
    resample,
    resampled_length,
    write_wav,
)

KINDS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}


def tone(frequency, rate, seconds=1.0, channels=1):
    t = np.arange(round(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * frequency * t + c) for c in range(channels)]).astype(np.float32)


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (22050, 2)])
def test_reads_every_kind_at_every_rate(tmp_path, suffix, rate, channels):
    container, subtype = KINDS[suffix]
    waveform = tone(440, rate, channels=channels)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, waveform.T, rate, format=container, subtype=subtype)
    read, found_rate = read_audio(path)
    assert (read.shape[1], found_rate, read.shape[0]) == audio_info(path)
    assert read.dtype == np.float32 and read.flags.c_contiguous
    assert found_rate == rate and read.shape == waveform.shape
    error = np.sqrt(np.mean((read - waveform)[:, 2000:-2000] ** 2))
    assert error < (1e-4 if suffix in ("wav", "flac") else 0.03)


def _broken(path, kind):
    waveform = tone(440, 8000).T
    if kind == "missing":
        return
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not audio, whatever its name says\n" * 50)
    elif kind == "zero-length":
        soundfile.write(path, waveform[:0], 8000, format="WAV")
    elif kind == "nan":
        soundfile.write(path, np.where(np.arange(8000) == 7, np.nan, 0.1), 8000, subtype="FLOAT", format="WAV")
    elif kind == "infinite":
        soundfile.write(path, np.where(np.arange(8000) == 7, np.inf, 0.1), 8000, subtype="FLOAT", format="WAV")
    elif kind == "integers":
        soundfile.write(path, waveform * 32767, 8000, subtype="FLOAT", format="WAV")
    else:
        soundfile.write(path, waveform, 8000, format=kind)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("empty", "the file is empty"),
        ("text", "it is not audio, or its format is not supported. Convert it to WAV or FLAC"),
        ("zero-length", "no samples"),
        ("nan", "not finite"),
        ("infinite", "not finite"),
        ("integers", "expected them within"),
        ("WAV", "truncated"),
        ("FLAC", "it is truncated; its frames end with sample 4096 and it announces 8000"),
        ("MP3", "it is truncated; its last frame lacks"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path, kind, reason):
    path = tmp_path / "broken.wav"
    _broken(path, kind)
    with pytest.raises(UnreadableAudioError, match=reason) as caught:
        read_audio(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86", "a Matroska or WebM file"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "an ASF file (WMA)"),
        (b"wvpk\x10\0", "a WavPack file"),
        (b"#!AMR-WB\n", "an AMR file"),
        (b"MThd\0\0\0\x06", "a MIDI file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Run `git lfs pull`"),
        (b"\n<!doctype html><title>404</title>", "a web page, not audio. Fetch it again"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b'{"error": "rate limit"}', "JSON text"),
        (b"PK\x03\x04\x14\0", "an archive, not audio. Unpack it"),
        (bytes(64), "begins with zeros"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_what_is_not_audio_is_called_what_it_is_whatever_its_suffix(tmp_path, name, head, reason):
    path = tmp_path / name
    path.write_bytes(head + bytes(3000))
    for read in (audio_info, read_audio):
        with pytest.raises(UnreadableAudioError) as caught:
            read(path)
        assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for read in (read_audio, audio_info):
        with pytest.raises(UnreadableAudioError, match="it is not a regular file$"):
            read(tmp_path / "pipe.wav")


def test_headers_that_lie_are_no_internal_errors(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(440, 8000).T, 8000)
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # total samples: 2^36 - 1
    path.write_bytes(data)
    with pytest.raises(UnreadableAudioError, match="cannot read"):
        read_audio(path)
    for rate in (1, 2_000_000_000):
        soundfile.write(tmp_path / "rate.wav", tone(440, 8000).T, rate)
        for read in (read_audio, audio_info):
            with pytest.raises(UnreadableAudioError, match=f"its sample rate is {rate} Hz; expected 100 to 1,000,000 Hz"):
                read(tmp_path / "rate.wav")


def test_names_need_not_be_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    write_wav(path, tone(440, 8000), 8000)
    assert read_audio(path)[0].shape == (1, 8000) and audio_info(path) == (8000, 8000, 1)


def test_a_folder_is_called_a_folder(tmp_path):
    for read in (read_audio, audio_info):
        with pytest.raises(UnreadableAudioError, match="it is a folder$"):
            read(tmp_path)


def test_header_scan_finds_what_a_header_can_tell(tmp_path):
    for kind in ("missing", "empty", "text", "zero-length", "WAV"):
        path = tmp_path / f"{kind}.wav"
        _broken(path, kind)
        with pytest.raises(UnreadableAudioError, match=str(path)):
            audio_info(path)


def test_a_streamed_wav_header_without_length_is_read(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(440, 8000).T, 8000)
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert read_audio(path)[0].shape == (1, 8000)


@pytest.mark.parametrize(("found", "announced", "usable"), [(990, 1000, True), (1010, 1000, True), (0, 10, False), (7000, 8000, False)])
def test_small_differences_of_length_are_rounding_and_large_ones_are_not(found, announced, usable):
    waveform = np.ones((2, found), np.float32)
    if not usable:
        with pytest.raises(UnreadableAudioError, match=rf"'x': it decodes to {found} samples, but {announced}"):
            fit_announced(waveform, announced, 8000, name="x")
        return
    fitted = fit_announced(waveform, announced, 8000, name="x")
    assert fitted.shape == (2, announced)
    assert fitted[:, :found].min() == 1.0 and (fitted[:, found:] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 3000),
    from_rate=st.sampled_from([8000, 16000, 22050, 44100, 48000, 7001]),
    to_rate=st.sampled_from([8000, 16000, 22050, 44100, 48000, 7001]),
)
def test_resampled_length_is_exact(num_samples, from_rate, to_rate):
    out = resample(np.zeros((1, num_samples), np.float32), from_rate, to_rate)
    assert out.shape[1] == resampled_length(num_samples, from_rate, to_rate) == -(-num_samples * to_rate // from_rate)
    assert out.dtype == np.float32


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 16000), (8000, 44100), (48000, 44100)])
def test_resampling_agrees_with_the_closed_form_torchaudio_and_scipy(from_rate, to_rate):
    waveform = tone(440, from_rate, channels=2)
    ours = resample(waveform, from_rate, to_rate)
    inner = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(ours[:, inner], tone(440, to_rate, channels=2)[:, inner], atol=2e-5)
    theirs = torchaudio.functional.resample(torch.from_numpy(waveform), from_rate, to_rate, lowpass_filter_width=64).numpy()
    np.testing.assert_allclose(ours[:, inner], theirs[:, : ours.shape[1]][:, inner], atol=2e-3)
    common = np.gcd(from_rate, to_rate)
    scipys = scipy.signal.resample_poly(waveform.astype(np.float64), to_rate // common, from_rate // common, axis=1)
    np.testing.assert_allclose(ours[:, inner], scipys[:, : ours.shape[1]][:, inner], atol=5e-3)


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    assert np.abs(resample(tone(7000, 44100), 44100, 8000))[:, 800:-800].max() < 1e-4


def test_the_last_sample_is_resampled_too():
    rising = np.linspace(0, 1, 44101, dtype=np.float32)[None]  # 16000.36 samples: soxr alone would stop at 16000
    out = resample(rising, 44100, 16000)
    assert out.shape == (1, 16001) and out[0, -1] > 0.3


def test_equal_rates_return_the_waveform():
    waveform = tone(440, 8000)
    assert resample(waveform, 8000, 8000) is waveform


def test_channels():
    mono, stereo = tone(440, 8000), tone(440, 8000, channels=2)
    np.testing.assert_array_equal(match_channels(mono, 3), np.concatenate([mono] * 3))
    np.testing.assert_allclose(match_channels(stereo, 1), stereo.astype(np.float64).mean(0, keepdims=True), atol=1e-7)
    assert match_channels(stereo, 2) is stereo
    with pytest.raises(DataError, match="3 channels"):
        match_channels(np.zeros((3, 10), np.float32), 2)
