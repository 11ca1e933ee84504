"""What a run says about its data and its latents before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_spec import tiny_spec

from soundomni.cli.main import main
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.train.export import load_run
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


def spread_lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "standard deviation" in line]


def test_latents_of_another_spread_than_the_noise_are_told_once_with_what_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Clips of noise that are all alike, some of them longer than what is measured."""
    root = tmp_path / "sounds"
    root.mkdir()
    noise = np.random.default_rng(0).standard_normal(8000)
    for i in range(9):
        soundfile.write(root / f"{i}.wav", 0.1 * noise, 8000, subtype="FLOAT")
        (root / f"{i}.txt").write_text("noise")
    source = f"{{source: {{class_path: audio-folder, init_args: {{path: {root}}}}}, tasks: {{generate: 1}}}}"
    data = ("data.datasets.toys=null", f"data.datasets.mine={source}", "train.steps=1", "model.tokenizer.vocab_size=261")
    plain = (*data, "model.normalize=none")
    run_training(tiny_spec(tmp_path / "run", *plain))
    (line,) = spread_lines(capfd)
    codec = build("codec", Slot("mdct", {"sample_rate": 8000, "frame_size": 64}))
    wave = torch.from_numpy(0.1 * noise.astype(np.float32))[None, None]
    expected = float(codec.encode(wave, torch.tensor([8000])).values.std(correction=0))
    assert line == (
        f"warning: the latents of 'latent' have a standard deviation of {expected:.3g}; expected about 1, like the noise. "
        "Set model.normalize to global, which divides all latents by one number, or to channel"
    )
    run_training(tiny_spec(tmp_path / "run", *plain, "train.steps=2"))
    assert spread_lines(capfd) == [], "a resumed run has been told"
    run_training(tiny_spec(tmp_path / "global", *data, "model.normalize=global"))
    assert spread_lines(capfd) == []
    start = load_run(tmp_path / "global")[0].save_pretrained(tmp_path / "start")
    for i in range(9):
        soundfile.write(root / f"{i}.wav", 0.9 * noise, 8000, subtype="FLOAT")
    spec = tiny_spec(tmp_path / "louder", *data, "model.normalize=global")
    run_training(replace(spec, model=replace(spec.of_model, start=str(start))))
    (other,) = spread_lines(capfd)
    assert "have a standard deviation of 9; expected about 1" in other and "They were normalized for other data" in other
    for i in range(9):
        soundfile.write(root / f"{i}.wav", 0.1 * noise, 8000, subtype="FLOAT")
    command = ["encode", str(root), "--codec", "{class_path: mdct, init_args: {sample_rate: 8000, frame_size: 64}}"]
    assert main([*command, "--out", str(tmp_path / "encoded")]) == 0
    source = f"{{source: {{class_path: encoded, init_args: {{path: {tmp_path / 'encoded'}}}}}, tasks: {{generate: 1}}}}"
    run_training(tiny_spec(tmp_path / "of-latents", *plain, f"data.datasets.mine={source}"))
    assert spread_lines(capfd) == [line], "latents that were encoded before have the same spread"


def test_codes_have_no_spread(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    harmonic = "{class_path: harmonic-codes, init_args: {sample_rate: 8000, frame_size: 128, num_codebooks: 2, codebook_size: 8}}"
    codes = (f"model.codec={harmonic}", "model.connectors.latent=codes", "model.objective=masked", "sampler=maskgit", "train.steps=1")
    run_training(tiny_spec(tmp_path / "run", *codes))
    assert spread_lines(capfd) == []
