"""Names of a model's tensors in files that earlier versions wrote, when a model had one modality of each kind.

Format 1 named parts such as `latent_connector.inward.weight`; format 2 names them by modality,
`modalities.latent.connector.inward.weight`. Names in the backbone are the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from soundomni.core.errors import CheckpointError
from soundomni.core.spec.shorthand import FEATURES, LATENT

FORMAT = 2
"""The format of model directories that is written."""
READ_FORMATS = (1, FORMAT)
MODALITIES = "modalities."
_MOVED: Mapping[str, str] = {
    "codec.": f"{MODALITIES}{LATENT}.codec.",
    "latent_connector.": f"{MODALITIES}{LATENT}.connector.",
    "normalizer.": f"{MODALITIES}{LATENT}.normalizer.",
    "objective.": f"{MODALITIES}{LATENT}.objective.",
    "encoder.": f"{MODALITIES}{FEATURES}.encoder.",
    "features_connector.": f"{MODALITIES}{FEATURES}.connector.",
}


def current_names(stored: Iterable[str]) -> dict[str, str]:
    """Return the present name of each tensor of a model, or of what a checkpoint keeps for it, by its stored name.

    A prefix up to a slash, such as `ema/`, is kept. Names of anything but a whole model do not change.

    Raise CheckpointError if two of them are names of one tensor.
    """
    names = list(stored)
    is_first_format = any(_own(name).startswith("latent_connector.") for name in names) and any(
        _own(name).startswith("backbone.") for name in names
    )
    if not is_first_format:
        return {name: name for name in names}
    stored_as: dict[str, str] = {}
    for name in names:
        current = _renamed(name)
        other = stored_as.setdefault(current, name)
        if other != name:
            old = name if name != current else other
            raise CheckpointError(f"'{old}' and '{current}' are names of the same tensor, of which a file has one. Get an intact file")
    return {name: current for current, name in stored_as.items()}


def part_of(name: str) -> str:
    """Return the part of a model that a tensor belongs to: "backbone", or MODALITY.codec, MODALITY.connector and so on.

    >>> part_of("modalities.latent.codec.weight"), part_of("backbone.norms.und.weight")
    ('latent.codec', 'backbone')
    """
    parts = name.split(".")
    return ".".join(parts[1:3]) if name.startswith(MODALITIES) else parts[0]


def _own(name: str) -> str:
    return name.partition("/")[2] if name.startswith(("model/", "ema/", "optimizer/")) else name


def _renamed(name: str) -> str:
    own = _own(name)
    for old, new in _MOVED.items():
        if own.startswith(old):
            return name.removesuffix(own) + new + own.removeprefix(old)
    return name
