"""Held-out items of a dataset, which training never draws: those whose keys have the smallest digests.

Only the key decides, so the split is the same in every run and on any number of processes, and an item stays on its side
if others are added to the dataset.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from soundomni.core.errors import DataError
from soundomni.core.interfaces import Dataset


def held_out_indices(name: str, dataset: Dataset, share: float) -> np.ndarray:
    """Return the indices of the held-out items of a dataset, integers `[N]`, smallest key digest first.

    Args:
        name: name of the dataset, for errors.
        dataset: the dataset.
        share: share of the items to hold out, approximately, in [0, 1]; 1 holds out all of them.

    Raises:
        DataError: a share between 0 and 1 holds out none of the items, or all of them.
    """
    if share == 0:
        return np.zeros(0, np.int64)
    places = np.asarray([key_place(dataset.item(index).key) for index in range(len(dataset))])
    order = np.argsort(places, kind="stable")
    if share == 1:
        return order
    count = int((places < share).sum())
    if not 0 < count < len(places):
        least, most = float(places[order[0]]), float(places[order[-1]])
        found = "none" if count == 0 else "all"
        cure = "to 0 or 1" if least == most else f"to {_share_between(least, most, low=count == 0):g}, or to 1 to only measure it"
        what = f"which holds out {found} of its {len(places)} items"
        raise DataError(f"data.datasets.{name}.held_out is {share:g}, {what}. Set it {cure}")
    return order[:count]


def _share_between(least: float, most: float, *, low: bool) -> float:
    """Return a share with few digits that is above `least` and at most `most`: about the lowest one, or about the highest."""
    for digits in range(2, 18):
        steps = int(10**digits)
        share = (math.floor(least * steps) + 1) / steps if low else math.floor(most * steps) / steps
        if least < share <= most:
            return share
    return most


def key_place(key: str) -> float:
    """Return the place of a key in [0, 1): its SHA-256 as a fraction."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return float((int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53)
