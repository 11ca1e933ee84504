"""The header of a folder of encoded clips, and the names of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from soundomni.core.errors import DataError, SpecError, message_of
from soundomni.core.files.paths import place
from soundomni.core.files.small_files import read_json
from soundomni.core.files.whole_files import write_whole
from soundomni.core.representation import RepresentationSpec
from soundomni.core.spec.values import convert, plain

HEADER_FILE, MEASURED_FILE = "encoded.json", "codec.safetensors"
FORMAT = 1
VALUES = "values"
"""Name of the tensor in a shard."""
MOST_SHARDS = 100_000
LARGEST_SIZE = 1 << 20
"""Largest sizes of a spec that are believed, such as samples per frame: a header may come from a stranger."""

Stored = Literal["float32", "float16", "int16", "int32"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is true of all clips of a folder.

    Args:
        format: version of the layout.
        codec: slot of the codec, with all arguments filled in, as plain data.
        spec: spec of the codec.
        fingerprint: digest of the codec with its weights.
        dtype: how values are stored.
        num_shards: number of shards.
        num_items: number of clips that were to be encoded.
        listing: digest of these clips, by which an interrupted encoding knows that it can continue.
        max_seconds: longer clips were cut to this length; null for no limit.
        complete: whether all shards are written.
        shard_bytes: largest shard, in bytes of values.
    """

    format: int = FORMAT
    codec: dict[str, Any] = field(default_factory=dict)
    spec: RepresentationSpec
    fingerprint: str
    dtype: Stored
    num_shards: int
    num_items: int
    listing: str
    max_seconds: float | None = None
    complete: bool = False
    shard_bytes: int = 0

    @property
    def name(self) -> str:
        """Name of the codec."""
        return str(self.codec.get("class_path", "unknown"))


def shard_name(number: int) -> str:
    """Return the name of a shard without its suffix."""
    return f"clips-{number:05d}"


def write_header(folder: Path, header: Header) -> None:
    """Write the header, whole or not at all. Raise OSError."""
    write_whole(folder / HEADER_FILE, json.dumps(plain(header), indent=2) + "\n", durable=True)


def read_header(folder: Path) -> Header:
    """Return the header of a folder. Raise DataError if it cannot be read, or says what cannot be."""
    file = folder / HEADER_FILE
    try:
        tree = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {place(file)}: {getattr(error, 'strerror', None) or message_of(error)}") from error
    version = tree.get("format") if isinstance(tree, dict) else None
    if version != FORMAT:
        raise DataError(f"{place(file)} has the format {version!r}; expected {FORMAT}. Encode the clips again")
    return header_of(tree, str(file))


def header_of(tree: Any, name: str) -> Header:
    """Return the header for plain data from the file `name`. Raise DataError."""
    try:
        header: Header = convert(tree, Header, "header")
        check_spec(header.spec)
    except SpecError as error:
        raise DataError(f"'{name}' is not a header of encoded clips: {error}") from error
    if not 0 <= header.num_shards <= MOST_SHARDS:
        raise DataError(f"'{name}' announces {header.num_shards} shards; expected 0 to {MOST_SHARDS:,}")
    return header


def check_spec(spec: RepresentationSpec) -> None:
    """Raise SpecError unless the numbers of a spec can be those of a codec."""
    sizes = {name: getattr(spec, name) for name in ("sample_rate", "channels", "downsampling_ratio")}
    of_codes = {f"codebook {i}": size for i, size in enumerate(spec.codebook_sizes)}
    sizes |= {"latent_dim": spec.latent_dim} if spec.kind == "continuous" else of_codes
    for name, size in sizes.items():
        if size is None or not 1 <= size <= LARGEST_SIZE:
            raise SpecError(f"its spec has {name} {size}; expected 1 to {LARGEST_SIZE:,}")
    if (spec.kind == "codes") != bool(spec.codebook_sizes) or not 0 <= spec.extra_frames <= LARGEST_SIZE:
        raise SpecError(f"its spec has {len(spec.codebook_sizes)} codebooks and {spec.extra_frames} extra frames, which no codec has")
