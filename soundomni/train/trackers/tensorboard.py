"""Metrics, clips and pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from soundomni.core.errors import PluginError
from soundomni.core.interfaces import Tracker
from soundomni.core.spec.load import dump_spec
from soundomni.core.spec.schema import Spec
from soundomni.data.audio import read_audio

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes event files to `run_dir/tensorboard`.

    Repeated steps of a resumed run are drawn once, and so is a run that starts over.

    Args:
        run_dir, spec: those of the run (runtime).
        flush_seconds: seconds between writes to disk.

    Raises:
        PluginError: tensorboard is not installed.
    """

    files = (f"{FOLDER}/events.out.tfevents.*",)

    def __init__(self, *, run_dir: Path, spec: Spec, flush_seconds: int = 30) -> None:
        try:
            import torch.utils.tensorboard
        except ImportError as error:
            raise PluginError("tracker 'tensorboard' needs the package tensorboard: pip install soundomni[tensorboard]") from error
        self._make = partial(torch.utils.tensorboard.SummaryWriter, str(run_dir / FOLDER), flush_secs=flush_seconds)
        self._spec = spec
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Open an event file that hides the later steps of earlier files."""
        self._writer = self._make(purge_step=step + 1 if step else 0)
        self._writer.add_text("spec", f"```yaml\n{dump_spec(self._spec)}\n```", step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_files(self, step: int, files: Sequence[Path]) -> None:
        """Add WAV files as audio, the first channel of each, and PNG files as images."""
        for path in files:
            if path.suffix == ".wav":
                waveform, rate = read_audio(path)
                self._writer.add_audio(path.stem, waveform[:1], step, sample_rate=rate)
            elif path.suffix == ".png":
                from matplotlib.image import imread

                self._writer.add_image(path.stem, imread(path), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and end."""
        if self._writer is not None:
            self._writer.close()
