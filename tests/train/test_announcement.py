"""What a run says about its data before its first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_spec import tiny_spec

from soundomni.train.run import run_training


def test_a_run_begins_with_sums_and_names_no_clip_of_them_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "sounds"
    root.mkdir()
    for i in range(12):
        soundfile.write(root / f"{i:02}.wav", 0.3 * np.sin(2 * np.pi * 500 * np.arange(6400 + 9600 * (i < 4)) / 16000), 16000)
        (root / f"{i:02}.txt").write_text("a tone")
    (root / "x.wma").write_bytes(b"")
    source = f"{{class_path: audio-folder, init_args: {{path: {root}}}}}"
    entry = f"{{source: {source}, tasks: {{generate: 1, describe: 1}}, max_seconds: 0.5}}"
    run = run_training(tiny_spec(tmp_path / "run", "data.datasets.toys=null", f"data.datasets.mine={entry}", "train.steps=2"))
    assert run.finished
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("data ", "  "))]
    assert lines[0] == (
        "data 'mine': 12 of 13 clips are used; left out: 1 in WMA, which cannot be read; used in part: 4 longer than 0.5 s for describe"
    )
    assert lines[1].startswith("  longer than 0.5 s for describe, such as '00.wav': it lasts 1.00 s") and len(lines) == 3
    assert lines[2].startswith(
        "data 'mine': files are at 16000 Hz (12); the codec works at 8000 Hz and keeps 0-4000 Hz, 100% of their energy"
    )
    assert not [record for record in caplog.records if "refused" in record.getMessage()]
