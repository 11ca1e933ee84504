"""Compare what a spec declares with what the weight files next to it hold, before any memory is allocated for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from soundomni.core.assembly.building_bounds import at_most
from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError, ConstructionError, amount
from soundomni.core.pretrained.weights import differing_names
from soundomni.core.spec.registry import lock
from soundomni.core.spec.schema import Spec

OWN = "soundomni"
"""The distribution whose plugins can all be built without memory."""
REGISTERED_TWICE = 4
"""How often a parameter may be assigned to a layer while it is built, for example by weight normalization."""


def check_declared(spec: Spec, build: Callable[[], nn.Module], shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Build a model on torch's meta device, and compare its tensors with those in files.

    Args:
        spec: spec of the model.
        build: function that makes the model.
        shapes: name → shape of the tensors in the files.
        source: where the files are, for errors.

    Raises:
        CheckpointError: the files hold the weights of another model.
        SpecError, PluginError: the spec is wrong, or asks for more parameters than the files hold.
    """
    try:
        with (
            without_memory(),
            at_most(
                REGISTERED_TWICE * len(shapes),
                reason=f", but '{source}' only holds {amount(len(shapes), 'tensor')}",
                cure="Use the weights that belong to this spec",
            ),
        ):
            model = build()
    except ConstructionError:
        if {entry["distribution"] for entry in lock(spec)} <= {OWN}:
            raise
        return  # a third-party plugin may need memory to be built; the weights are compared again once it has been
    differing = differing_names(model.state_dict(), shapes)
    if any(differing):
        raise CheckpointError(f"'{source}' holds the weights of another model: {differing}")
