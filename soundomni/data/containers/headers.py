"""Containers with one header in front of the audio: AU, NIST SPHERE, VOC, and the small ones AVR, WVE and MPC2K."""

from __future__ import annotations

import re
import struct

from soundomni.data.containers.contents import ByteOrder, ContainerError, Contents, Source, check_rest, is_streamed

_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
"""Bytes per sample of AU's encodings with samples of fixed size."""

_SHORT_BY = 16
"""Tolerance for SoX, which writes the size of VOC's sound block a little too small."""

_FIELDS: dict[bytes, tuple[str, int, ByteOrder]] = {
    b"2BIT": ("AVR", 26, "big"),
    b"ALaw": ("WVE", 18, "big"),
    b"\x01\x04": ("MPC2K", 26, "little"),
}
"""Where the number of samples is, in 4 bytes, by how a file begins."""


def read_au(source: Source, start: int) -> Contents:
    """Read the header of a Sun AU file. Raise ContainerError."""
    mark = ">" if source.need(start, 4, "header") == b".snd" else "<"
    offset, size, encoding, _, channels = struct.unpack(mark + "5I", source.need(start + 4, 20, "header"))
    begin = start + offset
    held = source.size - begin
    width = channels * _AU_BYTES.get(encoding, 0)
    pieces = None
    if (size == 0 and held > 0) or (is_streamed(size) and size > held):
        if size != 0xFFFFFFFF:
            pieces = ((start, start + 8), struct.pack(mark + "I", max(0, held)), (start + 12, source.size))
        size = held
    if size > held:
        raise ContainerError(f"it is truncated; it holds {max(0, held)} of the {size} bytes of audio that it announces")
    check_rest(source, begin + size, magic=(b".snd", b"dns."))
    return Contents("AU", size // width if width else None, pieces)


def read_nist(source: Source, start: int) -> Contents:
    """Read the header of a NIST SPHERE file. Raise ContainerError."""
    head = source.read(start, 16)
    length = int(head[8:16]) if head[8:16].strip().isdigit() else 0
    fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)", source.read(start, min(length, 1 << 16)), re.MULTILINE))
    try:
        frames, channels, width = (int(fields[name]) for name in (b"sample_count", b"channel_count", b"sample_n_bytes"))
    except (KeyError, ValueError) as error:
        raise ContainerError("its header does not say how many samples it holds") from error
    wanted, held = frames * channels * width, source.size - start - length
    if wanted > held:
        raise ContainerError(f"it is truncated; it holds {max(0, held)} of the {wanted} bytes of audio that it announces")
    check_rest(source, start + length + wanted, magic=(b"NIST_1A",))
    return Contents("NIST", frames)


def read_voc(source: Source, start: int) -> Contents:
    """Read the blocks of a Creative VOC file. Raise ContainerError."""
    position = start + source.number(start + 20, 2, "little", "header")
    sounds = 0
    while position < source.size:
        kind = source.number(position, 1, "little", "blocks")
        if kind == 0:
            break
        if kind > 9 and sounds and source.size - position <= _SHORT_BY:
            break
        if kind > 9:
            raise ContainerError(f"it is damaged; there is no block at byte {position}")
        sounds += kind in (1, 2, 9)
        end = position + 4 + source.number(position + 1, 3, "little", "blocks")
        if end > source.size:
            raise ContainerError(f"it is truncated; its last block lacks {end - source.size} bytes")
        position = end
    if sounds != 1:
        raise ContainerError(f"it has {sounds} blocks of sound, but only one can be read. Save it again as WAV or FLAC")
    check_rest(source, position + 1, magic=(b"Creative",), junk=_SHORT_BY)
    return Contents("VOC")  # libsndfile reads on to the end of the file


def read_small(source: Source, start: int) -> Contents:
    """Read the number of samples in the header of an AVR, WVE or MPC2K file. Raise ContainerError."""
    head = source.read(start, 4)
    kind, offset, order = _FIELDS[head if head in _FIELDS else head[:2]]
    return Contents(kind, source.number(start + offset, 4, order, "header"))
