"""A spec of a tiny model that starts from another, and a way to run it as a program.

Run as `python tiny_student.py MODEL RUN_DIR [KEY=VALUE ...]`, plain or under torchrun.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_spec import TEXT

from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.spec import yaml_text
from soundomni.core.spec.schema import Spec
from soundomni.train.run import run_training

REST = {key: value for key, value in yaml_text.parse(TEXT, "TEXT").items() if key in ("data", "train")}


def spec_from(start: Path | str, run_dir: Path, *overrides: str) -> Spec:
    """Return the tiny spec with the model of `start` and dotted overrides."""
    pairs = [("model.start", str(start)), ("train.run_dir", str(run_dir)), *(tuple(text.split("=", 1)) for text in overrides)]
    return load_spec_with_start([REST], pairs)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(run_training(spec_from(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])).exit_status)
