"""Phases from magnitudes: each round is the formula in float64, and the result is at least as good as torchaudio's."""

import numpy as np
import pytest
import torch
import torchaudio
from torch import Tensor

from soundomni.vae.griffin_lim import PERIOD, STEP, griffin_lim, reach

RATE = 8000


def spectra(samples: Tensor, window: Tensor, hop: int) -> Tensor:
    """Spectra `[N, T, F]` of `[N, S]`, frame t centered on sample t·hop, with silence around."""
    padded = torch.nn.functional.pad(samples, (len(window) // 2, len(window)))
    return torch.fft.rfft(padded.unfold(-1, len(window), hop)[:, : samples.shape[-1] // hop + 1] * window)


def clips() -> Tensor:
    """A chord that fades, a click, and noise, `[3, 4096]`."""
    time, rng = torch.arange(4096, dtype=torch.float64) / RATE, torch.Generator().manual_seed(0)
    chord = sum(torch.sin(2 * torch.pi * hertz * time) for hertz in (220, 550, 1300)) * torch.exp(-6 * time)
    click = torch.zeros_like(time)
    click[2000:2010] = 1.0
    return torch.stack([chord, click, 0.3 * torch.randn(4096, dtype=torch.float64, generator=rng)])


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize(("width", "hop", "count"), [(16, 4, 9), (13, 5, 7), (10, 5, 6)])
def test_rounds_are_the_formula(width: int, hop: int, count: int, rounds: int) -> None:
    """The reference adds frames up in loops over samples, in NumPy."""
    rng = np.random.default_rng(1)
    magnitudes = rng.uniform(0.1, 1.0, (count, width // 2 + 1))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    phases = np.exp(2j * np.pi * np.random.Generator(np.random.Philox(0)).random((PERIOD, width // 2 + 1))[:count])
    last, size = None, (count - 1) * hop
    for left in range(rounds, -1, -1):
        added, total = np.zeros(size), np.zeros(size)
        for frame in range(count):
            shape = np.fft.irfft(magnitudes[frame] * phases[frame], n=width) * window
            for n in range(width):
                place = frame * hop - width // 2 + n
                if 0 <= place < size:
                    added[place] += shape[n]
                    total[place] += window[n] ** 2
        samples = added / total
        if left:
            padded = np.concatenate([np.zeros(width), samples, np.zeros(2 * width)])
            starts = [width + frame * hop - width // 2 for frame in range(count)]
            found = np.stack([np.fft.rfft(padded[start : start + width] * window) for start in starts])
            ahead = found if last is None else (1 + STEP) * found - STEP * last  # t = c + α·(c − c before)
            phases, last = np.exp(1j * np.angle(ahead)), found
    made = griffin_lim(torch.from_numpy(magnitudes)[None], torch.tensor([count]), torch.from_numpy(window), hop=hop, rounds=rounds)
    np.testing.assert_allclose(made[0].numpy(), samples, atol=1e-10)


@pytest.mark.parametrize("rounds", [8, 32, 100])
def test_spectra_converge_as_well_as_with_torchaudio(rounds: int) -> None:
    """First phases decide a tenth of the distance, so torchaudio draws its own several times."""
    window, hop = torch.hann_window(512, dtype=torch.float64), 128
    wanted = spectra(clips(), window, hop).abs()

    def distance(made: Tensor) -> float:
        inner = slice(4, -4)  # torchaudio does not take silence to be around the clip
        return float((spectra(made, window, hop).abs() - wanted)[:, inner].norm() / wanted[:, inner].norm())

    theirs = []
    for seed in range(4):
        torch.manual_seed(seed)
        made = torchaudio.functional.griffinlim(wanted.transpose(1, 2), window, 512, hop, 512, 1.0, rounds, STEP, None, True)
        theirs.append(distance(made))
    ours = distance(griffin_lim(wanted, torch.full((3,), wanted.shape[1]), window, hop=hop, rounds=rounds))
    assert ours <= 1.05 * np.mean(theirs), (ours, theirs)


def test_phases_of_a_real_sound_are_found() -> None:
    """Phases are found whose spectra match those of a real signal."""
    window, hop = torch.hann_window(128, dtype=torch.float64), 16
    time = torch.arange(1600, dtype=torch.float64) / RATE
    clip = (torch.sin(2 * torch.pi * 500 * time) * torch.hann_window(1600, dtype=torch.float64))[None]
    wanted = spectra(clip, window, hop).abs()
    found = griffin_lim(wanted, torch.tensor([101]), window, hop=hop, rounds=200)
    assert float((spectra(found, window, hop).abs() - wanted).norm() / wanted.norm()) < 0.05


def test_single_precision_gives_what_double_precision_does() -> None:
    """Rounding would grow with every round, if they were computed as they are given."""
    window, hop = torch.hann_window(256, dtype=torch.float64), 64
    wanted = spectra(clips(), window, hop).abs().float()
    frames = torch.full((3,), wanted.shape[1])
    single = griffin_lim(wanted, frames, window.float(), hop=hop, rounds=32)
    torch.testing.assert_close(single, griffin_lim(wanted.double(), frames, window.float().double(), hop=hop, rounds=32), rtol=0, atol=0)


def test_pieces_that_begin_at_a_period_are_those_of_the_whole() -> None:
    window, hop, rounds = torch.hann_window(32, dtype=torch.float64), 8, 5
    rng = torch.Generator().manual_seed(2)
    wanted = torch.rand(1, 2 * PERIOD + 40, 17, generator=rng, dtype=torch.float64)
    samples = griffin_lim(wanted, torch.tensor([wanted.shape[1]]), window, hop=hop, rounds=rounds)[0]
    far = reach(32, hop, rounds) * hop
    for start, same in ((PERIOD, True), (PERIOD + 1, False)):
        piece = griffin_lim(wanted[:, start : start + 200], torch.tensor([200]), window, hop=hop, rounds=rounds)[0]
        again = samples[start * hop :][far : len(piece) - far]
        assert torch.allclose(piece[far : len(piece) - far], again, rtol=0, atol=1e-10) == same
