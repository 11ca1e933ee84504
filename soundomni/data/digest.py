"""Digests of the contents of datasets: keys, lengths, captions and questions, not audio.

Equal digests mean that training draws the same items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from soundomni.core.interfaces import Dataset, Item

MOST_BLOCKS = 1 << 14
"""Largest number of digests in one listing, so that a checkpoint stays small.

With more items, one digest covers several in a row.
"""
SHOWN_OF_GENERATED = 64
"""Items whose digests are taken for a dataset that computes its items, in addition to what it computes them from."""
_BLOCK_BYTES = 4


@dataclass(frozen=True)
class Listing:
    """The items that a dataset lists.

    Args:
        count: number of items.
        sha256: digest of all of them.
        blocks: 8 hexadecimal digits for each block of consecutive items; all blocks but the last have the same size.
    """

    count: int
    sha256: str
    blocks: str

    @property
    def block_size(self) -> int:
        """Number of items in a block."""
        return _block_size(self.count)

    def first_difference(self, other: Listing) -> int:
        """Return the index of the first item that may differ from another listing's; `count` if only the other one has
        more."""
        if self.block_size != other.block_size:
            return 0
        own, its = self._split(), other._split()
        differing = (number for number, (a, b) in enumerate(zip(own, its, strict=False)) if a != b)
        return min(next(differing, min(len(own), len(its))) * self.block_size, self.count)

    def to_json(self) -> dict[str, Any]:
        """Return the listing as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Listing:
        """Return the listing for data from `to_json`; keys added by later versions are ignored.

        Raise ValueError if it is not one.
        """
        count, sha256, blocks = (tree.get(name) for name in ("count", "sha256", "blocks"))
        if type(count) is not int or count < 0 or not isinstance(sha256, str) or not isinstance(blocks, str):
            raise ValueError("a listing of data has no count, sha256 and blocks")
        return cls(count, sha256, blocks)

    def _split(self) -> list[str]:
        step = 2 * _BLOCK_BYTES
        return [self.blocks[first : first + step] for first in range(0, len(self.blocks), step)]


def list_dataset(dataset: Dataset) -> Listing:
    """Return the listing of a dataset.

    Decodes nothing; takes about five seconds for a million items that are already listed.
    """
    count = len(dataset)
    whole = hashlib.sha256(repr((count, dataset.generated_from)).encode())
    size = _block_size(count)
    blocks: list[str] = []
    indices = range(count if dataset.generated_from is None else min(count, SHOWN_OF_GENERATED))
    for first in range(0, len(indices), size):
        text = "\n".join(_line(dataset.item(index)) for index in indices[first : first + size])
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        whole.update(digest)
        blocks.append(digest[:_BLOCK_BYTES].hex())
    return Listing(count, whole.hexdigest(), "".join(blocks))


def _line(item: Item) -> str:
    return repr((item.key, item.num_samples, item.sample_rate, tuple(item.captions), tuple(map(tuple, item.questions))))


def _block_size(count: int) -> int:
    return max(1, -(-count // MOST_BLOCKS))
