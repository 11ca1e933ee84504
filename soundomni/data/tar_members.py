"""Members of a tar archive: names, offsets and sizes, read header by header; nothing is extracted.

Formats: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), with GNU tar's long names and large sizes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from soundomni.core.errors import DataError, one_line
from soundomni.core.files.small_files import open_regular
from soundomni.core.interfaces import Skip
from soundomni.data.text_files import compression_of

BLOCK = 512
_MOST_NAME = 1 << 16  # bytes of a long name, or of a pax header
_MOST_PADDING = 1 << 20  # zeros after the end that are looked at for another archive
_REGULAR = (b"0", b"\0", b"7")
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE, _FOLDER = b"L", b"K", b"x", b"g", b"S", b"5"
_OTHERS = {
    b"1": ("it is a hard link, and links are not followed", "links in archives"),
    b"2": ("it is a symbolic link, and links are not followed", "links in archives"),
    b"3": ("it is a device", "devices in archives"),
    b"4": ("it is a device", "devices in archives"),
    b"6": ("it is a pipe", "devices in archives"),
}


@dataclass(frozen=True)
class Member:
    """A regular file in an archive: its name, and the range of bytes `[first, first + size)` that it has."""

    name: str
    first: int
    size: int


@dataclass
class Scan:
    """Findings about an archive.

    Args:
        members: regular files, in the order of the archive.
        skipped: other members, and where the archive is truncated or damaged; keys begin with the name of the archive.
        cut: name of the member that the end of the archive cuts off, if any.
    """

    members: list[Member] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    cut: str | None = None


@dataclass
class _Extended:
    """What headers before a member's own header say about it."""

    name: bytes | None = None
    size: int | None = None
    fault: str | None = None


class _Damaged(Exception):
    """From here on, nothing in the archive can be trusted."""


def scan(path: Path, key: str) -> Scan:
    """Return the members of an archive; if it is truncated or damaged, the complete ones before that.

    Args:
        path: the archive.
        key: what to call it in `skipped`.

    Raise DataError if it cannot be read, or is not an uncompressed tar archive.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error
    try:
        size = os.fstat(descriptor).st_size
        archive = _Archive(lambda first, count: os.pread(descriptor, count, first), size, key)
        archive.check_kind(path)
        archive.walk()
        return archive.found
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error
    finally:
        os.close(descriptor)


class _Archive:
    """An archive while it is read; `read(first, count)` returns its bytes."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, key: str) -> None:
        self._read = read
        self._size = size
        self._key = key
        self.found = Scan()

    def check_kind(self, path: Path) -> None:
        """Raise DataError for a file that is empty, compressed, or not a tar archive."""
        head = self._read(0, BLOCK)
        if not head:
            raise DataError(f"cannot read '{path}': the file is empty")
        compressed = compression_of(head)
        if compressed is not None:
            raise DataError(f"cannot read '{path}': it is compressed ({compressed}); expected an uncompressed tar archive. Unpack it")
        if len(head) == BLOCK and head.strip(b"\0") and not _is_header(head):
            raise DataError(f"cannot read '{path}': it is not a tar archive")

    def walk(self) -> None:
        """Find the members up to the end of the archive, or to where it is damaged."""
        position, said = 0, _Extended()
        try:
            while True:
                head = self._read(position, BLOCK)
                if len(head) < BLOCK:
                    raise _Damaged("it ends without the mark at its end, so that it is probably truncated")
                if not head.strip(b"\0"):
                    self._check_end(position)
                    return
                if not _is_header(head):
                    raise _Damaged("the header there is damaged")
                position, said = self._member(head, position + BLOCK, said)
        except _Damaged as damage:
            where = min(position, self._size)
            reason = f"at byte {where:,}, {damage}; the {len(self.found.members)} members before it are used"
            self.found.skipped.append(Skip(self._key, reason))

    def _member(self, head: bytes, first: int, said: _Extended) -> tuple[int, _Extended]:
        """Note a member, or what an extended header says about the next one; return where the next header is."""
        kind = head[156:157]
        size = _number(head[124:136]) if kind not in _OTHERS and kind != _FOLDER else 0
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            after = first + _padded(size)
            if size > _MOST_NAME or after > self._size + BLOCK:
                said.fault = f"its name or header takes {size:,} bytes; expected at most {_MOST_NAME:,}"
            elif kind == _LONG_NAME:
                said.name = self._read(first, size).rstrip(b"\0")
            elif kind == _PAX:
                _read_pax(self._read(first, size), said)
            if after > self._size:
                raise _Damaged("the archive is truncated in a long header")
            return after, said
        name = _text(said.name if said.name is not None else _short_name(head), said)
        size = said.size if said.size is not None and kind not in _OTHERS else size
        if first + size > self._size:
            self.found.cut = name
            raise _Damaged(
                f"the archive is truncated: '{one_line(name)[:100]}' announces {size:,} bytes, and {self._size - first:,} are left"
            )
        self._note(kind, name, first, size, said)
        return first + _padded(size), _Extended()

    def _note(self, kind: bytes, name: str, first: int, size: int, said: _Extended) -> None:
        key = f"{self._key}/{name.lstrip('/')}"
        if kind == _FOLDER:
            return
        unsafe = _why_unsafe(name)
        if said.fault is not None:
            self.found.skipped.append(Skip(key, said.fault))
        elif unsafe is not None:
            self.found.skipped.append(Skip(key, unsafe, "unsuitable", "with a name that leads out of its archive"))
        elif kind in _REGULAR:
            self.found.members.append(Member(name.removeprefix("./"), first, size))
        else:
            reason, group = _OTHERS.get(kind, (f"it is a member of type {kind!r}, which is not read", "other members of archives"))
            self.found.skipped.append(Skip(key, reason, "unsuitable", group))

    def _check_end(self, position: int) -> None:
        """Note another archive after the end of this one: its clips would be lost silently."""
        stop = min(self._size, position + _MOST_PADDING)
        while position < stop:
            block = self._read(position, 1 << 16)
            if block.strip(b"\0"):
                where = position + len(block) - len(block.lstrip(b"\0"))
                reason = f"at byte {where:,}, more follows the end of the archive, such as another one, which is not read. Split it"
                self.found.skipped.append(Skip(self._key, reason))
                return
            position += max(len(block), 1)


def _is_header(head: bytes) -> bool:
    """Return whether a block has the checksum of a header; old programs added signed bytes."""
    try:
        expected = _octal(head[148:156])
    except _Damaged:
        return False
    rest = head[:148] + b" " * 8 + head[156:]
    total = sum(rest)
    return expected in (total, total - 256 * sum(byte > 127 for byte in rest))


def _number(digits: bytes) -> int:
    """Return a size, in octal digits or, if it is large, in base 256."""
    if digits[0] & 0x80:
        if digits[0] != 0x80:
            raise _Damaged("a size is negative")
        return int.from_bytes(digits[1:], "big")
    return _octal(digits)


def _octal(digits: bytes) -> int:
    octal = digits.split(b"\0")[0].strip()
    if octal.strip(b"01234567"):
        raise _Damaged("a size is not a number")
    return int(octal, 8) if octal else 0


def _short_name(head: bytes) -> bytes:
    name = head[:100].split(b"\0")[0]
    prefix = head[345:500].split(b"\0")[0] if head[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(raw: bytes, said: _Extended) -> str:
    """Return a name as text; one that is not UTF-8 is a fault."""
    name = raw.split(b"\0")[0]
    try:
        return name.decode()
    except UnicodeDecodeError:
        said.fault = said.fault or "its name is not text in UTF-8"
        return name.decode("utf-8", "replace")


def _read_pax(data: bytes, said: _Extended) -> None:
    """Note path and size of a pax header, whose records are "LENGTH KEY=VALUE" and a line break."""
    position = 0
    while position < len(data):
        digits, _, _ = data[position : position + 20].partition(b" ")
        if not digits.isdigit() or not 0 < int(digits) <= len(data) - position:
            if data[position:].strip(b"\0"):
                said.fault = "its pax header is damaged"
            return
        key, _, value = data[position + len(digits) + 1 : position + int(digits) - 1].partition(b"=")
        position += int(digits)
        if key == b"path":
            said.name = value
        elif key == b"size" and value.isdigit() and len(value) < 20:
            said.size = int(value)
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            said.fault = "it is a sparse file, which is not read" if key != b"size" else "its pax header is damaged"


def _why_unsafe(name: str) -> str | None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "its name is an absolute path"
    if ".." in parts:
        return "its name leads out of the archive"
    return None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
