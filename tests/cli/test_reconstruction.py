"""`reconstruct` and `evaluate` report how clips come back through a codec at its rate and at the file's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main
from soundomni.core.waveform import Audio


def tones(rate: int, *parts: tuple[float, float], channels: int = 1, seconds: float = 0.5) -> Audio:
    """A sum of sines of (frequency, amplitude)."""
    time = np.arange(round(rate * seconds)) / rate
    waveform = sum(amplitude * np.sin(2 * np.pi * hertz * time) for hertz, amplitude in parts)
    return Audio(np.repeat(np.asarray(waveform, np.float32)[None], channels, axis=0), rate)


def test_reconstruct_reports_both_rates(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    for name, clip in (("high", tones(44100, (500.0, 0.2), (9000.0, 0.2))), ("low", tones(8000, (500.0, 0.2)))):
        soundfile.write(tmp_path / f"{name}.wav", clip.waveform.T, clip.sample_rate)
    paths = [tmp_path / "high.wav", tmp_path / "low.wav"]
    high, low = result("reconstruct", *paths, "--model", tiny_model, "--out", tmp_path / "out")["files"]
    assert (high["file_sample_rate"], high["codec_sample_rate"], low["file_sample_rate"]) == (44100, 8000, 8000)
    assert high["si_sdr"] > 50 and abs(high["si_sdr_file"]) < 1 and high["energy_above"] == pytest.approx(0.5, abs=0.01)
    assert low["si_sdr"] == low["si_sdr_file"] and low["energy_above"] == 0.0


def test_evaluate_names_the_rates_and_what_the_codec_leaves_out(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, rate in enumerate((44100, 44100, 8000)):
        soundfile.write(tmp_path / f"{i}.wav", tones(rate, (500.0, 0.2), (0.4 * rate, 0.2)).waveform.T, rate)
    dataset = f"{{class_path: audio-folder, init_args: {{path: '{tmp_path}', captions: false}}}}"
    assert main(["evaluate", "--model", str(tiny_model), "--dataset", dataset]) == 0
    out = capsys.readouterr().out
    assert "the codec is at 8000 Hz and keeps 0-4000 Hz; files: 1 at 8000 Hz, 2 at 44100 Hz" in out
    rows = {row.split()[1]: row.split() for row in out.splitlines() if row.startswith("reconstructed  ")}
    assert float(rows["si_sdr"][2]) > 50 > float(rows["si_sdr_file"][2]) and rows["energy_above"][2:4] == ["33.3", "%"]
