"""Safetensors files in which one tensor has a dtype that no weights have here."""

from __future__ import annotations

import json
from pathlib import Path

BITS = {
    **{"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Name of a dtype in the format → bits of a number; torch cannot read those of six bits."""


def with_dtype(file: Path, name: str, dtype: str) -> None:
    """Rewrite a file so that a tensor has another dtype and only zeros; its number of elements has to be a multiple of 4."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:start]), content[start:]
    begin, end = header[name]["data_offsets"]
    count = 1
    for size in header[name]["shape"]:
        count *= size
    taken = count * BITS[dtype] // 8
    for key, entry in header.items():
        if key != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [place + taken - (end - begin) for place in entry["data_offsets"]]
    header[name] |= {"dtype": dtype, "data_offsets": [begin, begin + taken]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body[:begin] + bytes(taken) + body[end:])
