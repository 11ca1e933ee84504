"""Ogg (RFC 3533): whether its pages are all there and belong to one stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from soundomni.data.containers.contents import ContainerError, Contents, Source, check_rest

MAGIC = b"OggS"
_HEADER = 27
_FIRST, _LAST = 2, 4  # bits in a page's flags
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def read_ogg(source: Source, start: int, thorough: bool) -> Contents:
    """Walk the pages; with `thorough`, check their checksums.

    Raise ContainerError if a page is missing, cut, damaged or foreign.
    """
    stream, number, ended, position = None, 0, False, start
    before = last = 0  # samples up to the ends of the last two pages
    for position, head, sizes in _pages(source, start):
        end = position + len(head) + sum(sizes)
        if end > source.size:
            raise ContainerError(f"it is truncated; its last page lacks {end - source.size} bytes")
        serial, sequence = head[14:18], int.from_bytes(head[18:22], "little")
        if stream is not None and (ended or head[5] & _FIRST or serial != stream):
            raise ContainerError(f"another stream begins at byte {position}, but only one can be read. Split the file")
        if stream is not None and sequence != number + 1:
            raise ContainerError(f"it is damaged; pages are missing before byte {position}")
        if thorough and _checksum(source.read(position, end - position)) != head[22:26]:
            raise ContainerError(f"it is damaged; the page at byte {position} does not match its checksum")
        stream, number, ended, position = serial, sequence, bool(head[5] & _LAST), end
        granule = int.from_bytes(head[6:14], "little", signed=True)
        if granule >= 0:  # otherwise, no packet ends on the page
            before, last = last, granule
    if not ended:
        raise ContainerError(f"it is truncated; the last page of its stream is missing or damaged after byte {position}")
    check_rest(source, position, magic=(MAGIC,))
    # The count of the last page says where the audio is cut, so a decoder that counts back from it is off by some samples.
    return Contents("OGG", tail=last - before + 1)


def _pages(source: Source, start: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (position, header with the sizes of its segments, those sizes) of each page, until something that is not a
    page."""
    position = start
    while True:
        head = source.read(position, _HEADER + 255)
        if len(head) < _HEADER or not head.startswith(MAGIC):
            return
        sizes = head[_HEADER : _HEADER + head[26]]
        if len(sizes) < head[26]:
            raise ContainerError(f"it is truncated in the page at byte {position}")
        yield position, head[: _HEADER + head[26]], sizes
        position += _HEADER + head[26] + sum(sizes)


def _checksum(page: bytes) -> bytes:
    """Return Ogg's CRC-32 of a page, with its own checksum counted as zero: zlib's with the bits in reverse order."""
    reflected = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reflected.to_bytes(4, "big").translate(_REVERSED)
