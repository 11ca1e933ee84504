"""Directories that transformers' `save_pretrained` writes, for imports that never unpickle anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from soundomni.core.errors import CheckpointError, some
from soundomni.core.files.names import CONFIG_FILE
from soundomni.core.pretrained.foreign_weights import PICKLE_SUFFIXES, WeightFile, read_weights
from soundomni.vae.checkpoints.codec_directory import WEIGHTS_FILE
from soundomni.vae.weight_norm import DIRECTION, MAGNITUDE

LAYOUT = "transformers"
PICKLES = (*PICKLE_SUFFIXES, ".th")
"""Ends of the names of files that may be pickles."""
OLDER_NAMES: Mapping[str, str] = {r"\.weight_g$": f".{MAGNITUDE}", r"\.weight_v$": f".{DIRECTION}"}
"""How older files spell weight norm, as a pattern → its name now."""


def find_weights(directory: Path, model: str) -> WeightFile:
    """Return the weights of a directory.

    Args:
        directory: a directory with config.json and model.safetensors.
        model: name of the class in transformers that wrote it, for errors.

    Raises:
        CheckpointError: it is not such a directory, only has pickles, or its weights are damaged.
    """
    expected = f"a directory with {CONFIG_FILE} and {WEIGHTS_FILE}, as transformers' {model}.save_pretrained writes it"
    if not directory.is_dir():
        what = "is a pickle, and pickles can run code" if directory.suffix in PICKLES else "is not a directory"
        raise CheckpointError(f"'{directory}' {what}; expected {expected}")
    if (directory / WEIGHTS_FILE).exists():
        return read_weights(directory / WEIGHTS_FILE)
    names = sorted(entry.name for entry in directory.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(
            f"'{directory / pickles[0]}' is a pickle, and pickles can run code; expected {WEIGHTS_FILE} next to it. If you trust it, load "
            f"it with transformers' {model}.from_pretrained and write it with save_pretrained"
        )
    raise CheckpointError(f"no {WEIGHTS_FILE} in '{directory}': expected {expected}; it holds {some(names) or 'no file'}")
