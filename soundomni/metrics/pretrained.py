"""Networks and their preprocessing from a local directory in transformers' layout: nothing is downloaded, unpickled or
run.

Shape letters: S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from soundomni.core.errors import CheckpointError, message_of, shown, some
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.paths import place
from soundomni.core.waveform import match_channels, resample

_CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
"""Endings of names of buffers that follow from the config or are not used; a file may have them or not."""


def load_network(model_class: Any, directory: str | Path) -> Any:
    """Return `model_class` with the weights of `directory`, in evaluation mode and float32.

    Every weight must exist and fit.

    Args:
        model_class: a class of transformers, or one of its Auto classes.
        directory: folder with config.json and *.safetensors.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights belong to another network.
    """
    path = Path(directory)
    _require(path, "config.json", path / "config.json")
    _require(path, "*.safetensors", *path.glob("*.safetensors"))
    _check_type(path, model_class)
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                path, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype="float32", output_loading_info=True
            )
    except Exception as error:  # transformers raises errors of many kinds for a directory that does not fit
        raise CheckpointError(f"'{path}' cannot be loaded as {model_class.__name__}: {_shortened(error)}") from error
    problems = {
        "missing": report["missing_keys"],
        "of another shape": [found[0] if isinstance(found, tuple) else found for found in report["mismatched_keys"]],
        "unexpected": report["unexpected_keys"],
    }
    problems = {what: sorted(name for name in names if not name.endswith(_CONSTANTS)) for what, names in problems.items()}
    told = [f"{len(names)} {what} ({some(names)})" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"'{path}' holds the weights of another network than {model_class.__name__}: {'; '.join(told)}")
    return model.eval()


def load_processor(processor_class: Any, directory: str | Path) -> Any:
    """Return a transformers processor or feature extractor with the settings in `directory`. Raise CheckpointError."""
    path = Path(directory)
    try:
        with _quiet():
            return processor_class.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise CheckpointError(f"'{path}' has no settings for {processor_class.__name__}: {_shortened(error)}") from error


def windows(waveform: np.ndarray, rate: int, to_rate: int, longest: int | None) -> list[np.ndarray]:
    """Convert a clip to one channel and `to_rate`, and cut it into the fewest windows of at most `longest` samples.

    The windows are consecutive, do not overlap, and differ in length by at most one sample, so that the whole clip is
    heard and no window is only a short rest.

    Args:
        waveform: float `[C, S]`.
        rate, to_rate: in Hz.
        longest: samples at `to_rate`; None for no limit.

    Returns:
        float32 arrays `[S]`.
    """
    mono = resample(match_channels(waveform, 1), rate, to_rate)[0]
    return np.array_split(mono, 1 if longest is None else max(1, math.ceil(len(mono) / longest)))


def _check_type(path: Path, model_class: Any) -> None:
    """Raise CheckpointError for a network of another kind, for which transformers would first build random weights."""
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:  # an Auto class reads the kind from the file
        return
    kind = read_object(path / "config.json").get("model_type")
    if kind != config_class.model_type:
        told = "has no model_type" if kind is None else f"has the model_type {shown(kind)}"
        raise CheckpointError(f"'{path / 'config.json'}' {told}; expected '{config_class.model_type}'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing progress and a table of differences, which become a one-line error instead."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _require(path: Path, name: str, *files: Path) -> None:
    if not any(file.is_file() for file in files):
        what = f"has no {name}" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{place(path)} {what}; expected a network in transformers format: a directory with config.json, "
            "*.safetensors and the settings of its preprocessing"
        )


def _shortened(error: Exception) -> str:
    text = message_of(error)
    return text if len(text) <= 200 else f"{text[:200]}…"
