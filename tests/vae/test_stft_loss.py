"""The spectral distance against its formula through scipy's FFT, and what it must not do."""

import numpy as np
import pytest
import torch

from soundomni.vae import stft_distances
from soundomni.vae.stft_loss import MAGNITUDE_FLOOR


def reference(x: np.ndarray, y: np.ndarray, windows: tuple[int, ...]) -> float:
    """One mono clip in float64, frame by frame."""
    out = []
    for size in windows:
        hop, n = size // 4, np.arange(size)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * n / size)
        window /= np.linalg.norm(window)

        def magnitudes(signal, hop=hop, size=size, window=window):
            padded = np.pad(signal, size // 2)
            frames = [padded[t * hop : t * hop + size] * window for t in range(len(signal) // hop + 1)]
            return np.sqrt(np.abs(np.fft.rfft(frames)) ** 2 + MAGNITUDE_FLOOR**2)

        a, b = magnitudes(x), magnitudes(y)
        out.append(np.linalg.norm(a - b) / np.linalg.norm(a) + np.abs(np.log(a) - np.log(b)).mean())
    return float(np.mean(out))


def test_equals_the_formula_clip_by_clip():
    rng = np.random.default_rng(0)
    lengths, windows = [300, 90, 211], (128, 64, 32)
    x, y = torch.zeros(2, 3, 1, 300, dtype=torch.float64).unbind(0)
    for i, n in enumerate(lengths):
        x[i, 0, :n], y[i, 0, :n] = torch.from_numpy(rng.standard_normal((2, n)))
    distances, counted = stft_distances(x, y, torch.tensor(lengths), windows)
    for i, n in enumerate(lengths):
        fitting = tuple(w for w in windows if w <= n)
        assert distances[i].item() == pytest.approx(reference(x[i, 0, :n].numpy(), y[i, 0, :n].numpy(), fitting), rel=1e-5)
    assert counted.all()


def test_a_stereo_clip_is_compared_in_four_views():
    x, y = torch.randn(2, 1, 2, 256, dtype=torch.float64).unbind(0)
    lengths = torch.tensor([256])
    stereo, _ = stft_distances(x, y, lengths, (64,))
    views = [lambda w: w[:, :1] + w[:, 1:], lambda w: w[:, :1] - w[:, 1:], lambda w: w[:, :1], lambda w: w[:, 1:]]
    mono = [stft_distances(view(x), view(y), lengths, (64,))[0] for view in views]
    torch.testing.assert_close(stereo, torch.stack(mono).mean(0))


def test_no_distance_to_itself_and_finite_gradients_there_and_at_silence():
    for signal in (torch.randn(1, 1, 256), torch.zeros(1, 1, 256)):
        estimate = signal.clone().requires_grad_()
        distance, counted = stft_distances(signal, estimate, torch.tensor([256]), (64, 32))
        assert distance.item() == pytest.approx(0.0, abs=1e-6) and counted.all()
        distance.sum().backward()
        assert estimate.grad.isfinite().all()


def test_silence_is_not_infinitely_far():
    noise = torch.randn(1, 1, 256)
    to_silence, _ = stft_distances(torch.zeros_like(noise), 1e-3 * noise, torch.tensor([256]), (64,))
    assert 0.5 < to_silence.item() < 5


def test_a_clip_shorter_than_every_window_does_not_count():
    x, y = torch.zeros(2, 1, 64), torch.zeros(2, 1, 64)
    x[1] = torch.randn(1, 64)
    distances, counted = stft_distances(x, y, torch.tensor([20, 64]), (64, 32))
    assert counted.tolist() == [False, True] and distances[0] == 0 and distances[1] > 0
    assert not stft_distances(x, y, torch.tensor([20, 20]), (128,))[1].any()
