"""Contents of an audio file as its bytes announce them, read without decoding, to distinguish a whole file from a part
of one."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

from soundomni.data.containers.contents import ContainerError, Contents, Source, View, skip_id3
from soundomni.data.containers.flac import MAGIC as _FLAC
from soundomni.data.containers.flac import read_flac
from soundomni.data.containers.headers import read_au, read_nist, read_small, read_voc
from soundomni.data.containers.iff import read_caf, read_iff
from soundomni.data.containers.mp3 import parse, read_mp3
from soundomni.data.containers.ogg import MAGIC as _OGG
from soundomni.data.containers.ogg import read_ogg
from soundomni.data.containers.riff import MAGIC as _RIFF
from soundomni.data.containers.riff import W64_MAGIC, read_riff, read_w64

__all__ = ["ContainerError", "Contents", "View", "examine"]

_BY_HEADER = {
    **dict.fromkeys(_RIFF, read_riff),
    W64_MAGIC: read_w64,
    b"FORM": read_iff,
    b"caff": read_caf,
    b".snd": read_au,
    b"dns.": read_au,
    b"NIST_1A": read_nist,
    b"Creative Voice File": read_voc,
    b"2BIT": read_small,
    b"ALawSoundFile": read_small,
    b"\x01\x04": read_small,
}
_SAMPLE_DUMP = b"\xf0\x7e"
_BY_FRAMES = {_FLAC: read_flac, _OGG: read_ogg}


def examine(file: BinaryIO, *, thorough: bool) -> Contents | None:
    """Return what a file announces and holds, or None if this package does not read its container.

    Args:
        file: opened for reading bytes.
        thorough: whether to look at the whole file if its beginning and end do not prove that it is complete.

    Raise ContainerError if it holds less than it announces, more than can be read, or contradicts itself.
    """
    source = Source(file)
    start = skip_id3(source, 0)
    if start:
        start = source.skip_zeros(start)
    contents = _read(source, start, thorough)
    if contents is not None and contents.pieces is None and start > 0:
        return replace(contents, pieces=((start, source.size),))
    return contents


def _read(source: Source, start: int, thorough: bool) -> Contents | None:
    head = source.read(start, 20)
    if head.startswith(_SAMPLE_DUMP):  # before libsndfile sees it, which would print its complaints
        raise ContainerError("it is a file of type SDS, and a truncated file of this type looks complete. Convert it to WAV or FLAC")
    for magic, read in _BY_HEADER.items():
        if head.startswith(magic):
            return read(source, start)
    for magic, walk in _BY_FRAMES.items():
        if head.startswith(magic):
            return walk(source, start, thorough)
    if head[:1] != b"\xff" or head[1:2] < b"\xe0":
        return None
    if not _is_mpeg(source, start):
        raise ContainerError("it begins like MPEG audio, but no frame follows; it is damaged or not audio")
    return read_mp3(source, start, thorough)


def _is_mpeg(source: Source, start: int) -> bool:
    """Return whether two frames of MPEG audio follow each other, or a single one ends the file."""
    first = parse(source.read(start, 4))
    if first is None:
        return False
    after = start + first.length
    return first.length == 0 or after == source.size or parse(source.read(after, 4)) is not None
