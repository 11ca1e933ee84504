"""Checks that all ranks, and the checkpoint that a run resumes from, have the same data."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any

from soundomni.core.errors import DataError
from soundomni.data.digest import Listing, list_dataset
from soundomni.data.mixture import Mixture
from soundomni.data.prepared import unprepared
from soundomni.train.parallel import World
from soundomni.train.run_directory.spec_changes import is_below

Listings = Mapping[str, Listing]
"""Dataset → its listing."""


def list_data(mixture: Mixture, world: World) -> dict[str, Listing]:
    """Return the listing of each dataset, after a comparison over all ranks. Every rank must call this.

    Raises:
        DataError: on every rank, if one lists something else than rank 0; it names the rank, the dataset and the first
            different key.
    """
    own = {name: list_dataset(unprepared(source.dataset)) for name, source in mixture.sources.items()}
    short = {name: (listing.count, listing.sha256) for name, listing in own.items()}
    if any(other != short for other in world.gather(short)):
        first: Listings = world.gather(own)[0]
        problems = world.gather(_difference(mixture, own, first))
        rank = next(rank for rank, problem in enumerate(problems) if problem is not None)
        raise DataError(f"rank {rank} has different data from rank 0: {problems[rank]}; give every process the same files")
    return own


def check_same_data(
    saved: Mapping[str, Any] | None, listings: Listings, mixture: Mixture, checkpoint: object, *, allowed: Collection[str] = ()
) -> bool:
    """Return whether the data is what a checkpoint was trained on.

    Args:
        saved: the checkpoint's record of the data; None for one from before there were digests, which is trusted.
        listings: listings of the current data.
        mixture: the current data.
        checkpoint: named in the error.
        allowed: keys that may change; one at or above `data.datasets.NAME` lets that dataset change.

    Raises:
        DataError: the data differs, and may not change.
    """
    if saved is None:
        return True
    before = {name: Listing.from_json(listing) for name, listing in saved.items()}
    changed = [name for name in dict.fromkeys([*before, *listings]) if before.get(name) != listings.get(name)]
    for name in changed:
        if not is_below(f"data.datasets.{name}", allowed):
            raise DataError(
                f"the data differs from what '{checkpoint}' was trained on: {_difference(mixture, listings, before, [name])}; "
                f"restore it, or resume with the samples in a new order: --allow-change {shlex.quote(f'data.datasets.{name}')}"
            )
    return not changed


def _difference(mixture: Mixture, own: Listings, first: Listings, names: Collection[str] | None = None) -> str | None:
    """Return in which dataset and at which key listings differ from the first ones, in words; None if they do not."""
    for name in names or dict.fromkeys([*first, *own]):
        if name not in own or name not in first:
            return f"dataset '{name}' is {'missing' if name in first else 'new'}"
        if own[name] == first[name]:
            continue
        index = own[name].first_difference(first[name])
        if index >= own[name].count:
            return f"dataset '{name}' ends after {own[name].count} of {first[name].count} clips"
        where = "at" if own[name].block_size == 1 else f"within {own[name].block_size} clips from"
        counts = (
            f"{own[name].count} clips instead of {first[name].count}"
            if own[name].count != first[name].count
            else "the same number of clips"
        )
        return f"dataset '{name}' has {counts}, and first differs {where} '{mixture.sources[name].dataset.item(index).key}'"
    return None
