"""How a step ends if it does not pass."""

from __future__ import annotations


class Failed(Exception):
    """A condition of a step does not hold, in plain words."""


class NoGPU(Exception):
    """A step for a GPU runs on a machine without one."""
