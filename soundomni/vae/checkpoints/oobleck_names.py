"""Names of Oobleck's modules: here, which are those of stable-audio-tools, and in diffusers.

Both have N blocks; here block i is 1..N, between a first convolution (0) and a last activation and convolution (N+1,
N+2).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from soundomni.vae.weight_norm import DIRECTION, MAGNITUDE

FOLDED = "weight"
"""Parameter of a convolution whose weight norm is folded."""

PARAMETERS = {
    "weight_g": MAGNITUDE,
    "weight_v": DIRECTION,
    MAGNITUDE: MAGNITUDE,
    DIRECTION: DIRECTION,
    FOLDED: FOLDED,
    "bias": "bias",
    "alpha": "alpha",
    "beta": "beta",
}
"""Every spelling of a parameter → the one here; a weight norm has an old and a new spelling of g and v."""

_OUR_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.layers\.")
_DIFFUSERS_BLOCK = re.compile(r"encoder\.block\.(\d+)\.")
_RESIDUAL = ("snake1", "conv1", "snake2", "conv2")


def split_name(name: str) -> tuple[str, str] | None:
    """Return module and parameter of a tensor, the latter as spelled here; None if it is not a parameter of Oobleck."""
    for spelled, parameter in PARAMETERS.items():
        if name.endswith(f".{spelled}"):
            return name[: -len(spelled) - 1], parameter
    return None


def is_diffusers(names: Collection[str]) -> bool:
    """Return whether tensors are named as in diffusers."""
    return any(_DIFFUSERS_BLOCK.match(name) for name in names)


def num_blocks(names: Collection[str]) -> int:
    """Count the encoder's blocks from the names of its tensors, in either naming; 0 if they belong to something
    else."""
    counts = [len({match[1] for name in names if (match := block.match(name))}) for block in (_OUR_BLOCK, _DIFFUSERS_BLOCK)]
    return max(counts)


def our_modules(blocks: int) -> tuple[str, ...]:
    """Return the names of all modules with parameters."""
    return tuple(ours for ours, _ in _pairs(blocks))


def from_diffusers(blocks: int) -> Mapping[str, str]:
    """Return module in diffusers → module here."""
    return {theirs: ours for ours, theirs in _pairs(blocks)}


def to_diffusers(blocks: int) -> Mapping[str, str]:
    """Return module here → module in diffusers."""
    return dict(_pairs(blocks))


def _pairs(blocks: int) -> Iterator[tuple[str, str]]:
    encoder = [(0, "res_unit1"), (1, "res_unit2"), (2, "res_unit3"), (3, "snake1"), (4, "conv1")]
    decoder = [(0, "snake1"), (1, "conv_t1"), (2, "res_unit1"), (3, "res_unit2"), (4, "res_unit3")]
    for coder, parts in (("encoder", encoder), ("decoder", decoder)):
        yield f"{coder}.layers.0", f"{coder}.conv1"
        for i in range(1, blocks + 1):
            for index, part in parts:
                ours, theirs = f"{coder}.layers.{i}.layers.{index}", f"{coder}.block.{i - 1}.{part}"
                if part.startswith("res_unit"):
                    yield from ((f"{ours}.layers.{j}", f"{theirs}.{name}") for j, name in enumerate(_RESIDUAL))
                else:
                    yield ours, theirs
        yield f"{coder}.layers.{blocks + 1}", f"{coder}.snake1"
        yield f"{coder}.layers.{blocks + 2}", f"{coder}.conv2"
