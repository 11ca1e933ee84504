"""How much work a torch pickle asks for, found out without running it: a few bytes can stand for hours or for all
memory.

torch reads such files with its own unpickler, which only knows tensors and containers and runs one operation after the
other. The operations are first counted here with the standard library's disassembler. Archives must be as torch writes
them: not compressed.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath

from soundomni.core.files.small_files import open_regular

MOST_OPERATIONS = 1_000_000
"""A tensor takes about 25 operations, so this is enough for 40,000 tensors and what a trainer writes next to them."""
MOST_COPIED = 20_000_000
"""Values that are copied if each operation that copies a container, such as OrderedDict(pairs), copies all values so
far."""
MOST_COPIED_BYTES = 500_000_000
"""Bytes that are copied if each such operation copies the whole pickle, which may be one long text."""
MOST_BYTES = 1 << 25
"""Bytes of the pickle itself, without the numbers of the tensors."""
MOST_DIRECTORY_BYTES = 1 << 24
"""Bytes of the list of files in an archive; an entry takes about 80."""
PARTS = 5
"""Pickles in a row in a file without an archive: a number, a version, the machine, the tensors, and the order of their numbers."""

_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_TAIL = 66_000
"""Bytes from the end of a file within which the end record of an archive lies: its comment has at most 65,535."""
_STORES = frozenset(("BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"))
_OWN_ARGUMENTS = frozenset(("EMPTY_TUPLE", "TUPLE", "TUPLE3"))
"""Operations that make the arguments of a call that copies nothing: no arguments, or the parts of a tensor."""


class _RefusedError(ValueError):
    """A fault that this module found in a pickle, as opposed to a failure of the disassembler."""


def check_archive(path: Path) -> None:
    """Raise OSError, ValueError or zipfile.BadZipFile for an archive unlike those of torch, or whose pickle asks for
    too much.
    """
    with os.fdopen(open_regular(path), "rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - _TAIL))
        tail = opened.read(_TAIL)
        sizes = [_number(tail, tail.rfind(_END) + 12, 4), *([_number(tail, tail.rfind(_END_64) + 40, 8)] if _END_64 in tail else [])]
        if max(size for size in sizes if size != 0xFFFFFFFF) > MOST_DIRECTORY_BYTES:
            raise ValueError(f"the list of its files has more than {MOST_DIRECTORY_BYTES:,} bytes")
        with zipfile.ZipFile(opened) as archive:
            for info in archive.infolist():
                packed = info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
                if packed and PurePosixPath(info.filename).parts[1:2] != ("code",):  # TorchScript code, which nothing reads
                    raise ValueError(f"'{info.filename}' in it is compressed, which torch.save never does")
                if PurePosixPath(info.filename).name == "data.pkl":
                    if info.file_size > MOST_BYTES:
                        raise ValueError(f"its pickle has {info.file_size:,} bytes; expected at most {MOST_BYTES:,}")
                    _check_pickles(archive.read(info), 1)


def check_legacy(path: Path) -> None:
    """Raise OSError or ValueError for a file of pickles that is not an archive, if they ask for too much."""
    with os.fdopen(open_regular(path), "rb") as opened:
        _check_pickles(opened.read(MOST_BYTES), PARTS)


def _check_pickles(content: bytes, count: int) -> None:
    """Count operations up to the end of `count` pickles, or to damaged bytes, at which torch stops as well."""
    file = BytesIO(content)
    operations = copies = 0
    before = ""
    for _ in range(count):
        try:
            for operation, argument, _ in pickletools.genops(file):
                operations += 1
                if operation.name == "GLOBAL" and str(argument).endswith("bytearray"):
                    raise _RefusedError("its pickle uses bytearray, which can take unlimited memory and is never needed for weights")
                copies += operation.name == "BUILD" or (operation.name == "REDUCE" and before not in _OWN_ARGUMENTS)
                before = before if operation.name in _STORES else operation.name
                if operations > MOST_OPERATIONS:
                    break
        except _RefusedError:
            raise
        except Exception as error:  # the disassembler fails on damaged bytes in many ways
            if len(content) == MOST_BYTES:
                raise ValueError(f"its pickle has more than {MOST_BYTES:,} bytes") from error
            break
        if operations > MOST_OPERATIONS:
            break
    if operations > MOST_OPERATIONS or operations * copies > MOST_COPIED or file.tell() * copies > MOST_COPIED_BYTES:
        raise ValueError(f"its pickle needs more than {MOST_OPERATIONS:,} operations, or copies more than {MOST_COPIED:,} values")


def _number(content: bytes, place: int, size: int) -> int:
    return int.from_bytes(content[place : place + size], "little")
