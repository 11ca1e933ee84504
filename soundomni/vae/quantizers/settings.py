"""How a codec quantizes its latents, as a spec says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from soundomni.core.errors import SpecError
from soundomni.core.limits import MOST_VOCABULARY, check_count
from soundomni.vae.frozen_codec import MOST_CODEBOOKS

Method = Literal["gradient", "ema", "fsq", "lfq"]

_ONLY: Mapping[str, tuple[Method, ...]] = {
    "codebook_size": ("gradient", "ema", "lfq"),
    "codebook_dim": ("gradient",),
    "steps": ("fsq",),
    "commitment_weight": ("gradient", "ema", "lfq"),
    "entropy_weight": ("lfq",),
    "dead_code_share": ("ema",),
}
"""Setting → the methods that use it; the others use all methods."""


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """How latents become codes, with residual quantization: each level quantizes what the levels before it leave over.

    Args:
        method: "gradient" learns codebooks by gradient, in few dimensions (see factorized.py); "ema" as moving averages
            of the latents (moving_average.py); "fsq" rounds numbers (finite_scalar.py); "lfq" takes their signs
            (lookup_free.py).
        num_levels: levels of each group.
        groups: groups into which the latent dimensions are split, each with levels of its own; a frame has
            groups · num_levels codes, level by level.
        codebook_size: entries of each level; a power of 2 for "lfq". For "fsq" it is the product of `steps`.
        codebook_dim: numbers of an entry, for "gradient".
        steps: values of each number, at least 3, for "fsq".
        commitment_weight: factor that the "commitment" loss includes.
        entropy_weight: factor that the "entropy" loss of "lfq" includes.
        decay: decay per step of the moving averages: of how often each code is used, and of the codebooks of "ema".
        dead_code_share: "ema" replaces a code that is used less than this share of the mean over its level.
        level_dropout: probability that a clip trains only the first n levels, n drawn evenly from 1 to num_levels.

    Raises:
        SpecError: a setting is out of its range, or the method does not use it.
    """

    method: Method = "gradient"
    num_levels: int = 12
    groups: int = 1
    codebook_size: int = 1024
    codebook_dim: int = 8
    steps: tuple[int, ...] = (8, 5, 5, 5)
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    decay: float = 0.99
    dead_code_share: float = 0.1
    level_dropout: float = 0.5

    def __post_init__(self) -> None:
        """Check every setting."""
        for field in fields(self):
            value, methods = getattr(self, field.name), _ONLY.get(field.name)
            if methods is not None and self.method not in methods and value != field.default:
                given = f"quantizer.{field.name} is {value}"
                raise SpecError(f"{given}, but method '{self.method}' does not use it. Remove it")
        check_count("quantizer.groups", self.groups)
        check_count("quantizer.num_levels", self.num_levels, most=MOST_CODEBOOKS // self.groups)
        check_count("quantizer.codebook_dim", self.codebook_dim)
        if not self.steps or min(self.steps) < 3:
            raise SpecError(f"quantizer.steps is {list(self.steps)}; expected one or more numbers of at least 3")
        if not 2 <= self.entries <= MOST_VOCABULARY:
            key = "steps" if self.method == "fsq" else "codebook_size"
            given = f"quantizer.{key} makes {self.entries:,} values of a code"
            raise SpecError(f"{given}; expected 2 to {MOST_VOCABULARY:,}")
        if self.method == "lfq" and self.codebook_size & (self.codebook_size - 1):
            raise SpecError(f"quantizer.codebook_size is {self.codebook_size}; expected a power of 2 for lfq")
        if not 0 <= self.decay < 1:
            raise SpecError(f"quantizer.decay is {self.decay:g}; expected a number from 0 up and below 1")
        for name in ("dead_code_share", "level_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"quantizer.{name} is {getattr(self, name):g}; expected a number from 0 to 1")
        for name in ("commitment_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"quantizer.{name} is {getattr(self, name):g}; expected a finite number from 0 up")

    @property
    def entries(self) -> int:
        """Number of values of each code."""
        return math.prod(self.steps) if self.method == "fsq" else self.codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Vocabulary of each code of a frame, as in a RepresentationSpec."""
        return (self.entries,) * (self.num_levels * self.groups)
