"""Damage audio files of all containers in many ways, and check that each is read completely or refused.

    python tools/mutate_audio.py --count 2000 --seed 0
    python tools/mutate_audio.py --count 200 --command-line   # with `soundomni reconstruct`, many files per call

The result is wrong if an independent decoder finds more samples (SoX, if it is installed, and miniaudio, if Python can
import it), if the end of the file was cut and samples are missing, if `audio_info` returns another length, if anything
but UnreadableAudioError is raised, or if reading took more than twice the memory of the decoded audio. The same seed
makes the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from soundomni.core.errors import UnreadableAudioError
from soundomni.data.audio import audio_info, read_audio

RATE = 8000
SLACK = 1 << 21
"""Bytes that reading may take besides twice the decoded audio: blocks, buffers and Python's own memory."""
TOLERANCE = {"MP3": 2 * 1152 + 529, "OGG": 0}
"""Number of samples by which decoders of lossy files may differ: only some trim the delay of the encoder."""
SOX_TYPES = {"WAV", "WAVEX", "RF64", "AIFF", "AU", "FLAC", "CAF", "NIST", "VOC", "SVX", "AVR"}
"""Containers that SoX reads correctly. It takes the padding of W64 for audio."""


@dataclass(frozen=True)
class Whole:
    """An undamaged file: its container, its encoding, its bytes and its samples per channel."""

    container: str
    subtype: str
    data: bytes
    num_samples: int
    announced: bool = True
    """Whether its header gives the length, so that a cut can be detected."""


@dataclass(frozen=True)
class Mutant:
    """A damaged file: the undamaged one, the kind of damage, and its bytes."""

    whole: Whole
    kind: str
    data: bytes


def whole_files(seconds: float = 0.5) -> list[Whole]:
    """Return a short file for each container and encoding of libsndfile, and some that other programs write."""
    samples = _sound(round(RATE * seconds))
    files = []
    for container in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(container):
            for channels in (1, 2):
                data = _encoded(samples, container, subtype, channels)
                if data:
                    files.append(Whole(container, subtype, data, len(samples)))
    return files + list(_special(samples))


def _sound(count: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(count)
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(count) / RATE) + 0.01 * noise).astype(np.float32)


def _encoded(samples: np.ndarray, container: str, subtype: str, channels: int, **settings: object) -> bytes:
    if container in ("RAW", "SD2"):  # these do not have a header in the file
        return b""
    out = io.BytesIO()
    try:
        soundfile.write(out, np.stack([samples] * channels, axis=1), RATE, format=container, subtype=subtype, **settings)
    except (soundfile.SoundFileError, ValueError):  # not every combination can be written
        return b""
    return out.getvalue()


def _special(samples: np.ndarray) -> Iterator[Whole]:
    mp3 = _encoded(samples, "MP3", "MPEG_LAYER_III", 1, bitrate_mode="VARIABLE", compression_level=0.5)
    wav = _encoded(samples, "WAV", "PCM_16", 1)
    flac = _encoded(samples, "FLAC", "PCM_16", 1)
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    for name, data in (("tagged", tag + mp3 + b"TAG" + bytes(125)), ("untagged", without_first_frame(mp3))):
        yield Whole("MP3", name, data, len(samples))
    yield Whole("WAV", "streamed", wav[:4] + b"\xff" * 4 + wav[8:40] + b"\xff" * 4 + wav[44:], len(samples), announced=False)
    yield Whole("WAV", "zero sizes", wav[:4] + bytes(4) + wav[8:40] + bytes(4) + wav[44:], len(samples), announced=False)
    yield Whole("WAV", "with tags", wav[:12] + b"LIST\x04\0\0\0INFO" + wav[12:] + b"id3 \x0a\0\0\0" + tag[:10], len(samples))
    yield Whole("FLAC", "streamed", flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:], len(samples))


def without_first_frame(mp3: bytes) -> bytes:
    """Return an MP3 file without the frame that gives the number of frames."""
    return mp3[mp3.find(mp3[:2], 4) :]


def _cut(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data[: draw.randrange(1, len(data))]


def _cut_little(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data[: -draw.randrange(1, min(64, len(data)))]


def _flip(data: bytes, draw: random.Random, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 9)):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _flip_header(data: bytes, draw: random.Random, other: bytes) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(min(128, len(data)))] = draw.randrange(256)
    return bytes(changed)


def _insert(data: bytes, draw: random.Random, other: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.randrange(1, 200)) + data[at:]


def _delete(data: bytes, draw: random.Random, other: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.randrange(1, 200) :]


def _size(value: bytes) -> Callable[[bytes, random.Random, bytes], bytes]:
    def change(data: bytes, draw: random.Random, other: bytes) -> bytes:
        at = draw.choice(_size_fields(data))
        return data[:at] + value + data[at + 4 :]

    return change


def _other_size(data: bytes, draw: random.Random, other: bytes) -> bytes:
    at, order = draw.choice(_size_fields(data)), draw.choice("<>")
    return data[:at] + struct.pack(order + "I", draw.randrange(2 * len(data))) + data[at + 4 :]


def _size_fields(data: bytes) -> list[int]:
    """Return the places in the header of numbers that are about as large as the file or its audio."""
    near = range(len(data) // 3, len(data) + 1)
    head = data[:4200]
    found = [at for at in range(4, len(head) - 4) if any(struct.unpack_from(order + "I", head, at)[0] in near for order in "<>")]
    return found or [min(4, len(data) - 4)]


def _join(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data * draw.randrange(2, 4)


def _join_other(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data + other


def _swap(data: bytes, draw: random.Random, other: bytes) -> bytes:
    a, b, c, d = sorted(draw.randrange(len(data)) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _blank(data: bytes, draw: random.Random, other: bytes) -> bytes:
    at = draw.randrange(len(data))
    count = min(draw.randrange(1, 400), len(data) - at)
    return data[:at] + bytes(count) + data[at + count :]


def _append(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data + draw.choice((bytes(draw.randrange(1, 500)), draw.randbytes(draw.randrange(1, 500)), b"TAG" + bytes(125)))


MUTATIONS: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {
    "cut": _cut,
    "cut a little": _cut_little,
    "flip": _flip,
    "flip in the header": _flip_header,
    "insert": _insert,
    "delete": _delete,
    "size 0": _size(bytes(4)),
    "size 2^32-1": _size(b"\xff" * 4),
    "size 2^31-1": _size(b"\x7f\xff\xff\xff"),
    "another size": _other_size,
    "join": _join,
    "join another": _join_other,
    "swap": _swap,
    "blank": _blank,
    "append": _append,
}
CUTS = ("cut", "cut a little")


def mutants(count: int, seed: int, *, only: str | None = None) -> Iterator[Mutant]:
    """Yield `count` damaged files: containers and kinds of damage take turns, the rest is drawn from `seed`."""
    draw = random.Random(seed)
    by_container: dict[str, list[Whole]] = {}
    for file in whole_files():
        if only in (None, file.container):
            by_container.setdefault(file.container, []).append(file)
    containers, kinds = sorted(by_container), list(MUTATIONS)
    for index in range(count):
        whole = draw.choice(by_container[containers[index % len(containers)]])
        other = draw.choice(by_container[draw.choice(containers)])
        kind = kinds[index // len(containers) % len(kinds)]
        yield Mutant(whole, kind, MUTATIONS[kind](whole.data, draw, other.data))


def judge(mutant: Mutant, path: Path, *, memory: bool = False) -> tuple[str, str]:
    """Write a damaged file to `path`, read it, and return the outcome and the reason.

    The outcome is "whole", "compared" if another decoder agrees, "refused" or "wrong".
    """
    path.write_bytes(mutant.data)
    if memory:
        tracemalloc.start()
    try:
        waveform, _ = read_audio(path)
    except UnreadableAudioError as error:
        return ("refused", str(error)) if "\n" not in str(error) else ("wrong", "the error has several lines")
    except Exception as error:  # any other error is a finding
        return "wrong", f"{type(error).__name__}: {error}"
    finally:
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
        if memory:
            tracemalloc.stop()
    if peak > 2 * waveform.nbytes + SLACK:
        return "wrong", f"peak of {peak} bytes for {waveform.nbytes} decoded"
    if audio_info(path)[0] != waveform.shape[1]:
        return "wrong", f"audio_info says {audio_info(path)[0]} samples, {waveform.shape[1]} were read"
    tolerance = TOLERANCE.get(mutant.whole.container, 0)
    found = independent_length(path, mutant.whole.container)
    if found is not None and found > waveform.shape[1] + tolerance:
        return "wrong", f"read {waveform.shape[1]} samples, another decoder {found}"
    if mutant.whole.announced and mutant.kind in CUTS and waveform.shape[1] < mutant.whole.num_samples - tolerance:
        return "wrong", f"read {waveform.shape[1]} of {mutant.whole.num_samples} samples after a cut"
    return ("whole" if found is None else "compared"), ""


def independent_length(path: Path, container: str) -> int | None:
    """Return the samples per channel that the installed decoders find, the most if they differ, or None."""
    found = [length for length in (_miniaudio_length(path, container), _sox_length(path, container)) if length is not None]
    return max(found, default=None)


def _miniaudio_length(path: Path, container: str) -> int | None:
    try:
        import miniaudio
    except ImportError:
        return None
    if container not in ("WAV", "WAVEX", "FLAC", "MP3", "OGG"):
        return None
    try:
        decoded = miniaudio.decode(path.read_bytes(), sample_rate=miniaudio.get_file_info(str(path)).sample_rate, nchannels=1)
    except (miniaudio.DecodeError, miniaudio.MiniaudioError):
        return None
    return len(decoded.samples)


def _sox_length(path: Path, container: str) -> int | None:
    sox = shutil.which("sox")
    if sox is None or container not in SOX_TYPES:
        return None
    kind = {"WAVEX": "wav", "RF64": "wav", "NIST": "nist", "SVX": "8svx"}.get(container, container.lower())
    done = subprocess.run([sox, "-V1", "-t", kind, str(path), "-t", "f32", "-c", "1", "-"], capture_output=True, timeout=60)
    return None if done.returncode else len(done.stdout) // 4


def run_command_line(files: list[Path], out: Path) -> Counter[str]:
    """Send files through `soundomni reconstruct --model nano`; count those made, and those that errors name."""
    counts: Counter[str] = Counter()
    command = [sys.executable, "-m", "soundomni.cli.main", "reconstruct", *map(str, files), "--model", "nano", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    made = {Path(row["file"]) for row in json.loads(done.stdout)["files"]} if done.stdout.strip() else set()
    for file in files:
        named = str(file) in done.stderr
        counts["made" if file in made and not named else "named" if named and file not in made else "neither made nor named"] += 1
    counts["tracebacks"] += "Traceback" in done.stderr
    return counts


def main() -> int:
    """Print the counts by container and every wrong file; return 1 if there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="number of damaged files (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: 0)")
    parser.add_argument("--only", metavar="CONTAINER", help="only damage files of this container, such as WAV")
    parser.add_argument("--command-line", action="store_true", help="read the files with `soundomni reconstruct` instead")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the wrong files in this directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.command_line:
            files = []
            for index, mutant in enumerate(mutants(args.count, args.seed, only=args.only)):
                files.append(Path(folder) / f"{index:04d}.{mutant.whole.container.lower()}")
                files[-1].write_bytes(mutant.data)
            print(dict(run_command_line(files, Path(folder) / "out")))
            return 0
        counts: Counter[tuple[str, str]] = Counter()
        for index, mutant in enumerate(mutants(args.count, args.seed, only=args.only)):
            path = Path(folder) / f"a.{mutant.whole.container.lower()}"
            outcome, why = judge(mutant, path, memory=True)
            counts[mutant.whole.container, outcome] += 1
            if outcome == "wrong":
                print(f"{index} {mutant.whole.container} {mutant.whole.subtype} {mutant.kind}: {why}")
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, args.keep / f"{index}-{path.name}")
    outcomes = ("whole", "compared", "refused", "wrong")
    print(f"{'':8}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for container in sorted({name for name, _ in counts}):
        print(f"{container:8}" + "".join(f"{counts[container, outcome]:10}" for outcome in outcomes))
    totals = [sum(number for (_, kind), number in counts.items() if kind == outcome) for outcome in outcomes]
    print(f"{'all':8}" + "".join(f"{total:10}" for total in totals))
    return 1 if totals[3] else 0


if __name__ == "__main__":
    raise SystemExit(main())
