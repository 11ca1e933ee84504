"""Load a chain; if it is a spec, its stages may be run directories."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from soundomni.core.errors import SpecError
from soundomni.core.inference.inputs import as_directory
from soundomni.core.pretrained.chain import Chain
from soundomni.core.pretrained.directory import is_run, trained_max_tokens
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.train.export import load_run


def load_chain(
    directory: str | Path,
    *,
    overrides: Mapping[str, object] | None = None,
    device: str | torch.device = "cpu",
    trust_class_paths: bool = False,
) -> Chain:
    """Load a chain as `Chain.from_pretrained` does; of a run directory, take the averaged weights of the newest checkpoint.

    Only a spec may name runs. A directory with a chain may come from anybody, so each of its stages is loaded with the checks of a model
    directory, and never with classes named by import path.

    Args:
        directory, overrides, device: as for `Chain.from_pretrained`; overrides apply to model directories only.
        trust_class_paths: let the specs of runs name classes by import path.

    Raises:
        CheckpointError, SpecError: as for `Chain.from_pretrained` and `load_run`.
    """
    if Path(as_directory("the chain", directory)).is_dir():
        return Chain.from_pretrained(directory, overrides=overrides, device=device)
    return Chain.load(directory, partial(_load, trust_class_paths=trust_class_paths), overrides=overrides, device=device)


def _load(directory: Path, *, overrides: Mapping[str, str], device: str | torch.device, trust_class_paths: bool) -> SoundOmni:
    if not is_run(directory):
        return SoundOmni.from_pretrained(directory, overrides=overrides, device=device)
    if overrides:
        raise SpecError(
            f"{min(overrides)} cannot be changed in the run '{directory}'. Export it, and name the model directory as the stage"
        )
    model, _ = load_run(directory, trust_class_paths=trust_class_paths)
    model.model.to(device)
    model.max_tokens = trained_max_tokens(model.spec)
    return model
