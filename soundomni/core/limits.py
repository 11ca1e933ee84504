"""Checks of what a caller asks of a model, before anything is computed. Every error is one line.

This module does not import torch.
"""

from __future__ import annotations

from math import inf

from soundomni.core.errors import SpecError, shown

LONGEST_SECONDS = 86400.0
LARGEST_SEED = 2**63 - 1
"""Generators take 64 bits and read a negative seed as a large one, so negative seeds are refused: each stream has one
seed."""
LARGEST_SCALE = 1e6
MOST_STEPS = 10_000
MOST_NEW_TOKENS = 65_536
DEFAULT_STRENGTH = 0.5
"""How much a variation changes its clip by default."""
MOST_VOCABULARY = 2**20
HIGHEST_RATE, MOST_CHANNELS = 1_000_000, 1024
"""Highest sample rate in Hz, and most audio channels."""


def check_seconds(seconds: float, *, name: str = "seconds") -> None:
    """Raise SpecError, with the name of the argument, unless a length in seconds is above 0 and at most a day."""
    if not 0 < seconds <= LONGEST_SECONDS:
        raise SpecError(f"{name} is {seconds:g}; expected a number above 0 and at most {LONGEST_SECONDS:,.0f}")


def check_count(name: str, value: int, *, least: int = 1, most: int | None = None) -> None:
    """Raise SpecError if `value` is below `least` or above `most`."""
    if value < least:
        raise SpecError(f"{name} is {shown(value)}; expected at least {least}")
    if most is not None and value > most:
        raise SpecError(f"{name} is {shown(value)}; expected at most {most:,}")


def check_seed(seed: int, *, count: int = 1) -> None:
    """Raise SpecError if a seed, or the last of `count` seeds that count up from it, is negative or above 2^63 - 1."""
    if not 0 <= seed <= LARGEST_SEED:
        raise SpecError(f"the seed is {seed}; expected a whole number from 0 to {LARGEST_SEED}")
    if seed > LARGEST_SEED - count + 1:
        most = LARGEST_SEED - count + 1
        raise SpecError(f"the seed is {seed}, and {count} seeds count up from it; expected at most {most}. Set a smaller seed")


def check_scale(scale: float, *, name: str = "the guidance scale") -> None:
    """Raise SpecError, with the name of the scale, if it is not finite, or beyond ±LARGEST_SCALE."""
    if not abs(scale) <= LARGEST_SCALE:
        raise SpecError(f"{name} is {scale:g}; expected a number from {-LARGEST_SCALE:,.0f} to {LARGEST_SCALE:,.0f}")


def check_strength(strength: float, *, name: str = "strength") -> None:
    """Raise SpecError if the strength of a variation is not above 0 and at most 1."""
    if not 0 < strength <= 1:
        raise SpecError(f"{name} is {strength:g}; expected a number above 0 (the clip as it is) and at most 1 (nothing left of it)")


def check_negative(negative_prompt: str | None, scale: float) -> None:
    """Raise SpecError if a negative prompt is given but the guidance scale is 1, which steers away from nothing."""
    if negative_prompt and scale == 1.0:
        raise SpecError("a negative prompt does nothing with the guidance scale 1. Set a scale above 1, or leave the negative prompt out")


def check_text_sampling(temperature: float | None, top_k: int | None, top_p: float | None, *, options: bool = False) -> None:
    """Raise SpecError if a setting of how tokens are drawn is out of its range, or does nothing.

    Args:
        temperature: None for greedy decoding.
        top_k, top_p: None for all tokens.
        options: name them as options of a command.
    """
    names = ("--temperature", "--top-k", "--top-p") if options else ("temperature", "top_k", "top_p")
    if temperature is not None and not 0 <= temperature < inf:
        raise SpecError(f"{names[0]} is {temperature:g}; expected a finite number from 0 up; 0 always takes the likeliest token")
    if top_k is not None and top_k < 1:
        raise SpecError(f"{names[1]} is {top_k}; expected a number of tokens, at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise SpecError(f"{names[2]} is {top_p:g}; expected a share of the probability, above 0 and at most 1")
    for name, value in zip(names[1:], (top_k, top_p), strict=True):
        if value is not None and temperature is None:
            raise SpecError(f"{name} is {value:g}, but without a temperature no token is sampled. Set {names[0]} too, such as 1")


AUTO = "auto"


def resolve_device(name: str) -> str:
    """Return the name of a device; "auto" is the first of cuda, mps and cpu that this machine has. Raise as `check_device`."""
    if name == "cpu":
        return name  # without waiting for torch
    import torch

    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str) -> None:
    """Raise SpecError if this machine has no such device."""
    import torch

    known = ["cpu"]
    if torch.cuda.is_available():
        known += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        known.append("mps")
    if str(name) not in known:
        raise SpecError(f"there is no device '{name}' here; expected one of: {', '.join(known)}, {AUTO}")
