"""Distances between waveforms have their closed forms, and equal scipy and torchaudio."""

import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio

from soundomni.metrics.waveform_distances import magnitudes, mel_distance, multi_resolution_stft_distance, si_sdr, spectral_convergence


def test_si_sdr_of_orthogonal_noise() -> None:
    time = np.arange(800) / 800
    signal, error = np.sin(2 * np.pi * 10 * time), np.cos(2 * np.pi * 10 * time)
    for ratio in (-5.0, 0.0, 30.0):
        estimate = signal + error * 10 ** (-ratio / 20)
        assert si_sdr(signal, estimate) == pytest.approx(ratio, abs=1e-9)
        assert si_sdr(signal, -3.0 * estimate) == pytest.approx(ratio, abs=1e-9)
    both = si_sdr(np.stack([signal, signal]), np.stack([signal + 0.1 * error, signal + 0.01 * error]))
    assert both == pytest.approx((20 + 40) / 2)


def test_si_sdr_at_the_edges() -> None:
    ramp = np.arange(1.0, 5.0)
    assert si_sdr(ramp, 2 * ramp) == np.inf
    assert np.isnan(si_sdr(np.zeros(4), ramp))
    assert si_sdr(ramp, np.zeros(4)) == -np.inf
    assert si_sdr(ramp, np.array([4.0, -3.0, 2.0, -1.0])) < -10
    with pytest.raises(ValueError, match="expected the same non-empty shape"):
        si_sdr(np.zeros((1, 4)), np.zeros((2, 4)))


def test_magnitudes_equal_scipy() -> None:
    signal = np.random.default_rng(0).standard_normal((2, 700))
    ours = magnitudes(signal, 128, 32)
    _, _, reference = scipy.signal.stft(signal, nperseg=128, noverlap=96, boundary="zeros", padded=True)
    frames = min(ours.shape[-1], reference.shape[-1])
    np.testing.assert_allclose(ours[..., :frames], 2 * np.abs(reference)[..., :frames], atol=1e-12)
    time = np.arange(2048) / 2048
    assert magnitudes(0.3 * np.sin(2 * np.pi * 128 * time)[None], 256, 64)[0, 16, 10] == pytest.approx(0.3)


def test_stft_distance_closed_forms() -> None:
    signal = np.random.default_rng(0).standard_normal((2, 5000))
    assert multi_resolution_stft_distance(signal, signal) == 0.0
    assert multi_resolution_stft_distance(signal, -signal) == pytest.approx(0.0, abs=1e-12)  # phase is not compared
    # half the level: a convergence of 1/2, and log 2 everywhere
    assert multi_resolution_stft_distance(signal, signal / 2) == pytest.approx(0.5 + np.log(2), rel=1e-3)
    silence = np.zeros((1, 3))
    assert np.isnan(multi_resolution_stft_distance(silence, silence)) and np.isnan(multi_resolution_stft_distance(silence, silence + 1e-4))
    assert multi_resolution_stft_distance(np.eye(1, 3, 2), silence) > 1.0  # one click at the end is no silence


def test_stft_distance_equals_torch_in_float64() -> None:
    rng = np.random.default_rng(3)
    reference = rng.standard_normal((2, 3001)) * np.linspace(0, 1, 3001)
    estimate = 0.7 * reference + 0.2 * rng.standard_normal((2, 3001))
    wanted = 0.0
    for size in (64, 256):
        window = torch.hann_window(size, dtype=torch.float64)
        true, other = (
            2
            / window.sum()
            * torch.stft(torch.from_numpy(one), size, size // 4, window=window, pad_mode="constant", return_complex=True).abs()
            for one in (reference, estimate)
        )
        wanted += float((true - other).norm() / true.norm() + (true.clamp_min(1e-5).log() - other.clamp_min(1e-5).log()).abs().mean()) / 2
    assert multi_resolution_stft_distance(reference, estimate, fft_sizes=(64, 256)) == pytest.approx(wanted, rel=1e-9)


def test_spectral_convergence_closed_forms() -> None:
    signal = np.random.default_rng(0).standard_normal((2, 5000))
    assert spectral_convergence(signal, signal) == 0.0
    assert spectral_convergence(signal, -signal / 4) == pytest.approx(0.75)  # phase is not compared
    assert spectral_convergence(signal, np.zeros_like(signal)) == 1.0
    time = np.arange(8000) / 8000
    low, high = np.sin(2 * np.pi * 500 * time), np.sin(2 * np.pi * 2000 * time)
    assert spectral_convergence(low, high) == pytest.approx(np.sqrt(2), rel=0.02)  # none of it, and as much of something else
    assert np.isnan(spectral_convergence(np.zeros(9), np.ones(9)))
    with pytest.raises(ValueError, match="the same non-empty shape"):
        spectral_convergence(low, low[:-1])


def test_mel_distance_closed_forms() -> None:
    signal = np.random.default_rng(0).standard_normal((1, 4000))
    assert mel_distance(signal, signal, 8000) == 0.0
    assert mel_distance(signal, signal / 10, 8000, num_mels=20) == pytest.approx(20.0, abs=1e-6)
    louder_left = np.concatenate([signal, signal])
    assert mel_distance(louder_left, louder_left * [[0.5], [1.0]], 8000, num_mels=20) == pytest.approx(10 * np.log10(2), abs=1e-6)


def test_mel_distance_equals_torchaudio() -> None:
    rng = np.random.default_rng(1)
    one, two = rng.standard_normal((2, 1, 3000))
    window = float(np.hanning(513)[:-1].sum())
    transform = torchaudio.transforms.MelSpectrogram(8000, n_fft=512, hop_length=128, n_mels=20, power=2.0, pad_mode="constant").double()
    levels = [10 * torch.log10(transform(torch.from_numpy(signal)) * (2 / window) ** 2) for signal in (one, two)]
    assert mel_distance(one, two, 8000, num_mels=20, fft_size=512) == pytest.approx(float((levels[0] - levels[1]).abs().mean()), rel=1e-6)
