"""Mel filters against those of transformers."""

import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from soundomni.core.mel_filters import mel_filters

SIZES = [(80, 400, 16000), (64, 1024, 44100), (12, 64, 8000), (40, 512, 1500)]


@pytest.mark.parametrize(("num_mels", "n_fft", "rate"), SIZES)
def test_slaney_filters_are_those_of_transformers_to_the_last_bit(num_mels: int, n_fft: int, rate: int) -> None:
    theirs = mel_filter_bank(n_fft // 2 + 1, num_mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    ours = mel_filters(num_mels=num_mels, n_fft=n_fft, sample_rate=rate, scale="slaney")
    assert (ours.astype("float32") == theirs.T.astype("float32")).all()


@pytest.mark.parametrize(("num_mels", "n_fft", "rate"), SIZES)
def test_htk_filters_are_those_of_transformers(num_mels: int, n_fft: int, rate: int) -> None:
    theirs = mel_filter_bank(n_fft // 2 + 1, num_mels, 0.0, rate / 2, rate, norm=None, mel_scale="htk")
    ours = mel_filters(num_mels=num_mels, n_fft=n_fft, sample_rate=rate, scale="htk")
    np.testing.assert_allclose(ours, theirs.T, atol=1e-9)


def test_filters_of_a_band_are_those_of_transformers() -> None:
    theirs = mel_filter_bank(257, 16, 200.0, 520.0, 8000, norm=None, mel_scale="htk")
    ours = mel_filters(num_mels=16, n_fft=512, sample_rate=8000, scale="htk", frequencies=(200.0, 520.0))
    np.testing.assert_allclose(ours, theirs.T, atol=1e-9)
