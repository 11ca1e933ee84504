"""The toy sounds that a spec trains on."""

from __future__ import annotations

import itertools

from soundomni.core.spec.provenance import lasting_name
from soundomni.core.spec.schema import MixtureEntry, Spec

TOYS = "toy-sounds"
"""Name of the dataset."""


def toy_entries(spec: Spec) -> list[MixtureEntry]:
    """Return the toy-sounds entries that a spec trains on, those with descriptions first."""
    entries = [entry for entry in (spec.data.datasets.values() if spec.data else ()) if entry is not None]
    toys = (entry for entry in entries if lasting_name("dataset", entry.source.class_path) == TOYS)
    return sorted(toys, key=lambda entry: "describe" not in entry.tasks)


def unused_seed(spec: Spec) -> int:
    """Return the first seed from 1 on that none of a spec's toy sounds uses."""
    used = {entry.source.init_args.get("seed", 0) for entry in toy_entries(spec)}
    return next(seed for seed in itertools.count(1) if seed not in used)
