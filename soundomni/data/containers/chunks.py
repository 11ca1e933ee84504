"""Files made of chunks (a name, a size, the data): where the chunk with the audio ends, whatever its size field
says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from soundomni.data.containers.contents import ByteOrder, ContainerError, Source, check_rest, is_streamed

_MOST_CHUNKS = 10_000
_MOST_JUNK = 4096  # bytes of junk after the last chunk, if the container's size confirms that it is the last; more may be audio
_LITTLE_JUNK = 16
_NAMES = (
    b"LIST|id3 |ID3 |bext|cue |smpl|inst|fact|PEAK|JUNK|junk|PAD |FLLR|afsp|iXML|axml|chna|_PMX|cart|DISP|acid|strc|plst|umid"
    b"|MARK|INST|MIDI|AESD|APPL|COMT|NAME|AUTH|(c) |ANNO|ATAK|RLSE|CHAN|info|user|strg|free|pakt|kuki|mark|regn|chan"
)
_DESCRIBING = frozenset(_NAMES.split(b"|"))
"""Names of chunks that describe the audio: if the file ends within one, the audio before it is still complete."""


@dataclass(frozen=True)
class Layout:
    """Format of chunks.

    Args:
        order: byte order of a size.
        name_bytes: length of a name.
        size_bytes: length of a size.
        align: chunks start at multiples of this.
        size_has_header: whether a size includes the name and itself.
    """

    order: ByteOrder
    name_bytes: int = 4
    size_bytes: int = 4
    align: int = 2
    size_has_header: bool = False

    @property
    def header_bytes(self) -> int:
        return self.name_bytes + self.size_bytes


@dataclass(frozen=True)
class Chunks:
    """The chunks of a file.

    Args:
        found: start of the data and announced size, by name; the first one if a name occurs more than once.
        end: end of the last chunk. What follows is not a chunk.
    """

    found: Mapping[bytes, tuple[int, int]]
    end: int


def walk(
    source: Source, start: int, layout: Layout, *, audio: bytes, magic: tuple[bytes, ...], size_elsewhere: int | None = None
) -> Chunks:
    """Walk the chunks of a file until something that is not a chunk.

    Args:
        source: the file.
        start: where the first chunk begins.
        layout: format of the chunks.
        audio: name of the chunk with the audio.
        magic: beginnings of files of this kind, which are not names of chunks.
        size_elsewhere: size of the audio, if it is not written in front of it.

    Raise ContainerError if there is not exactly one chunk with audio.
    """
    found: dict[bytes, tuple[int, int]] = {}
    position = start
    for _ in range(_MOST_CHUNKS):
        chunk = _chunk(source, position, layout, audio, magic)
        if chunk is None:
            break
        name, begin, size = chunk
        if name == audio and name in found:
            raise ContainerError(f"it has more than one {_text(name)} chunk")
        if name == audio and size_elsewhere is not None:
            size = size_elsewhere
        found.setdefault(name, (begin, size))
        end = begin + size
        if end >= source.size:
            position = source.size
            break
        position = end + (start - end) % layout.align
        if (
            position != end
            and _chunk(source, position, layout, audio, magic) is None
            and _chunk(source, end, layout, audio, magic) is not None
        ):
            position = end  # some writers do not pad
    if audio not in found:
        cut = position + layout.header_bytes > source.size
        raise ContainerError(
            "it is truncated before its audio" if cut else f"it is damaged; there is no chunk at byte {position}, and no audio before"
        )
    return Chunks(found, position)


def _chunk(source: Source, position: int, layout: Layout, audio: bytes, magic: tuple[bytes, ...]) -> tuple[bytes, int, int] | None:
    header = source.read(position, layout.header_bytes)
    if len(header) < layout.header_bytes or header.startswith(magic):
        return None
    name, field = header[: layout.name_bytes], header[layout.name_bytes :]
    size = int.from_bytes(field, layout.order)
    if layout.size_has_header:
        size -= layout.header_bytes
    begin = position + layout.header_bytes
    if name != audio and (size < 0 or not all(32 <= byte < 127 for byte in name[:4])):
        return None
    if name != audio and begin + size > source.size and name[:4] not in _DESCRIBING:
        return None
    return name, begin, max(0, size)


def audio_range(
    source: Source, chunks: Chunks, layout: Layout, *, audio: bytes, magic: tuple[bytes, ...], whole: int | None
) -> tuple[int, int]:
    """Return where the audio starts and ends. If its size was never filled in, it is the rest of the file.

    Args:
        source: the file.
        chunks: its chunks.
        layout: format of the chunks.
        audio: name of the chunk with the audio.
        magic: beginnings of files of this kind, to find another one after this.
        whole: end of the container according to its own header, if that can be relied on.

    Raise ContainerError if the file ends before its audio, or if more follows than chunks and a little junk.
    """
    begin, size = chunks.found[audio]
    beyond = begin + size > source.size
    if (beyond and is_streamed(size, 8 * layout.size_bytes)) or (size == 0 and chunks.end == begin < source.size):
        return begin, source.size
    if beyond:
        raise ContainerError(f"it is truncated; it holds {max(0, source.size - begin)} of the {size} bytes of audio that it announces")
    if whole is not None and abs(whole - source.size) <= 1 and source.size - chunks.end > 1:
        raise ContainerError(f"it is damaged; there is no chunk at byte {chunks.end} where its audio or a chunk after it ends")
    check_rest(source, chunks.end, magic=magic, junk=_LITTLE_JUNK if whole is None else _MOST_JUNK)
    return begin, begin + size


def _text(name: bytes) -> str:
    return name[:4].decode("latin-1").strip()
