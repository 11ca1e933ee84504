"""Contents that a container's bytes announce, and views of a file with a corrected header.

Decoders such as libsndfile trust or silently correct a header's lengths. The modules of this package read the header
themselves, so that a file is either decoded completely or refused with a reason.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

_BLOCK = 1 << 16
_MOST_TAGS = 100

ByteOrder = Literal["big", "little"]

Pieces = tuple[bytes | tuple[int, int], ...]
"""A file put together from bytes and ranges (start, end) of another file."""


class ContainerError(Exception):
    """The bytes contradict themselves, or do not hold everything that they announce; the message is the reason."""


@dataclass(frozen=True)
class Contents:
    """Findings about a file.

    Args:
        kind: the container's name.
        frames: samples per channel that it announces and holds, if its header states them exactly.
        pieces: what to give a decoder instead of the file, if it would not read the whole file.
        estimated: whether a decoder only estimates the length, so that `frames` is right instead.
        tail: samples per channel at the end to which a decoder cannot seek exactly.
    """

    kind: str
    frames: int | None = None
    pieces: Pieces | None = None
    estimated: bool = False
    tail: int = 0


class Source:
    """An open file with its size, for the readers of containers."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, io.SEEK_END)
        self._file = file

    def read(self, position: int, count: int) -> bytes:
        """Return `count` bytes from `position`, or as many as there are."""
        self._file.seek(position)
        return self._file.read(count)

    def need(self, position: int, count: int, what: str) -> bytes:
        """Return exactly `count` bytes.

        Raise ContainerError, which says that `what` is cut, if the file ends earlier.
        """
        data = self.read(position, count)
        if len(data) < count:
            raise ContainerError(f"it is truncated in its {what}")
        return data

    def number(self, position: int, count: int, order: ByteOrder, what: str) -> int:
        """Return an unsigned integer of `count` bytes. Raise ContainerError like `need`."""
        return int.from_bytes(self.need(position, count, what), order)

    def skip_zeros(self, start: int) -> int:
        """Return where the padding at `start` ends, or `start` if it is longer than a block."""
        block = self.read(start, _BLOCK)
        return start + len(block) - len(block.lstrip(b"\0")) if block.count(0) < len(block) else start

    def is_zero(self, start: int) -> bool:
        """Return whether all bytes from `start` on are zero."""
        for position in range(start, self.size, _BLOCK):
            block = self.read(position, _BLOCK)
            if block.count(0) < len(block):
                return False
        return True


class View(io.RawIOBase):
    """The pieces of a file, one after another, as a file."""

    def __init__(self, file: BinaryIO, pieces: Pieces) -> None:
        self._file = file
        self._pieces: list[tuple[int, int, bytes | int]] = []
        end = 0
        for piece in pieces:
            size = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self._pieces.append((end, end + size, piece if isinstance(piece, bytes) else piece[0]))
            end += size
        self._size, self._position = end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        room, filled = memoryview(buffer).cast("B"), 0
        for start, end, content in self._pieces:
            count = min(end - self._position, len(room) - filled)
            if self._position < start or count <= 0:
                continue
            inside = self._position - start
            if isinstance(content, bytes):
                data = content[inside : inside + count]
            else:
                self._file.seek(content + inside)
                data = self._file.read(count)
            room[filled : filled + len(data)] = data
            filled, self._position = filled + len(data), self._position + len(data)
        return filled


def is_streamed(size: int, bits: int = 32) -> bool:
    """Return whether a size looks like one left by a writer to a pipe: the largest that fits, a bit less, or SoX's
    0x7F000000."""
    most = 1 << bits
    return size >= most - 0x10000 or most // 2 - 0x10000 <= size <= most // 2 or 0x7F000000 <= size <= 0x7F000100


def skip_id3(source: Source, position: int) -> int:
    """Return where the ID3v2 tags at `position` end."""
    for _ in range(_MOST_TAGS):
        head = source.read(position, 10)
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    return position


def before_tags(source: Source, start: int) -> int:
    """Return where the ID3v1, APE and Lyrics3 tags at the end of a file begin, or its end if it has none; never before
    `start`."""
    end = source.size
    for _ in range(_MOST_TAGS):
        if end - start < 128:
            break
        tail = source.read(end - 128, 128)
        if tail.startswith(b"TAG"):
            size = 128
        elif tail[96:104] == b"APETAGEX":
            size = int.from_bytes(tail[108:112], "little") + (32 if tail[119] & 0x80 else 0)
        elif tail.endswith((b"LYRICS200", b"LYRICSEND")) and tail[113:119].isdigit():
            size = int(tail[113:119]) + 15
        else:
            break
        if not 0 < size <= end - start:
            break
        end -= size
    return end


def check_rest(source: Source, end: int, *, magic: tuple[bytes, ...], junk: int = 16) -> None:
    """Check what follows the audio that a header announces: tags, zeros and up to `junk` other bytes are accepted.

    Raise ContainerError for another file, which begins with one of `magic`, and for anything else, which may well be
    audio.
    """
    if source.read(end, 16).startswith(magic):
        raise ContainerError(f"another file follows it at byte {end}. Split the file")
    rest = before_tags(source, end) - skip_id3(source, end)
    if rest > junk and not source.is_zero(end):
        raise ContainerError(f"it is damaged; {rest} bytes follow the audio that its header announces, which ends at byte {end}")
