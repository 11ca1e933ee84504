"""Decoding with libsndfile. Containers are examined first, so a file is decoded completely or not at all.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from soundomni.core.errors import UnreadableAudioError
from soundomni.data.containers import ContainerError, Contents, View, examine
from soundomni.data.containers.foreign import HEAD, foreign_kind
from soundomni.data.containers.known_files import examine_once

Look = Literal["ends", "all", "once"]
"""How to check that a file is complete: "ends" looks at its beginning and end, "all" also at the rest if they do not
prove it, and "once" at the rest only if this process has not done so since the file last changed."""

LOWEST_RATE = 100
HIGHEST_RATE = 1_000_000
"""Rates outside these come from damaged headers; a short file would become a long clip when it is resampled."""

_MOST_SAMPLES = 2**40  # libsndfile announces 2**63 - 1 samples when it cannot tell
_BLOCK = 1 << 16  # values that are decoded at a time
_BUFFER = 1 << 16  # bytes
_UNKNOWN_FORMAT = 1  # SF_ERR_UNRECOGNISED_FORMAT
_SELF_CHECKED = ("HTK",)  # libsndfile only accepts such a file if it is as long as its header says


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

    def skip(self, count: int, *, exact: bool) -> None:
        """Skip samples: by seeking if that is `exact`, otherwise by decoding them."""
        if exact and count:
            self.seek(count)
            return
        for _ in self.blocks(count):
            pass


@dataclass(frozen=True)
class Opened:
    """An audio file that is ready to be decoded.

    Args:
        decoder: the decoder, at the first sample.
        num_samples: S.
        rate: sample rate in Hz.
        channels: C.
        exact: whether the decoder gives the same samples after seeking.
    """

    decoder: Decoder
    num_samples: int
    rate: int
    channels: int
    exact: bool


@contextlib.contextmanager
def opened(path: str | Path, *, look: Look) -> Iterator[Opened]:
    """Open a file for decoding, and close it afterwards.

    Args:
        path: the file.
        look: how to check that the file is complete.

    Raise UnreadableAudioError, which names the path and the reason, also for errors while the file is open.
    """
    if not Path(path).is_file():  # a pipe, for instance, cannot be read twice, and its reader would wait forever
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, FileNotFoundError())}")
    try:
        with Path(path).open("rb", buffering=_BUFFER) as file, contextlib.ExitStack() as stack:
            contents = examine_once(file) if look == "once" else examine(file, thorough=look == "all")
            pieces = contents.pieces if contents is not None and contents.pieces is not None else ((0, file.seek(0, os.SEEK_END)),)
            decoder = stack.enter_context(Decoder(View(file, pieces)))  # libsndfile would trust the suffix of a name
            rate = int(decoder.samplerate)
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise ContainerError(f"its rate is {rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE:,} Hz")
            exact = contents is not None and contents.frames is not None and not contents.estimated
            yield Opened(decoder, _length(decoder, contents), rate, int(decoder.channels), exact)
    except (ContainerError, soundfile.SoundFileError, OSError, MemoryError, OverflowError, ValueError, struct.error) as error:
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, error)}") from error


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


def _reason(path: str | Path, error: Exception) -> str:
    if Path(path).is_dir():
        return "it is a folder"
    if not Path(path).is_file():
        return "it is not a regular file" if Path(path).exists() else "no such file"
    if Path(path).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, soundfile.LibsndfileError):
        if error.code == _UNKNOWN_FORMAT:
            with Path(path).open("rb") as file:
                return foreign_kind(file.read(HEAD))
        return _shortened(error.error_string)
    return _shortened(str(error)) or type(error).__name__


def _shortened(text: str) -> str:
    """Return the first line of a message, without the prefixes that libsndfile adds."""
    return next(iter(text.strip().splitlines()), "").removeprefix("Error : ").removeprefix("Internal error : ").rstrip(".")
