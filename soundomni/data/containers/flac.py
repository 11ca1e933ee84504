"""FLAC: how many samples STREAMINFO announces, and with how many the last frame ends (RFC 9639)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from soundomni.data.containers.contents import ContainerError, Contents, Source, before_tags

MAGIC = b"fLaC"
_STREAMINFO = b"fLaC\x00\x00\x00\x22"
_LARGEST_TAIL = 1 << 20
_BLOCK = 1 << 20
_CANDIDATES = 16  # how many of the last possible frame headers are tried


def read_flac(source: Source, start: int, thorough: bool) -> Contents:
    """Read STREAMINFO and the last frame; with `thorough`, look for another file after this one.

    Raise ContainerError.
    """
    info = source.need(start + 8, 34, "header")
    largest_block, largest_frame = int.from_bytes(info[2:4], "big"), int.from_bytes(info[7:10], "big")
    packed = int.from_bytes(info[10:18], "big")
    total = packed & (1 << 36) - 1
    audio = _after_metadata(source, start + 4)
    if audio >= source.size:
        raise ContainerError("it is truncated before its audio" if total else "it holds no samples")
    if thorough:
        _refuse_second(source, audio)
    stop = before_tags(source, audio)
    tail_start = max(audio, stop - min(_LARGEST_TAIL, 2 * largest_frame + 4096 if largest_frame else _LARGEST_TAIL))
    tail = source.read(tail_start, stop - tail_start)
    variable = source.read(audio, 2)[1:] == b"\xf9"
    ends = _frames_from_the_end(tail, variable, largest_block)
    if total:
        found = [end for _, end in ends]
        if found and total not in found:
            cut = "it is truncated" if max(found) < total else "it is damaged"
            raise ContainerError(f"{cut}; its frames end with sample {max(found)} and it announces {total}")
        return Contents("FLAC", total)
    for position, end in islice(ends, _CANDIDATES):
        if _crc16(tail[position:]) == 0:
            exact = struct.pack(">Q", packed | end)
            return Contents("FLAC", end, ((start, start + 18), exact, (start + 26, stop)))
    raise ContainerError("it is truncated or damaged; its header does not say how long it is, and its last frame is not complete")


def _after_metadata(source: Source, position: int) -> int:
    last = False
    while not last:
        head = source.need(position, 4, "header")
        last = head[0] >= 128
        position += 4 + int.from_bytes(head[1:], "big")
    return position


def _refuse_second(source: Source, start: int) -> None:
    overlap = len(_STREAMINFO) - 1
    for position in range(start, source.size, _BLOCK):
        found = source.read(position, _BLOCK + overlap).find(_STREAMINFO)
        if found >= 0:
            raise ContainerError(f"another FLAC file follows it at byte {position + found}. Split the file")


def _frames_from_the_end(tail: bytes, variable: bool, block: int) -> Iterator[tuple[int, int]]:
    """Yield (position in `tail`, number of the sample after the frame) of possible frames, the last one first."""
    sync = b"\xff\xf9" if variable else b"\xff\xf8"
    position = tail.rfind(sync)
    while position >= 0:
        end = _frame_end(tail[position : position + 16], variable, block)
        if end is not None:
            yield position, end
        position = tail.rfind(sync, 0, position + 1) if position else -1


def _frame_end(head: bytes, variable: bool, block: int) -> int | None:
    """Return the number of the sample after the frame with this header, or None if it is not a header."""
    if len(head) < 6:
        return None
    size_code, rate_code, first = head[2] >> 4, head[2] & 15, head[4]
    ones = 8 - (first ^ 0xFF).bit_length()  # the number of leading ones is the number's length in bytes, as in UTF-8
    more = ones - 1 if ones else 0
    after = 5 + more + {6: 1, 7: 2}.get(size_code, 0) + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if ones in (1, 8) or size_code == 0 or rate_code == 15 or len(head) <= after or _crc8(head[: after + 1]) != 0:
        return None
    number = first if more == 0 else first & 0x3F >> more
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 63
    if size_code in (6, 7):
        size = int.from_bytes(head[5 + more : 5 + more + size_code - 5], "big") + 1
    else:
        size = 192 if size_code == 1 else 576 << (size_code - 2) if size_code < 6 else 256 << (size_code - 8)
    return (number if variable else number * block) + size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
    return crc


def _crc16_of(byte: int) -> int:
    crc = byte << 8
    for _ in range(8):
        crc = (crc << 1 ^ 0x8005) & 0xFFFF if crc & 0x8000 else crc << 1
    return crc


_CRC16 = tuple(_crc16_of(byte) for byte in range(256))
