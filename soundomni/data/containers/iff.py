"""AIFF, AIFF-C and Amiga's 8SVX and 16SV; and Apple's CAF, which also has chunks.

Sources: Apple, "Audio Interchange File Format AIFF-C" (1991); EA, "IFF 8SVX" (1985); Apple, "Core Audio Format
Specification 1.0".
"""

from __future__ import annotations

import struct

from soundomni.data.containers.chunks import Chunks, Layout, audio_range, walk
from soundomni.data.containers.contents import ContainerError, Contents, Pieces, Source

_IFF = Layout("big")
_CAF = Layout("big", size_bytes=8, align=1)
_BYTES = {
    **dict.fromkeys((b"NONE", b"twos", b"sowt"), 0),
    **dict.fromkeys((b"raw ", b"ulaw", b"ULAW", b"alaw", b"ALAW"), 1),
    **dict.fromkeys((b"fl32", b"FL32"), 4),
    **dict.fromkeys((b"fl64", b"FL64"), 8),
}
"""Bytes per sample of AIFF-C's encodings; 0 means that its header gives the number of bits."""


def read_iff(source: Source, start: int) -> Contents:
    """Read the header of an AIFF, AIFF-C, 8SVX or 16SV file. Raise ContainerError."""
    kind = source.need(start, 12, "header")[8:]
    if kind in (b"8SVX", b"16SV"):
        chunks = walk(source, start + 12, _IFF, audio=b"BODY", magic=(b"FORM",))
        begin, end = audio_range(source, chunks, _IFF, audio=b"BODY", magic=(b"FORM",), whole=_whole(source, start))
        if end - begin != chunks.found[b"BODY"][1]:
            raise ContainerError("its header does not say how long it is. Save it again as WAV or FLAC")
        return Contents("SVX", (end - begin) // (1 if kind == b"8SVX" else 2), ((start, end),))  # libsndfile reads on to the file's end
    if kind not in (b"AIFF", b"AIFC"):
        raise ContainerError(f"it is an IFF file of type {kind.decode('latin-1')!r}; expected 'AIFF'")
    chunks = walk(source, start + 12, _IFF, audio=b"SSND", magic=(b"FORM",))
    return _read_aiff(source, start, chunks)


def _whole(source: Source, start: int) -> int:
    return start + 8 + source.number(start + 4, 4, "big", "header")


def _read_aiff(source: Source, start: int, chunks: Chunks) -> Contents:
    if b"COMM" not in chunks.found:
        raise ContainerError("it has no COMM chunk, which says how it is encoded")
    where, size = chunks.found[b"COMM"]
    common = source.need(where, max(18, min(size, 4096)), "header")
    channels, frames, bits = struct.unpack(">HIH", common[:8])
    encoding = common[18:22] if size >= 22 else b"NONE"
    width = channels * (_BYTES[encoding] or (bits + 7) // 8) if encoding in _BYTES else 0
    begin, end = audio_range(source, chunks, _IFF, audio=b"SSND", magic=(b"FORM",), whole=_whole(source, start))
    audio = end - begin - 8 - source.number(begin, 4, "big", "header")
    if audio < 0:
        raise ContainerError("it is damaged; its audio starts after its end")
    if not width:
        return Contents("AIFF", None)
    streamed = end - begin != chunks.found[b"SSND"][1]
    if frames == audio // width and not streamed:
        return Contents("AIFF", frames)
    if streamed or frames == 0:
        if 0 < frames < audio // width:
            raise ContainerError(f"it is damaged; it announces {frames} samples but holds {audio // width}")
        return Contents("AIFF", audio // width, _rebuilt(common, audio // width, source, begin, end))
    cut = "it is truncated" if frames > audio // width else "it is damaged"
    raise ContainerError(f"{cut}; it announces {frames} samples but holds {audio // width}")


def _rebuilt(common: bytes, frames: int, source: Source, begin: int, end: int) -> Pieces:
    """Return the pieces of an AIFF file with the same audio and correct sizes."""
    body = b"AIFC" if len(common) >= 22 else b"AIFF"
    common = common[:2] + struct.pack(">I", frames) + common[6:]
    body += b"COMM" + struct.pack(">I", len(common)) + common + bytes(len(common) % 2)
    whole = len(body) + 8 + end - begin
    if whole >= 1 << 32:
        raise ContainerError("its header does not say how long it is, and it is longer than 4 GB. Save it again as RF64 or FLAC")
    return (b"FORM" + struct.pack(">I", whole) + body + b"SSND" + struct.pack(">I", end - begin), (begin, end))


def read_caf(source: Source, start: int) -> Contents:
    """Read the header of a CAF file. Raise ContainerError."""
    chunks = walk(source, start + 8, _CAF, audio=b"data", magic=(b"caff",))
    begin, end = audio_range(source, chunks, _CAF, audio=b"data", magic=(b"caff",), whole=None)
    if b"desc" not in chunks.found:
        raise ContainerError("it has no desc chunk, which says how it is encoded")
    where, _ = chunks.found[b"desc"]
    encoding, _, packet, frames_per_packet = struct.unpack(">4sIII", source.need(where + 8, 16, "header"))
    plain = encoding in (b"lpcm", b"ulaw", b"alaw") and packet and frames_per_packet == 1
    frames = (end - begin - 4) // packet if plain else None
    announced = chunks.found[b"data"][1]
    if announced == end - begin:
        return Contents("CAF", frames)
    return Contents("CAF", frames, ((start, begin - 8), struct.pack(">Q", end - begin), (begin, end)))
