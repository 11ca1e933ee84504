"""Every container is read whole or refused by name, whatever happened to the file: cut, joined, streamed, tagged or damaged."""

import contextlib
import io
import os
import runpy
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundomni.core.errors import UnreadableAudioError
from soundomni.data import audio
from soundomni.data.audio import audio_info, read_audio
from soundomni.data.containers.ogg import _checksum as ogg_checksum
from soundomni.data.decoder import Embedded

RATE = 8000
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(8001) / RATE)).astype(np.float32)
KINDS = [(name, kind) for name in soundfile.available_formats() for kind in soundfile.available_subtypes(name)]
UNCHECKED = {"RAW", "SD2", "PAF", "PVF", "IRCAM", "MAT4", "MAT5", "SDS", "XI"}
"""Containers where nothing says how long the audio is, or that nobody keeps sounds in today."""


def encoded(container, subtype=None, *, waveform=TONE, rate=RATE, channels=1, **settings):
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, channels, subtype, format=container, **settings) as file:
        for first in range(0, len(waveform), 10 * RATE):  # libsndfile writes Vorbis with all that it is given on the stack
            file.write(np.stack([waveform[first : first + 10 * RATE]] * channels, axis=1))
    return out.getvalue()


def writable(container, subtype, channels):
    try:
        return encoded(container, subtype, channels=channels)
    except (soundfile.SoundFileError, ValueError):
        return None


def read(tmp_path, data):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    waveform, rate = read_audio(path)
    assert audio_info(path) == (waveform.shape[1], rate, waveform.shape[0])
    return waveform


def refused(tmp_path, data, words=None):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(UnreadableAudioError, match=words) as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"cannot read '{path}': ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("container", "subtype"), [kind for kind in KINDS if kind[0] not in UNCHECKED])
def test_every_container_is_read_whole_and_refused_when_cut(tmp_path, container, subtype):
    for channels in (1, 2):
        data = writable(container, subtype, channels)
        if data is None:
            continue
        waveform = read(tmp_path, data)
        assert waveform.shape[0] == channels and 0 <= waveform.shape[1] - len(TONE) < 500  # block codecs fill their last block
        for end in (1, 40, len(data) // 3, len(data) // 2, len(data) - 200, len(data) - 9):
            refused(tmp_path, data[:end], None if container == "HTK" or end < 100 else "truncated")


@pytest.mark.parametrize("container", sorted({name for name, _ in KINDS} - {"RAW", "SD2"}))
def test_the_first_bytes_of_a_file_are_refused(tmp_path, container):
    data = encoded(container)
    for end in range(1, 130, 3):
        refused(tmp_path, data[:end])


def test_a_file_of_one_tiny_frame_is_no_internal_error(tmp_path):
    for third, length in ((0x10, 26), (0x14, 24), (0x18, 36)):  # less than a tag takes
        with contextlib.suppress(UnreadableAudioError):
            assert read(tmp_path, bytes((0xFF, 0xF3, third, 0xC4)) + bytes(length - 4)).shape[0] == 1


@pytest.mark.parametrize("container", sorted(UNCHECKED - {"RAW", "SD2"}))
def test_containers_that_cannot_be_checked_are_refused_by_name(tmp_path, container):
    refused(tmp_path, encoded(container), f"type {container}, .*Convert it to WAV or FLAC$")


def test_raw_samples_are_refused_whatever_their_name_promises(tmp_path):
    for suffix in ("vox", "gsm", "ul", "al", "raw"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(encoded("WAV")[44:])
        with pytest.raises(UnreadableAudioError, match="Convert it to WAV or FLAC$"):
            read_audio(path)


def patched(data, *patches):
    data = bytearray(data)
    for at, value in patches:
        data[at : at + len(value)] = value
    return bytes(data)


def rf64_without_sizes():
    return patched(encoded("RF64"), (20, b"\xff" * 24))


def streamed():
    wav, aiff, au, caf, w64, flac = (encoded(name, "PCM_16") for name in ("WAV", "AIFF", "AU", "CAF", "W64", "FLAC"))
    full, zero, sox = b"\xff" * 4, bytes(4), struct.pack("<I", 0x7FFFF000 - 49)
    ssnd, comm, data = aiff.index(b"SSND") + 4, aiff.index(b"COMM") + 10, caf.index(b"data") + 4
    w64_data = w64.index(b"data") + 16
    yield from ((f"wav {size!r}", patched(wav, (4, size), (40, size))) for size in (full, zero, sox))
    yield "wav whose size is that of its header", patched(wav, (4, struct.pack("<I", 36)), (40, zero))
    yield "wav in which only the data has no size", patched(wav, (40, zero))
    yield "aiff 0", patched(aiff, (4, zero), (ssnd, zero), (comm, zero))
    yield "aiff of SoX", patched(aiff, (4, b"\x7f\0\0\x50"), (ssnd, b"\x7f\0\0\x08"), (comm, b"\x3f\x80\0\0"))
    yield from ((f"au {size!r}", patched(au, (8, size))) for size in (full, zero))
    yield "caf", patched(caf, (data, b"\xff" * 8))
    yield "w64", patched(w64, (w64_data, struct.pack("<Q", 2**63 - 1 - 10000)))
    yield "rf64", rf64_without_sizes()
    yield "flac", patched(flac, (21, bytes([flac[21] & 0xF0]) + bytes(4)))


@pytest.mark.parametrize(("name", "data"), list(streamed()))
def test_streamed_files_without_sizes_are_read_whole(tmp_path, name, data):
    np.testing.assert_allclose(read(tmp_path, data), TONE[None], atol=1e-4)


def test_a_streamed_flac_that_was_cut_is_refused(tmp_path):
    data = dict(streamed())["flac"]
    for end in (len(data) - 1, len(data) - 300, len(data) // 2):
        refused(tmp_path, data[:end], "it is truncated or damaged; its header does not say how long it is")
    np.testing.assert_allclose(read(tmp_path, data + b"TAG" + bytes(125)), TONE[None], atol=1e-4)


def chunk(name, content, order="<", *, pad=True):
    return name + struct.pack(order + "I", len(content)) + content + (b"\0" if pad and len(content) % 2 else b"")


def wav_of(*chunks):
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


FMT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
PCM = np.rint(TONE * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        wav_of(chunk(b"LIST", b"INFOa"), FMT, chunk(b"bext", bytes(603)), chunk(b"data", PCM), chunk(b"LIST", b"INFO")),
        wav_of(chunk(b"LIST", b"INFOa", pad=False), FMT, chunk(b"data", PCM)),
        wav_of(FMT, chunk(b"data", PCM)) + chunk(b"id3 ", b"ID3\x03\0\0\0\0\0\0"),
        wav_of(FMT, chunk(b"data", PCM)) + b"a few bytes",
        wav_of(FMT, chunk(b"data", PCM)) + bytes(10_000),
        wav_of(FMT, chunk(b"data", PCM)) + b"TAG" + bytes(range(125)),
        wav_of(FMT, chunk(b"data", PCM), chunk(b"LIST", b"INFO" + bytes(200)))[:-100],
        wav_of(FMT, chunk(b"data", PCM), chunk(b"id3 ", bytes(200)))[:-100],
        b"ID3\x03\0\0\0\0\0\x05hello" + wav_of(FMT, chunk(b"data", PCM)),
    ],
    ids=["odd chunks", "unpadded", "beyond RIFF", "junk", "zeros", "ID3v1", "cut in its last chunk", "cut in its tag", "after ID3v2"],
)
def test_what_stands_around_the_audio_of_a_wav_does_not_matter(tmp_path, data):
    np.testing.assert_allclose(read(tmp_path, data), TONE[None], atol=1e-4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wav_of(FMT, chunk(b"data", PCM)) * 2, "another file follows it at byte 16046"),
        (wav_of(FMT, chunk(b"data", PCM), chunk(b"data", PCM)), "more than one data chunk"),
        (wav_of(FMT, chunk(b"data", PCM[:1000]) + PCM[1000:]), "no chunk at byte 1044"),
        (wav_of(FMT, chunk(b"data", PCM)) + np.random.default_rng(0).bytes(10_000), "10000 bytes follow the audio"),
        (wav_of(FMT), "no audio|truncated before its audio"),
        (wav_of(chunk(b"data", PCM)), "no fmt chunk"),
        (wav_of(FMT, chunk(b"data", b""), chunk(b"LIST", b"INFO")), "it has no samples"),
        (b"RIFF\x24\0\0\0AVI ", "type 'AVI '; expected 'WAVE'"),
        (wav_of(FMT, *[chunk(b"JUNK", b"")] * 11_000, chunk(b"data", PCM)), "no audio"),
    ],
)
def test_wavs_that_contradict_themselves_are_refused(tmp_path, data, words):
    refused(tmp_path, data, words)


def test_the_chunks_of_an_aiff_may_come_in_any_order(tmp_path):
    common = chunk(b"COMM", struct.pack(">HIH", 1, len(TONE), 16) + bytes.fromhex("400bfa00000000000000"), ">")
    sound = chunk(b"SSND", bytes(8) + np.rint(TONE * 32767).astype(">i2").tobytes(), ">")
    aiff = [
        b"FORM" + struct.pack(">I", 4 + sum(map(len, parts))) + b"AIFF" + b"".join(parts) for parts in ((sound, common), (common, sound))
    ]
    for data in aiff:
        np.testing.assert_allclose(read(tmp_path, data), TONE[None], atol=1e-4)
    more, fewer = (patched(aiff[1], (22, struct.pack(">I", count))) for count in (9000, 7000))
    refused(tmp_path, more, "it is truncated; it announces 9000 samples but holds 8001")
    refused(tmp_path, fewer, "it is damaged; it announces 7000 samples but holds 8001")


def frames_of(mp3):
    """Returns the frames of an MP3 file of 44.1 kHz (MPEG-1, layer III)."""
    frames, at = [], 0
    while at < len(mp3):
        kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[mp3[at + 2] >> 4]
        length = 144000 * kbits // 44100 + (mp3[at + 2] >> 1 & 1)
        frames.append(mp3[at : at + length])
        at += length
    return frames


SOUND = np.concatenate([np.tile(TONE, 4), np.zeros(9000, np.float32), np.tile(TONE, 4)])
MP3 = {
    mode: frames_of(encoded("MP3", "MPEG_LAYER_III", waveform=SOUND, rate=44100, bitrate_mode=mode, compression_level=0.5))
    for mode in ("CONSTANT", "VARIABLE")
}
ID3V2, ID3V1 = b"ID3\x04\0\0\0\0\0\x05hello", b"TAG" + bytes(range(125))
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32 + 10, 1, 0x80000000) + bytes(8)
APE = APE[:20] + struct.pack("<I", 0xA0000000) + bytes(8) + b"\2\0\0\0\0\0\0\0a\0" + APE


@pytest.mark.parametrize("mode", MP3)
def test_mp3s_are_read_whole_with_and_without_their_first_frame(tmp_path, mode):
    tagged, frames = b"".join(MP3[mode]), MP3[mode][1:]
    expected = read(tmp_path, tagged)
    assert expected.shape == (1, len(SOUND))
    for data in (ID3V2 + tagged, ID3V2 * 2 + bytes(50) + tagged + ID3V1, tagged + APE + ID3V1, tagged + bytes(3000)):
        np.testing.assert_array_equal(read(tmp_path, data), expected)
    bare = read(tmp_path, b"".join(frames))
    assert bare.shape == (1, 1152 * len(frames) - 529), "the decoder's own delay is taken off, as with a tag"
    loud = np.sqrt(np.mean(bare[:, -20000:-3000] ** 2))
    assert loud == pytest.approx(0.3 / np.sqrt(2), rel=0.1), "the sound at the end is there"


@pytest.mark.parametrize("mode", MP3)
def test_mp3s_that_are_cut_joined_or_damaged_are_refused(tmp_path, mode):
    frames = MP3[mode]
    tagged, bare = b"".join(frames), b"".join(frames[1:])
    refused(
        tmp_path,
        b"".join(frames[:-2]),
        f"it is truncated; its first frame announces {len(frames) - 1} frames, but it has {len(frames) - 3}",
    )
    for whole in (tagged, bare):
        refused(tmp_path, whole[:-20], "it is truncated; its last frame lacks 20 bytes")
    refused(tmp_path, tagged * 3, "joined from several files; its first frame announces")
    refused(tmp_path, (ID3V2 + tagged + ID3V1) * 2, "joined from several files; there is no frame of MPEG audio at byte")
    refused(tmp_path, b"".join(frames[:9] + frames[10:]), "truncated")
    refused(tmp_path, patched(tagged, (sum(map(len, frames[:9])), b"\0")), "damaged, or joined")
    refused(tmp_path, bare + b"".join(frames_of(encoded("MP3", waveform=SOUND, rate=44100, channels=2))), "another rate or other channels")


def test_other_mpeg_audio(tmp_path):
    layer_2 = (b"\xff\xfd\x80\x00" + bytes(413)) * 40  # silence at 128 kbit/s; every bit of its allocation is zero
    assert read(tmp_path, layer_2).shape == (2, 40 * 1152)
    refused(tmp_path, layer_2[:-5], "truncated")
    refused(tmp_path, (b"\xff\xfb\x00\xc0" + bytes(300)) * 9, "free format")
    refused(tmp_path, "text in UTF-16".encode("utf-16"), "begins like MPEG audio, but no frame follows")


def pages_of(ogg):
    return [b"OggS" + page for page in ogg.split(b"OggS")[1:]]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_oggs_that_are_cut_joined_or_damaged_are_refused(tmp_path, subtype):
    data = encoded("OGG", subtype, waveform=np.tile(SOUND, 3), rate=48000)
    pages = pages_of(data)
    assert len(pages) > 4 and read(tmp_path, data).shape == (1, 3 * len(SOUND))
    assert read(tmp_path, data + bytes(5000)).shape == (1, 3 * len(SOUND))
    refused(tmp_path, b"".join(pages[:-1]), "it is truncated; the last page of its stream is missing")
    refused(tmp_path, data[:-30], "it is truncated; its last page lacks 30 bytes")
    refused(tmp_path, b"".join(pages[:-2] + pages[-1:]), "pages are missing")
    refused(tmp_path, data * 2, "another stream begins at byte")
    refused(tmp_path, patched(data, (len(data) // 2, bytes([data[len(data) // 2] ^ 1]))), "does not match its checksum")


def test_flacs_that_are_cut_or_joined_are_refused(tmp_path):
    data = encoded("FLAC")
    refused(tmp_path, data[:-1], "truncated or damaged")
    refused(tmp_path, data[: data.rindex(b"\xff\xf8")], "it is truncated; its frames end with sample 4096 and it announces 8001")
    refused(tmp_path, data * 2, f"another FLAC file follows it at byte {len(data)}")
    more, fewer = (patched(data, (22, struct.pack(">I", count))) for count in (9000, 7990))
    refused(tmp_path, more, "it is truncated; its frames end with sample 8001 and it announces 9000")
    refused(tmp_path, fewer, "it is damaged; its frames end with sample 8001 and it announces 7990")


def test_numbers_of_samples_in_small_headers_are_believed_and_checked(tmp_path):
    for container, at, order in (("AVR", 26, ">"), ("WVE", 18, ">"), ("MPC2K", 26, "<")):
        data = encoded(container)
        refused(tmp_path, patched(data, (at, struct.pack(order + "I", 9000))), "it is truncated; its header announces 9000 samples")
    nist = encoded("NIST")
    refused(tmp_path, nist.replace(b"count -i 8001", b"count -i 7000"), "2002 bytes follow the audio")
    refused(tmp_path, nist.replace(b"sample_count", b"sample_cuont"), "does not say how many samples it holds")
    au = encoded("AU")
    refused(tmp_path, patched(au, (8, struct.pack(">I", 15000))), "1002 bytes follow the audio")


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_16"), ("WAV", "GSM610"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None)]
)
def test_a_part_of_a_file_is_that_part_of_the_whole(tmp_path, container, subtype):
    path = tmp_path / "a"
    path.write_bytes(encoded(container, subtype, waveform=SOUND))
    whole, _ = read_audio(path)
    for first, count in ((0, 100), (50_000, 20_000), (whole.shape[1] - 1, 1)):
        part, rate = read_audio(path, first=first, num_samples=count)
        np.testing.assert_array_equal(part, whole[:, first : first + count])
        assert rate == RATE
    for first, count in ((-1, 10), (0, 0), (0, whole.shape[1] + 1), (whole.shape[1], None)):
        with pytest.raises(UnreadableAudioError, match="it has .* samples, samples .* were requested"):
            read_audio(path, first=first, num_samples=count)


@pytest.mark.parametrize(("container", "subtype"), [kind for kind in KINDS if kind[0] not in UNCHECKED | {"HTK"}])
def test_parts_are_those_of_the_whole_in_every_container(tmp_path, container, subtype):
    draws = np.random.default_rng(0)
    noisy = (TONE + 0.1 * draws.standard_normal(len(TONE))).astype(np.float32)
    for channels in (1, 2):
        if writable(container, subtype, channels) is None:
            continue
        path = tmp_path / "a"
        path.write_bytes(encoded(container, subtype, waveform=noisy, channels=channels))
        whole, _ = read_audio(path)
        for first in draws.integers(0, len(TONE) - 1000, 5):
            count = int(draws.integers(1, 1000))
            np.testing.assert_array_equal(read_audio(path, first=int(first), num_samples=count)[0], whole[:, first : first + count])


def settled(path, data):
    """Writes a file and waits until it counts as one that nobody is writing any more."""
    path.write_bytes(data)
    time.sleep(0.12)
    return path


def bytes_read(work):
    """Returns how many bytes this process read while `work` ran."""
    counter = Path("/proc/self/io")
    before = int(counter.read_text().split()[1])
    work()
    return int(counter.read_text().split()[1]) - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="what a process reads is counted as Linux counts it")
@pytest.mark.parametrize(("container", "known"), [("FLAC", True), ("OGG", True), ("WAV", False), ("AIFF", False), ("CAF", False)])
def test_a_part_of_a_file_takes_reading_that_part_only(tmp_path, container, known):
    seconds = 600 if container == "OGG" else 120  # a position in Ogg is found by halving, from which some blocks of 64 KB are read
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * RATE).astype(np.float32)
    path = settled(tmp_path / "a", encoded(container, "VORBIS" if container == "OGG" else "PCM_16", waveform=noise))
    if known:  # a FLAC is searched for another file behind it, once, and the pages of an Ogg file are checked
        read_audio(path, first=0, num_samples=1)
    for first in (0, 50 * RATE + 17, (seconds - 6) * RATE):
        assert bytes_read(lambda: read_audio(path, first=first, num_samples=5 * RATE)) < path.stat().st_size / 3  # noqa: B023


def without_first_pages(ogg, count):
    """Returns a stream that begins later, as one that was cut out of a broadcast does."""
    pages = pages_of(ogg)
    headers = [page for page in pages if page[6:14] == bytes(8)]
    kept = [*headers, *pages[len(headers) + count :]]
    numbered = [patched(page, (18, struct.pack("<I", number))) for number, page in enumerate(kept)]
    return b"".join(patched(page, (22, ogg_checksum(page))) for page in numbered)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("missing", [0, 1, 3])
def test_parts_of_vorbis_are_those_of_the_whole_bit_for_bit(tmp_path, missing, channels):
    rng = np.random.default_rng(missing)
    bursts = np.repeat(rng.uniform(0, 0.5, 60), RATE // 2) * rng.uniform(-1, 1, 30 * RATE)  # blocks of both lengths
    data = without_first_pages(encoded("OGG", "VORBIS", waveform=bursts.astype(np.float32), channels=channels), missing)
    path = settled(tmp_path / "a", data)
    whole, _ = read_audio(path)
    assert (whole.shape == (channels, 30 * RATE)) == (missing == 0)
    for first in [0, 1, whole.shape[1] - 1, *rng.integers(0, whole.shape[1], 40).tolist()]:
        count = int(rng.integers(1, min(3 * RATE, whole.shape[1] - first) + 1))
        assert np.array_equal(read_audio(path, first=first, num_samples=count)[0], whole[:, first : first + count]), first


def test_a_part_is_refused_like_the_whole_each_time(tmp_path):
    ogg, mp3, flac = (encoded(name, waveform=SOUND) for name in ("OGG", "MP3", "FLAC"))
    tagged = patched(ogg, (len(ogg) // 2, bytes([ogg[len(ogg) // 2] ^ 1])))
    for data, words in ((flac + flac, "another FLAC file follows"), (mp3 + mp3, "joined"), (tagged, "does not match its checksum")):
        path = settled(tmp_path / "a", data)
        for _ in range(2):
            with pytest.raises(UnreadableAudioError, match=words):
                read_audio(path, first=100, num_samples=100)


def test_a_file_that_changes_is_looked_at_again(tmp_path):
    ogg, flac = encoded("OGG", waveform=SOUND), encoded("FLAC", waveform=SOUND)
    once, joined = encoded("FLAC", waveform=np.concatenate([SOUND, SOUND])), flac + flac
    size = max(len(once), len(joined))
    damaged = patched(ogg, (len(ogg) // 2, bytes([ogg[len(ogg) // 2] ^ 1])))
    for good, bad, words in (
        (ogg, damaged, "does not match its checksum"),
        (once.ljust(size, b"\0"), joined.ljust(size, b"\0"), "another FLAC file follows"),
    ):
        path = settled(tmp_path / "a", good)
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        for _ in range(2):
            read_audio(path, first=100, num_samples=100)
        path.write_bytes(bad)  # of the same size
        os.utime(path, ns=times)
        with pytest.raises(UnreadableAudioError, match=words):
            read_audio(path, first=100, num_samples=100)
        path.write_bytes(good)
        read_audio(path, first=100, num_samples=100)
        path.write_bytes(bad)  # at once, when the time may not have changed
        with pytest.raises(UnreadableAudioError, match=words):
            read_audio(path, first=100, num_samples=100)


def test_what_a_file_decodes_to_is_bounded_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MOST_DECODED", 10_000_000)
    path = tmp_path / "silence.flac"
    soundfile.write(path, np.zeros((2_000_000, 4), np.int16), RATE)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(
            UnreadableAudioError,
            match=r"would decode to 32 MB \(250 s\), but a file this small may decode to at most 10 MB. Cut it into shorter files$",
        ):
            read_audio(path)
        with pytest.raises(UnreadableAudioError, match="lasts 250 s, but the limit here is 30 s"):
            read_audio(path, max_samples=30 * RATE)
        part, _ = read_audio(path, first=1_000_000, num_samples=RATE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert part.shape == (4, RATE) and peak < 2_000_000
    assert read_audio(path, max_samples=2_000_000)[0].shape == (4, 2_000_000), "who names a limit gets it"


def test_a_large_file_may_decode_to_many_times_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MOST_DECODED", 1000)
    for container in ("WAV", "FLAC", "OGG", "MP3"):
        assert read(tmp_path, encoded(container, waveform=SOUND)).shape == (1, len(SOUND))


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "DOUBLE")])
def test_reading_takes_less_than_twice_the_decoded_audio(tmp_path, container, subtype):
    path = tmp_path / "a"
    path.write_bytes(encoded(container, subtype, waveform=np.tile(TONE, 60), channels=2))
    tracemalloc.start()
    try:
        waveform, _ = read_audio(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert waveform.nbytes > 3_800_000 and peak < 1.3 * waveform.nbytes


def test_damaged_files_of_all_containers_are_read_whole_or_refused(tmp_path):
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "mutate_audio.py"))
    outcomes = [tool["judge"](mutant, tmp_path / "a", memory=False) for mutant in tool["mutants"](96, 7)]
    assert [outcome for outcome in outcomes if outcome[0] == "wrong"] == []
    assert {outcome for outcome, _ in outcomes} >= {"refused"} and sum(outcome != "refused" for outcome, _ in outcomes) > 10


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF"])
def test_a_file_within_another_file_or_in_memory_is_read_like_a_file(tmp_path, container):
    data = encoded(container)
    expected = read(tmp_path, data)
    (tmp_path / "outer.bin").write_bytes(b"RIFF" + bytes(997) + data + b"fLaC" + bytes(500))
    inside = Embedded("inside", tmp_path / "outer.bin", 1001, 1001 + len(data))
    for place in (inside, Embedded("inside", data)):
        assert place.size == len(data) and audio_info(place)[0] == expected.shape[1]
        assert np.array_equal(read_audio(place)[0], expected)
        for _ in range(2):
            assert np.array_equal(read_audio(place, first=1000, num_samples=300)[0], expected[:, 1000:1300])
    cut = Embedded("inside", tmp_path / "outer.bin", 1001, 1001 + len(data) // 2)
    for place, words in (
        (cut, "truncated"),
        (Embedded("inside", b""), "empty"),
        (Embedded("inside", b"PK\x03\x04" + bytes(50)), "archive"),
    ):
        with pytest.raises(UnreadableAudioError, match=f"^cannot read 'inside': .*{words}"):
            read_audio(place)
