"""What a file is if it is not read as audio, by its first bytes: suffixes are often wrong."""

from __future__ import annotations

import re

HEAD = 64
"""Number of bytes to look at."""

_CONVERT = "which cannot be read. Convert it to WAV or FLAC"
_PYAV = "which cannot be read without PyAV. Run `pip install soundomni[m4a]`, or convert it to WAV or FLAC"
_ASK_AGAIN = "not audio. Fetch it again"

_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb".{4}ftyp", "an MP4 file (M4A, MOV)", _PYAV),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "an AAC stream", _PYAV),
    (rb"\x1a\x45\xdf\xa3", "a Matroska or WebM file", _CONVERT),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "an ASF file (WMA)", _CONVERT),
    (rb"#!AMR", "an AMR file", _CONVERT),
    (rb"wvpk", "a WavPack file", _CONVERT),
    (rb"MAC ", "a Monkey's Audio file", _CONVERT),
    (rb"DSD |FRM8", "a DSD file", _CONVERT),
    (rb"MPCK|MP\+", "a Musepack file", _CONVERT),
    (rb"TTA[12]", "a TTA file", _CONVERT),
    (rb"MThd", "a MIDI file", "which holds notes instead of sound. Render it to WAV or FLAC"),
    (rb"version https://git-lfs", "a Git LFS pointer", "not audio. Run `git lfs pull` where it came from"),
    (rb"\s*<(?i:!doctype|html|\?xml)", "a web page", _ASK_AGAIN),
    (rb"\s*[\[{]\s*[\"\]}{]", "JSON text", _ASK_AGAIN),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "an archive", "not audio. Unpack it"),
    (rb"%PDF|\x89PNG|GIF8|\xff\xd8\xff", "a document or picture", "not audio. Remove it or its audio suffix"),
    (rb"\0{%d}" % HEAD, "a file that begins with zeros", "as after an incomplete download or copy. Fetch it again"),
)


def foreign_kind(head: bytes) -> str:
    """Return in one line why a file that begins with `head` is not read, and what to do."""
    for pattern, kind, action in _KINDS:
        if re.match(pattern, head[:HEAD], re.DOTALL):
            return f"it is {kind}, {action}"
    return "it is not audio, or its format is not supported. Convert it to WAV or FLAC"
