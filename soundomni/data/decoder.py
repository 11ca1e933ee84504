"""Decoding with libsndfile, or PyAV for AAC. Containers are checked first, so a file is decoded completely or not at
all.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

import numpy as np
import soundfile

from soundomni.core.errors import UnreadableAudioError
from soundomni.core.limits import HIGHEST_RATE
from soundomni.data.aac import AacReader, format_of, has_pyav
from soundomni.data.containers import ContainerError, Contents, View, examine
from soundomni.data.containers.foreign import HEAD, foreign_kind
from soundomni.data.containers.known_files import examine_once

Look = Literal["ends", "all", "once"]
"""How to check that a file is complete: "ends" looks at its beginning and end, "all" also at the rest if they do not
prove it, and "once" at the rest only if this process has not done so since the file last changed."""

LOWEST_RATE = 100
"""Rates below this, and above HIGHEST_RATE, come from damaged headers; a short file would become a long clip when it is
resampled."""

_MOST_SAMPLES = 2**40  # libsndfile announces 2**63 - 1 samples when it cannot tell
_BLOCK = 1 << 16  # values that are decoded at a time
_BUFFER = 1 << 16  # bytes
_UNKNOWN_FORMAT = 1  # SF_ERR_UNRECOGNISED_FORMAT
_LEAD_INS = {"VORBIS": 1 << 14}  # two of the longest blocks, of which each depends on the one before it; MP3 and Opus remember more
_SELF_CHECKED = ("HTK",)  # libsndfile only accepts such a file if it is as long as its header says


@dataclass(frozen=True)
class Embedded:
    """An audio file that is not a file of its own: it lies within another file, or in memory.

    Args:
        name: what errors call it.
        source: the file that it lies in, or its bytes.
        first, end: the range of bytes `[first, end)` in that file; not used for bytes.
    """

    name: str
    source: Path | bytes
    first: int = 0
    end: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.end - self.first


Place = str | Path | Embedded
"""Where an audio file is."""


class Decoder(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is decoded from its beginning to its end.

    It claims not to be seekable: soundfile would otherwise seek after every block, which some decoders of libsndfile
        cannot
    do.
    """

    def seekable(self) -> bool:
        return False

    def blocks(self, count: int) -> Iterator[np.ndarray]:
        """Yield float32 `[some, C]` until `count` samples or the end. Each block reuses the memory of the previous one.

        Raise ContainerError if libsndfile cannot continue.
        """
        buffer = np.empty((max(1, _BLOCK // self.channels), self.channels), np.float32)
        while count > 0:
            try:
                block = self.read(out=buffer[: min(count, len(buffer))])
            except soundfile.LibsndfileError as error:
                raise ContainerError(f"it is truncated or damaged; {_shortened(error.error_string)}") from error
            if len(block) == 0:
                return
            count -= len(block)
            yield block

    def skip(self, count: int, *, seek: int) -> None:
        """Skip samples: the first `seek` of them by seeking, and the others by decoding them."""
        if seek:
            self.seek(seek)
        for _ in self.blocks(count - seek):
            pass


class SampleReader(Protocol):
    """A decoder that reads a file from its beginning to its end."""

    def skip(self, count: int, *, seek: int) -> None: ...
    def blocks(self, count: int) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Opened:
    """An audio file that is ready to be decoded.

    Args:
        decoder: the decoder, at the first sample.
        num_samples: S.
        rate: sample rate in Hz.
        channels: C.
        lead_in: number of samples after seeking that may differ from what the decoder gives without; None if all may.
        tail: number of samples at the end to which it may not seek.
    """

    decoder: SampleReader
    num_samples: int
    rate: int
    channels: int
    lead_in: int | None = None
    tail: int = 0

    def seekable(self, first: int) -> int:
        """Return the sample to seek to in order to decode sample `first` and those behind it as they are; 0 if there is none."""
        return 0 if self.lead_in is None else max(0, min(first - self.lead_in, self.num_samples - self.tail))


@contextlib.contextmanager
def opened(path: Place, *, look: Look) -> Iterator[Opened]:
    """Open a file for decoding, and close it afterwards.

    Args:
        path: the file, or one that lies within another file or in memory.
        look: how to check that the file is complete.

    Raise UnreadableAudioError, which names the path and the reason, also for errors while the file is open.
    """
    outer = path.source if isinstance(path, Embedded) else path
    if not isinstance(outer, bytes) and not Path(outer).is_file():  # a pipe cannot be read twice, and its reader would wait forever
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, FileNotFoundError())}")
    try:
        with _bytes_of(outer) as file, contextlib.ExitStack() as stack:
            whole = (path.first, path.end) if isinstance(path, Embedded) and not isinstance(outer, bytes) else None
            once = look == "once" and not isinstance(outer, bytes)
            audio = file if whole is None else cast(BinaryIO, View(file, (whole,)))
            kind = format_of(audio)
            if kind is not None and not has_pyav():
                raise ContainerError(foreign_kind(_head(path)))
            if kind is not None:
                reader = stack.enter_context(AacReader(audio, format=kind))
                _check_rate(reader.rate)
                yield Opened(reader, reader.num_samples, reader.rate, reader.channels)
                return
            contents = examine_once(file, whole) if once else examine(audio, thorough=look != "ends")
            pieces = contents.pieces if contents is not None and contents.pieces is not None else ((0, audio.seek(0, os.SEEK_END)),)
            decoder = stack.enter_context(Decoder(View(audio, pieces)))  # libsndfile would trust the suffix of a name
            rate = int(decoder.samplerate)
            _check_rate(rate)
            counted = contents is not None and contents.frames is not None and not contents.estimated
            lead_in = 0 if counted else _LEAD_INS.get(str(decoder.subtype))
            tail = contents.tail if contents is not None else 0
            yield Opened(decoder, _length(decoder, contents), rate, int(decoder.channels), lead_in, tail)
    except (ContainerError, soundfile.SoundFileError, OSError, MemoryError, OverflowError, ValueError, struct.error) as error:
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, error)}") from error


def _check_rate(rate: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ContainerError(f"its sample rate is {rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE:,} Hz")


def _bytes_of(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb", buffering=_BUFFER)


def size_of(path: Place) -> int:
    """Return the number of bytes of an audio file."""
    return path.size if isinstance(path, Embedded) else Path(path).stat().st_size


def _length(decoder: Decoder, contents: Contents | None) -> int:
    """Return the samples per channel. Raise ContainerError if container and decoder disagree, or do not know."""
    frames, kind = int(decoder.frames), str(decoder.format)
    if contents is None and kind not in _SELF_CHECKED:
        raise ContainerError(f"it is a file of type {kind}, and a truncated file of this type looks complete. Convert it to WAV or FLAC")
    if contents is not None and contents.frames is not None:
        announced = contents.frames
        if contents.estimated and frames > announced:
            frames = announced
        if frames != announced:
            cut = "it is truncated" if frames < announced else "it is damaged"
            raise ContainerError(f"{cut}; its header announces {announced} samples, but {frames} were found")
    if frames < 1:
        raise ContainerError("it has no samples")
    if frames > _MOST_SAMPLES:
        raise ContainerError("its header does not say how long it is. Save it again as WAV or FLAC")
    return frames


def _reason(path: Place, error: Exception) -> str:
    file = path.source if isinstance(path, Embedded) else path
    if not isinstance(file, bytes):
        if Path(file).is_dir():
            return "it is a folder"
        if not Path(file).is_file():
            return "it is not a regular file" if Path(file).exists() else "no such file"
    if size_of(path) == 0:
        return "the file is empty"
    if isinstance(error, soundfile.LibsndfileError):
        if error.code == _UNKNOWN_FORMAT:
            return foreign_kind(_head(path))
        return _shortened(error.error_string)
    return _shortened(str(error)) or type(error).__name__


def _head(path: Place) -> bytes:
    with _bytes_of(path.source if isinstance(path, Embedded) else path) as file:
        if isinstance(path, Embedded) and not isinstance(path.source, bytes):
            file.seek(path.first)
        return file.read(min(HEAD, size_of(path)))


def _shortened(text: str) -> str:
    """Return the first line of a message, without the prefixes that libsndfile adds."""
    return next(iter(text.strip().splitlines()), "").removeprefix("Error : ").removeprefix("Internal error : ").rstrip(".")
