"""MPEG audio (MP3 and layers I and II): its frames are counted, because a decoder only estimates their number.

Sources: ISO/IEC 11172-3 and 13818-3; for the tag in the first frame, "Xing VBR tag" and the LAME tag specification.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from soundomni.data.containers.contents import ContainerError, Contents, Source, before_tags

_KBITS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)


@dataclass(frozen=True)
class Frame:
    """Header of a frame: its length in bytes, whether it is mono, and the fields that never change within a stream."""

    length: int
    mono: bool
    version: int
    layer: int
    rate: int
    head: bytes

    @property
    def tag_at(self) -> int:
        """Position of a Xing tag in this frame: after the side information."""
        return 4 + ((17 if self.mono else 32) if self.version == 1 else (9 if self.mono else 17))


def parse(head: bytes) -> Frame | None:
    """Return the frame header in 4 bytes, or None if they are not one; a length of 0 means free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, kbits, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or kbits == 15 or rate == 3:
        return None
    family = 1 if version == 3 else 2
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = _KBITS[family, layer][kbits] * 1000
    padding = head[2] >> 1 & 1
    if bits == 0:
        length = 0
    elif layer == 1:
        length = (12 * bits // hertz + padding) * 4
    else:
        length = (72 if layer == 3 and family == 2 else 144) * bits // hertz + padding
    return Frame(length, head[3] >> 6 == 3, family, layer, hertz, head[:4])


def read_mp3(source: Source, start: int, thorough: bool) -> Contents:
    """Count the frames from `start`, where the first one is. Raise ContainerError if they are not all there.

    Without `thorough`, a tag in the first frame is trusted if it announces exactly the number of bytes in the file.
    """
    first = parse(source.need(start, 4, "first frame"))
    if first is None:
        raise ContainerError("it does not begin with a frame of MPEG audio")
    mark, frames, size = _tag(source, start, first)
    if mark in (b"Xing", b"Info") and not thorough and frames and size and _is_end(source, start + size):
        return Contents("MP3", None, None if start + size == source.size else ((start, start + size),))
    begin = start + (first.length if mark else 0)
    count, end = _count(source, begin, first)
    if frames is not None and frames != count and not (frames == count + 1 and size == end - start):
        cut = "it is truncated" if count < frames else "it is damaged, or joined from several files"
        raise ContainerError(f"{cut}; its first frame announces {frames} frames, but it has {count}")
    if first.layer != 3:
        return Contents("MP3", count * (384 if first.layer == 1 else 1152), ((start, end),), estimated=True)
    if frames is None or mark == b"VBRI":
        return Contents("MP3", None, (_new_tag(first, count, end - begin), (begin, end)))
    if frames == count and end == source.size:
        return Contents("MP3")
    return Contents("MP3", None, (_retagged(source, start, first, count, end - start), (begin, end)))


def _tag(source: Source, start: int, first: Frame) -> tuple[bytes, int | None, int | None]:
    """Return the mark of the tag in the first frame (b"" if there is none), and the frames and bytes that it
    announces."""
    data = source.read(start, 64).ljust(64, b"\0")
    if data[36:40] == b"VBRI":
        return b"VBRI", int.from_bytes(data[50:54], "big"), int.from_bytes(data[46:50], "big")
    at = first.tag_at
    if first.layer != 3 or data[at : at + 4] not in (b"Xing", b"Info"):
        return b"", None, None
    flags = int.from_bytes(data[at + 4 : at + 8], "big")
    numbers = iter(struct.unpack(">2I", data[at + 8 : at + 16]))
    frames = next(numbers) if flags & 1 else None
    size = next(numbers) if flags & 2 else None
    return data[at : at + 4], frames, size


def _is_end(source: Source, position: int) -> bool:
    """Return whether only padding or a tag follows."""
    return position <= source.size and (position == before_tags(source, position) or source.is_zero(position))


def _count(source: Source, position: int, first: Frame) -> tuple[int, int]:
    """Return how many frames like `first` follow each other from `position`, and where they end."""
    stop, count = before_tags(source, position), 0
    while position < stop:
        frame = parse(source.read(position, 4))
        if frame is None:
            break
        if (frame.version, frame.layer, frame.rate, frame.mono) != (first.version, first.layer, first.rate, first.mono):
            raise ContainerError(
                f"it is damaged, or joined from several files; the frame at byte {position} has another rate or other channels"
            )
        if frame.length == 0:
            raise ContainerError("its frames have no fixed bit rate (free format), so they cannot be counted")
        if position + frame.length > stop:
            raise ContainerError(f"it is truncated; its last frame lacks {position + frame.length - stop} bytes")
        position, count = position + frame.length, count + 1
    if position < stop and not source.is_zero(position):
        cut = "it is truncated" if stop - position < 4 else "it is damaged, or joined from several files"
        raise ContainerError(f"{cut}; there is no frame of MPEG audio at byte {position}")
    if count == 0:
        raise ContainerError("it is truncated before its audio")
    return count, position


def _retagged(source: Source, start: int, first: Frame, count: int, size: int) -> bytes:
    """Return the first frame with a tag that announces `count` frames and `size` bytes."""
    frame = bytearray(source.need(start, first.length, "first frame"))
    frame[first.tag_at + 4 : first.tag_at + 16] = struct.pack(">3I", frame[first.tag_at + 7] | 3, count, size)
    return bytes(frame)


def _new_tag(first: Frame, count: int, size: int) -> bytes:
    """Return a frame with a tag for the `count` frames of `size` bytes after it, as encoders write it."""
    heads = (bytes((0xFF, first.head[1] | 1, kbits << 4 | first.head[2] & 0x0C, first.head[3])) for kbits in range(1, 15))
    room = first.tag_at + 16
    frame = next(frame for frame in map(parse, heads) if frame is not None and frame.length >= room)
    tag = b"Xing" + struct.pack(">3I", 3, count, frame.length + size)
    return (frame.head + bytes(first.tag_at - 4) + tag).ljust(frame.length, b"\0")
