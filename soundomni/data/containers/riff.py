"""WAV and its relatives: RIFF, RIFX, RF64, BW64 and Sony's Wave64.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0"; EBU Tech 3306 (RF64).
"""

from __future__ import annotations

import struct

from soundomni.data.containers.chunks import Layout, audio_range, walk
from soundomni.data.containers.contents import ByteOrder, ContainerError, Contents, Pieces, Source

MAGIC = (b"RIFF", b"RIFX", b"RF64", b"BW64")
W64_MAGIC = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_W64 = Layout("little", name_bytes=16, size_bytes=8, align=8, size_has_header=True)
_PLAIN = {1, 3, 6, 7}  # PCM, float, A-law and mu-law: samples have a fixed size
_EXTENSIBLE = 0xFFFE
_MOST_BYTES = (1 << 32) - 4096  # size limit of a WAV file, whose sizes have 32 bits


def read_riff(source: Source, start: int) -> Contents:
    """Read the header of a WAV, RF64 or BW64 file. Raise ContainerError."""
    head = source.need(start, 12, "header")
    if head[8:] != b"WAVE":
        raise ContainerError(f"it is a RIFF file of type {head[8:].decode('latin-1')!r}; expected 'WAVE'")
    layout = Layout("big" if head[:4] == b"RIFX" else "little")
    form, size = source.number(start + 4, 4, layout.order, "header"), None
    if head[:4] in (b"RF64", b"BW64"):
        if source.need(start + 12, 4, "header") != b"ds64":
            raise ContainerError("it has no ds64 chunk, which says how long an RF64 file is")
        form, size = (source.number(start + at, 8, "little", "header") for at in (20, 28))
    chunks = walk(source, start + 12, layout, audio=b"data", magic=MAGIC, size_elsewhere=size)
    begin, end = audio_range(source, chunks, layout, audio=b"data", magic=MAGIC, whole=start + 8 + form)
    fmt, fact = (_content(source, chunks.found.get(name)) for name in (b"fmt ", b"fact"))
    if size is not None and source.size >= _MOST_BYTES:
        return Contents("RF64", _frames(layout.order, fmt, end - begin))
    return Contents("WAV", _frames(layout.order, fmt, end - begin), _rebuilt(layout.order, fmt, fact, begin, end))


def read_w64(source: Source, start: int) -> Contents:
    """Read the header of a Wave64 file. Raise ContainerError."""
    audio = b"data" + _W64_TAIL
    chunks = walk(source, start + 40, _W64, audio=audio, magic=(W64_MAGIC,))
    begin, end = audio_range(source, chunks, _W64, audio=audio, magic=(W64_MAGIC,), whole=None)
    fmt, fact = (_content(source, chunks.found.get(name + _W64_TAIL)) for name in (b"fmt ", b"fact"))
    pieces = None if source.size >= _MOST_BYTES else _rebuilt("little", fmt, fact, begin, end)
    return Contents("W64", _frames("little", fmt, end - begin), pieces)


def _content(source: Source, chunk: tuple[int, int] | None) -> bytes:
    return b"" if chunk is None else source.need(chunk[0], min(chunk[1], 4096), "header")


def _frames(order: ByteOrder, fmt: bytes, size: int) -> int | None:
    """Return the samples per channel in `size` bytes, or None if the encoding does not determine them."""
    if len(fmt) < 16:
        raise ContainerError("it has no fmt chunk, which says how it is encoded")
    mark = ">" if order == "big" else "<"
    tag, channels, _, _, block, bits = struct.unpack(mark + "HHIIHH", fmt[:16])
    if tag == _EXTENSIBLE and len(fmt) >= 26:
        tag = struct.unpack(mark + "H", fmt[24:26])[0]
    width = channels * ((bits + 7) // 8)
    return size // width if tag in _PLAIN and width and width == block else None


def _rebuilt(order: ByteOrder, fmt: bytes, fact: bytes, begin: int, end: int) -> Pieces:
    """Return the pieces of a WAV file with this audio, with correct sizes and without anything that a decoder could
    misread."""
    mark = ">" if order == "big" else "<"
    body = b"WAVE"
    for name, content in ((b"fmt ", fmt), (b"fact", fact)):
        if content:
            body += name + struct.pack(mark + "I", len(content)) + content + bytes(len(content) % 2)
    whole = len(body) + 8 + end - begin
    if whole >= _MOST_BYTES:
        raise ContainerError("its header does not say how long it is, and it is longer than 4 GB. Save it again as RF64 or FLAC")
    head = (b"RIFX" if order == "big" else b"RIFF") + struct.pack(mark + "I", whole)
    return (head + body + b"data" + struct.pack(mark + "I", end - begin), (begin, end))
