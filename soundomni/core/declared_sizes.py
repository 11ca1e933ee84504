"""What a model directory declares against what its weight files hold, compared before any memory is taken for it."""

from __future__ import annotations

from pathlib import Path

import torch

from soundomni.core.assembly import build_model
from soundomni.core.building_bounds import at_most
from soundomni.core.errors import CheckpointError, ConstructionError
from soundomni.core.model_weights import differing_names, weight_shapes
from soundomni.core.registry import lock
from soundomni.core.schema import Spec
from soundomni.core.uninitialised import uninitialised

OWN = "soundomni"
"""The distribution whose plugins can all be built without memory."""
REGISTERED_TWICE = 4
"""How often a parameter may be put into a layer while it is built, as by weight normalisation."""


def check_declared(spec: Spec, directory: Path, *, vocab_size: int) -> None:
    """Build the model of a directory on torch's meta device, and compare its tensors with the headers of the weight files.

    Args:
        spec: of the directory.
        directory: with the weights.
        vocab_size: of its tokenizer.

    Raises:
        CheckpointError: the weights are missing, damaged or those of another model.
        SpecError, PluginError: the spec is wrong, or asks for more parameters than the files hold.
    """
    shapes = weight_shapes(directory)
    try:
        with (
            torch.device("meta"),
            uninitialised(),
            at_most(REGISTERED_TWICE * len(shapes), reason=f", and '{directory}' holds {len(shapes):,} tensors"),
        ):
            model = build_model(spec.model, vocab_size=vocab_size)
    except ConstructionError:
        if {entry["distribution"] for entry in lock(spec)} <= {OWN}:
            raise
        return  # the plugin of someone else may need memory to be built; the weights are compared again once it has it
    differing = differing_names(model.state_dict(), shapes)
    if any(differing):
        raise CheckpointError(f"'{directory}' holds the weights of another model: {differing}")
