"""Decoding of MP4 files (M4A) and AAC streams with PyAV, which the optional extra `m4a` installs.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from soundomni.data.containers import ContainerError

AAC_SUFFIXES = (".aac", ".m4a", ".m4b", ".mp4")
"""Suffixes of the files that count as audio if PyAV is installed."""

NEEDS_PYAV = "pip install soundomni[m4a]"

_FORMATS = ((rb".{4}ftyp", "mov"), (rb"\xff[\xf0\xf1\xf8\xf9]", "aac"))
"""First bytes, and the only demuxer that may read such a file: others could open more files."""
_HEAD = 8
_ENCRYPTED_TAGS = ("drms", "enca")  # codec tags of streams that stores sell, and of Common Encryption
_ENCRYPTED = "its audio is encrypted, or has a codec that PyAV cannot decode"
_PADDING = 8192  # most samples that encoders add at both ends; if the container announces them, the decoder drops them


def has_pyav() -> bool:
    """Return whether PyAV is installed, without importing it."""
    return importlib.util.find_spec("av") is not None


def format_of(file: BinaryIO) -> str | None:
    """Return the demuxer for a file, or None if its first bytes are of another kind; the file is left at its
    beginning."""
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    return next((name for pattern, name in _FORMATS if re.match(pattern, head, re.DOTALL)), None)


class AacReader:
    """A file that is decoded from its beginning to its end.

    The samples that the encoder added at the beginning are dropped, and those that it added at the end if the container
    announces a length.

    Args:
        file: the file; it must stay open, and nothing else may read from it.
        format: what `format_of` returned.

    Raise ContainerError if the file has no audio, is truncated or is damaged.
    """

    def __init__(self, file: BinaryIO, *, format: str) -> None:
        with _errors(), contextlib.ExitStack() as stack:
            container, stream = _opened(file, format)
            stack.callback(container.close)
            self._frames: Iterator[Any] = container.decode(stream)
            self._first = next(self._frames, None)
            if self._first is None:
                raise ContainerError("it has no audio")
            self.rate, self.channels = int(self._first.sample_rate), int(self._first.layout.nb_channels)
            seconds = stream.duration * stream.time_base if format == "mov" and stream.duration and stream.time_base else None
            if seconds is None:  # the length of an AAC stream is only known at its end
                self.num_samples = int(self._first.samples) + sum(int(frame.samples) for frame in self._frames)
                container.close()
                container, stream = _opened(file, format)
                stack.callback(container.close)
                self._frames, self._first = container.decode(stream), None
            else:
                self.num_samples = round(seconds * self.rate)
            self._closing = stack.pop_all()
        self._left, self._rest = self.num_samples, np.zeros((self.channels, 0), np.float32)

    def __enter__(self) -> AacReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    def skip(self, count: int, *, seek: int) -> None:
        """Decode and drop samples. It never seeks, because a frame depends on earlier frames."""
        for _ in self.blocks(count):
            pass

    def blocks(self, count: int) -> Iterator[np.ndarray]:
        """Yield float32 `[some, C]` until `count` samples or the end. Raise ContainerError for a damaged file."""
        while count > 0:
            if not self._rest.shape[1]:
                self._rest = self._next()
            used, self._rest = self._rest[:, :count], self._rest[:, count:]
            if not used.shape[1]:
                return
            self._left -= used.shape[1]
            count -= used.shape[1]
            yield used.T

    def _next(self) -> np.ndarray:
        """Return the next samples `[C, S]`, none at the end. Silence replaces announced samples that the decoder
        dropped at the end."""
        with _errors():
            frame, self._first = self._first or next(self._frames, None), None
        if frame is None:
            return np.zeros((self.channels, self._left if 0 < self._left <= _PADDING else 0), np.float32)
        if (int(frame.sample_rate), int(frame.layout.nb_channels)) != (self.rate, self.channels):
            raise ContainerError("its sample rate or number of channels changes partway")
        return _samples(frame)


def _opened(file: BinaryIO, format: str) -> tuple[Any, Any]:
    """Return the container and its first audio stream.

    Raise ContainerError if it has none, cannot be decoded, or has less audio than it announces.
    """
    import av

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    container = av.open(file, mode="r", format=format, metadata_errors="replace")
    try:
        if not container.streams.audio:
            raise ContainerError("it has no audio")
        stream = container.streams.audio[0]
        if stream.codec_context is None or stream.codec_context.codec_tag in _ENCRYPTED_TAGS:
            raise ContainerError(_ENCRYPTED)
        stream.codec_context.thread_count = 1
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if format == "mov" and end > size:
            raise ContainerError(f"it is truncated; its audio should end at byte {end:,}, but it only has {size:,} bytes")
    except BaseException:
        container.close()
        raise
    return container, stream


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn errors of PyAV into ContainerError. Texts such as "Operation not permitted" do not describe a file."""
    import av

    try:
        yield
    except av.error.PatchWelcomeError as error:
        raise ContainerError("it is damaged, or in a form of its codec that PyAV cannot decode") from error
    except av.error.DecoderNotFoundError as error:
        raise ContainerError(_ENCRYPTED) from error
    except av.error.FFmpegError as error:
        raise ContainerError("it is truncated or damaged, so PyAV cannot decode it") from error


def _samples(frame: Any) -> np.ndarray:
    """Return the samples of a frame, float32 `[C, S]` with full scale at 1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, int(frame.layout.nb_channels)).T
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, dtype=np.float32)
    scale, offset = 2.0 ** (8 * values.dtype.itemsize - 1), 128.0 if values.dtype.kind == "u" else 0.0
    scaled: np.ndarray = ((values - offset) / scale).astype(np.float32)
    return scaled
