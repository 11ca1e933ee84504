"""Codecs compute in float32 on a GPU, whatever the settings of TF32 and autocast are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from emulated_cuda import CUDA, EmulatedCuda, on_cpu
from emulated_models import Twice, clip, make

from soundomni.core.full_precision import full_precision

SETTINGS = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)


@contextmanager
def rounding(*precisions: str) -> Iterator[None]:
    """With these precisions of SETTINGS."""
    before = [setting.fp32_precision for setting in SETTINGS]
    try:
        for setting, precision in zip(SETTINGS, precisions, strict=True):
            setting.fp32_precision = precision
        yield
    finally:
        for setting, precision in zip(SETTINGS, before, strict=True):
            setting.fp32_precision = precision


@pytest.mark.parametrize("precisions", [("tf32", "tf32", "tf32"), ("tf32", "ieee", "ieee"), ("ieee", "ieee", "tf32")])
def test_settings_come_back(precisions: tuple[str, ...]) -> None:
    def found() -> tuple[str, ...]:
        return tuple(setting.fp32_precision for setting in SETTINGS)

    with rounding(*precisions):
        with full_precision(CUDA):
            assert found() == ("ieee",) * 3
            with full_precision(CUDA):
                assert found() == ("ieee",) * 3
            assert found() == ("ieee",) * 3
        assert found() == precisions
        with pytest.raises(KeyError), full_precision(CUDA):
            raise KeyError
        assert found() == precisions
        with full_precision(torch.device("cpu")):
            assert found() == precisions


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """A model whose codec and encoder have convolutions."""
    return make("grouped", tmp_path_factory.mktemp("grouped"))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((on_cpu(found) - expected).abs().max() / expected.abs().max()).item()


def test_codecs_do_not_round(learned: Twice) -> None:
    with EmulatedCuda(tf32=True).running(), rounding("tf32", "tf32", "tf32"):
        own, other = learned.on_cuda().made(), learned.cpu.made()
        clips = learned.batches[0].of(own.name)
        given = clips.to("cuda")
        directly = own.codec.encode(given.waveform, given.lengths).values
        assert error(directly, other.codec.encode(clips.waveform, clips.lengths).values) > 1e-4, "the emulator rounds"
        found, expected = own.represent(given), other.represent(clips)
        assert error(found.values, expected.values) < 1e-5
        assert error(own.decode(found), other.decode(expected)) < 1e-5
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert error(own.represent(given).values, expected.values) < 1e-5


@pytest.mark.parametrize("seconds", [None, 0.2])
def test_reconstructing_does_not_round(learned: Twice, seconds: float | None) -> None:
    expected = learned.user_of(learned.cpu).reconstruct(clip(0.7), chunk_seconds=seconds).waveform
    with EmulatedCuda(tf32=True).running(), rounding("tf32", "tf32", "tf32"):
        found = learned.user_of(learned.on_cuda()).reconstruct(clip(0.7), chunk_seconds=seconds).waveform
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_spectrograms_do_not_round(learned: Twice) -> None:
    mel, given = learned.cpu.all_encoders[0].encoder.mel, torch.from_numpy(clip(0.7).waveform)
    with EmulatedCuda(tf32=True).running(), rounding("tf32", "tf32", "tf32"):
        found = mel(given.to("cuda"))
    assert error(found, mel(given)) < 1e-6
