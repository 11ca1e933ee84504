"""Load a chain whose stages may be run directories."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from soundomni.core.errors import SpecError
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

    Args:
        directory, overrides, device: as for `Chain.from_pretrained`; overrides apply to model directories only.
        trust_class_paths: let the specs of runs name classes by import path.

    Raises:
        CheckpointError, SpecError: as for `Chain.from_pretrained` and `load_run`.
    """
    return Chain.load(directory, partial(_load, trust_class_paths=trust_class_paths), overrides=overrides, device=device)


def _load(path: Path, *, overrides: Mapping[str, str], device: str | torch.device, trust_class_paths: bool) -> SoundOmni:
    if not is_run(path):
        return SoundOmni.from_pretrained(path, overrides=overrides, device=device)
    if overrides:
        raise SpecError(f"{min(overrides)} cannot be changed in the run '{path}'. Export it, and name the model directory as the stage")
    model, _ = load_run(path, trust_class_paths=trust_class_paths)
    model.model.to(device)
    model.max_tokens = trained_max_tokens(model.spec)
    return model
