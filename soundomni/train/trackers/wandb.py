"""Metrics, clips and pictures for Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from soundomni.core.errors import PluginError
from soundomni.core.interfaces import Tracker
from soundomni.core.spec.load import spec_to_dict
from soundomni.core.spec.schema import Spec

ID_FILE = "wandb-id"


class WandbTracker(Tracker):
    """Logs to a run of Weights & Biases: the same one whenever the training run is resumed, and a new one when it
    starts over.

    Args:
        run_dir, spec: those of the run (runtime).
        project: project in the service.
        entity: user or team; None for the account's own.
        name: name of the run; None for the run directory's name.
        mode: "online", "offline" (files for `wandb sync`), or "disabled".

    Raises:
        PluginError: wandb is not installed.
    """

    files = (ID_FILE,)  # the folder wandb stays: its runs do not mix, and some may not be uploaded yet

    def __init__(
        self,
        *,
        run_dir: Path,
        spec: Spec,
        project: str = "soundomni",
        entity: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise PluginError("tracker 'wandb' needs the package wandb: pip install soundomni[wandb]") from error
        self._wandb: Any = wandb
        self._id_file = run_dir / ID_FILE
        self._settings: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "name": name or run_dir.name,
            "mode": mode,
            "dir": str(run_dir),
            "config": spec_to_dict(spec),
        }
        self._run: Any = None

    def begin(self, step: int) -> None:
        """Open the service's run: a new one for a new run, or else the one used before."""
        if step == 0 or not self._id_file.exists():
            self._id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = self._wandb.init(id=self._id_file.read_text(encoding="utf-8"), resume="allow", **self._settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log scalars."""
        self._run.log(dict(metrics), step=step)

    def log_files(self, step: int, files: Sequence[Path]) -> None:
        """Log WAV files as audio and PNG files as images."""
        make = {".wav": self._wandb.Audio, ".png": self._wandb.Image}
        media = {f"{path.stem}{path.suffix}": make[path.suffix](str(path)) for path in files if path.suffix in make}
        self._run.log(media, step=step)

    def close(self) -> None:
        """Upload what is left and end."""
        if self._run is not None:
            self._run.finish()
