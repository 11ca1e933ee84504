"""What a spec declares against what the weight files next to it hold, compared before any memory is taken for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from soundomni.core.assembly.building_bounds import at_most
from soundomni.core.assembly.uninitialized import uninitialised
from soundomni.core.errors import CheckpointError, ConstructionError
from soundomni.core.pretrained.weights import differing_names
from soundomni.core.spec.registry import lock
from soundomni.core.spec.schema import Spec

OWN = "soundomni"
"""The distribution whose plugins can all be built without memory."""
REGISTERED_TWICE = 4
"""How often a parameter may be put into a layer while it is built, as by weight normalization."""


def check_declared(spec: Spec, build: Callable[[], nn.Module], shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Build a model on torch's meta device, and compare its tensors with those that files hold.

    Args:
        spec: of the model.
        build: makes it.
        shapes: name → shape of what the files hold.
        source: where they are, for errors.

    Raises:
        CheckpointError: the files hold the weights of another model.
        SpecError, PluginError: the spec is wrong, or asks for more parameters than the files hold.
    """
    try:
        with (
            torch.device("meta"),
            uninitialised(),
            at_most(REGISTERED_TWICE * len(shapes), reason=f", and '{source}' holds {len(shapes):,}"),
        ):
            model = build()
    except ConstructionError:
        if {entry["distribution"] for entry in lock(spec)} <= {OWN}:
            raise
        return  # the plugin of someone else may need memory to be built; the weights are compared again once it has it
    differing = differing_names(model.state_dict(), shapes)
    if any(differing):
        raise CheckpointError(f"'{source}' holds the weights of another model: {differing}")
