"""Audio files that commands read and write: which ones can be used, their format, and what commands say about them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add `--format`."""
    from soundomni.data.audio_formats import DEFAULT_FORMAT, FORMATS

    *first, last = (f"{name} ({kind.described})" for name, kind in FORMATS.items())
    known = f"{', '.join(first)} or {last}"
    parser.add_argument(
        "--format",
        default=DEFAULT_FORMAT,
        metavar="FORMAT",
        help=f"format of the audio files: {known}; mp3 only allows some sample rates from 8000 to 48000 Hz, and nothing is "
        f"resampled to fit (default: {DEFAULT_FORMAT})",
    )


def check_model_format(name: str, model: SoundOmni | Chain, *, of: str | None = None) -> None:
    """Raise DataError, before any clip is made, if a format cannot hold the output of the codec of a modality."""
    from soundomni.data.audio_formats import check_format

    made = next(one for one in model.abilities().made if of in (None, one.name))
    check_format(name, sample_rate=made.sample_rate, channels=made.channels)


def say_gain(path: Path, gain: float, *, kept: bool = False) -> None:
    """Say on stderr that a file was written quieter than it was made, if it was."""
    from soundomni.cli.console import note

    if gain < 1.0:
        parts = ", including the kept parts" if kept else ""
        note(f"{path}: exceeded full scale; saved {-20 * math.log10(gain):.1f} dB quieter{parts}")


class Failures:
    """Files that could not be used: stderr names each at once, and the command continues with the others.

    Args:
        given: how many files there are in all.
    """

    def __init__(self, given: int) -> None:
        self._given = given
        self.found: list[dict[str, str]] = []

    def add(self, file: str | Path, error: Exception) -> None:
        """Name a file and what is wrong with it. Errors that do not name the file get its name."""
        from soundomni.cli.console import note
        from soundomni.core.errors import message_of

        name, text = " ".join(str(file).split()), message_of(error)
        text = text if name in text else f"'{name}': {text}"
        self.found.append({"file": str(file), "error": text})
        note(f"soundomni: error: {text}")

    @property
    def status(self) -> int:
        """Exit status: 0 if every file was used, 1 if some were not, 2 if none was."""
        return 0 if not self.found else 1 if len(self.found) < self._given else 2

    def reported(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return a command's result with the failures, and with "error" if no file could be used."""
        if self.status < 2:
            return {**result, "failures": self.found}
        error = self.found[0]["error"] if self._given == 1 else f"none of the {self._given} files could be used"
        return {"error": error, **result, "failures": self.found}


def usable(files: Sequence[str], failures: Failures) -> dict[int, Path]:
    """Return the files whose headers can be read, each at its place among those given: a mistyped name is found before
    a model is loaded for it.
    """
    from soundomni.cli.folders import input_file
    from soundomni.core.errors import DataError
    from soundomni.data.audio import audio_info

    found: dict[int, Path] = {}
    for place, given in enumerate(files):
        try:
            file = input_file(given)
            audio_info(file)
        except (DataError, OSError) as error:
            failures.add(given, error)
        else:
            found[place] = file
    return found
